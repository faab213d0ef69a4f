"""How a dual-family fit responds to the weights of its training rows, by implicit differentiation."""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from dualview.errors import GapWarning
from dualview.solvers.hessian import Hessian
from dualview.solvers.losses import Loss
from dualview.solvers.metrics import Metric, cholesky

_DENSE = 3000  # weights up to which H is factorised
_HARD = 1e-7  # gamma over a kinked loss's mean C_i·k(x_i, x_i)
_PROBED_ROWS = 64
_MAX_PRODUCTS = 5000


def response(
    features: Float[Tensor, "train feature"],
    targets: Tensor,
    coefficients: Float[Tensor, "train out"],
    directions: Float[Tensor, "test out unit"],
    *,
    loss: Loss,
    costs: Float[Tensor, " train"],
    metric: Metric,
    tolerance: float = 1e-8,
) -> Float[Tensor, "test out unit"]:
    """Return H⁻¹ of each direction e ⊗ phi(x), so that the refit's response is a product with the training rows.

    Where w_i multiplies row i's loss, the optimum W(w) has the derivative dW/dw_i = H⁻¹ [alpha_i ⊗ phi_i] with

        H = blockdiag(M_c) + Σ_i C_i J_i ⊗ phi_i phi_iᵀ,

    J_i the curvature of its loss. With x = H⁻¹ [e ⊗ phi(x)], the effect on eᵀW phi(x) is Σ_c alpha_ic x_cᵀ phi_i:
    positive where more of row i raises it. Rows without a dual variable have none, and
    what stands at a bound acts but does not give way.

    A loss with a kink is taken through its active set, which alpha tells: classes (or numbers) whose alpha is free stay
    tied, that is, W moves in the M-orthogonal complement of the rows that tie it, and rows whose alpha is all free have
    no effect. This is the limit gamma → 0 of the response of the loss smoothed around alpha itself, of which alpha is
    the solution at every gamma: J_i = (I - 11ᵀ/|S_i|)/gamma on the free classes S_i. It is computed at a gamma of 1e-7
    of the mean C_i·k(x_i, x_i). It holds while no row enters or leaves the active set, which for the hinge is a far
    smaller neighbourhood than the removal of a row.

    Args:
        features: of the training rows, without the constant.
        targets: classes "train" or numbers "train out", as the loss reads them.
        coefficients: alpha, dense; its columns without rows are zero.
        directions: e ⊗ [f, 1], the gradient of what is measured with respect to W.
        loss: L.
        costs: C_i.
        metric: M.
        tolerance: of the conjugate gradients that solve with H where it has more than 3,000 rows, relative.

    Returns:
        x, float64.

    Warns:
        GapWarning: the conjugate gradients did not reach the tolerance.
    """
    counted = costs > 0
    if not counted.all():
        features, targets, coefficients, costs = (given[counted] for given in (features, targets, coefficients, costs))
    if loss.kinked:
        loss = loss.smoothed(_HARD * _scale(features, costs, metric, coefficients.shape[1]))
    residual = coefficients.double() / costs[:, None]
    hessian = Hessian.at(features, loss, residual, targets, costs, metric, torch.float64)
    directions = directions.double()
    if directions[0].numel() <= _DENSE:
        factor = cholesky(hessian.dense())
        return torch.cholesky_solve(directions.flatten(1).T, factor).T.reshape(directions.shape)
    found, products = hessian.solve(directions, tolerance, _MAX_PRODUCTS)
    if products > _MAX_PRODUCTS:
        warnings.warn(
            f"response did not reach tolerance={tolerance:.1e} in {_MAX_PRODUCTS} products; use a smaller C, a smooth "
            "loss or a larger tolerance",
            GapWarning,
            stacklevel=2,
        )
    return found


def _scale(features: Tensor, costs: Tensor, metric: Metric, num_outputs: int) -> float:
    """Return the mean of C_i·k_c(x_i, x_i) over some rows and all classes."""
    probed = torch.linspace(0, len(features) - 1, min(len(features), _PROBED_ROWS)).long()
    phi = torch.nn.functional.pad(features[probed].double(), (0, 1), value=1.0)[:, None].expand(-1, num_outputs, -1)
    return float(costs[probed] @ (phi * metric.solve(phi)).sum(2).mean(1)) / len(probed)
