"""Curvature of the softmax cross-entropy of a linear map: summed over blocks of rows, damped, inverted.

With features f_i and probabilities p_i the Gauss-Newton matrix of the weights, class by class, is
H = (1/n) Σ_i (diag(p_i) − p_i p_iᵀ) ⊗ f_i f_iᵀ, which is also their Hessian. Four forms of it:

- full: H itself, (classes × units)²;
- blocks: its diagonal blocks, H_c = (1/n) Σ_i p_ic (1 − p_ic) f_i f_iᵀ for each class, times K/(K − 1) for K classes:
  what is left out is that classes move against each other, and with the factor solutions for directions that sum to
  zero are exact for two classes, and have the right size where classes are alike;
- shared: the mean of these, one for all classes;
- kronecker: (1/n) Σ_i (diag(p_i) − p_i p_iᵀ) ⊗ (1/n) Σ_i f_i f_iᵀ (Martens and Grosse 2015).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor

Form = Literal["full", "blocks", "shared", "kronecker"]


STRIP = 256  # rows of a symmetric matrix that are made at once


class Curvature(NamedTuple):
    """A form of H, or the lower Cholesky factors of its damped one.

    Attributes:
        units: float64; full: one matrix over the pairs "cls·unit"; blocks: one for each class; else a single one.
        classes: float64; kronecker: the matrix over classes; else the identity.
    """

    units: Float[Tensor, "group unit unit"]
    classes: Float[Tensor, "cls cls"]

    @property
    def mean_diagonal(self) -> float:
        """Mean of H's diagonal."""
        return float(self.units.diagonal(dim1=1, dim2=2).mean() * self.classes.diagonal().mean())


def curvature(form: Form, blocks: Iterable[tuple[Tensor, Tensor]]) -> Curvature:
    """Sum H over blocks of rows, in one pass.

    Args:
        form: which.
        blocks: of features "row unit" and float64 probabilities "row cls". Products are taken in the features'
            precision, sums in float64.
    """
    units: Tensor | float = 0.0
    classes: Tensor | float = 0.0
    num_rows, num_classes = 0, 0
    for features, probabilities in blocks:
        units = units + _units(form, features, probabilities).double()
        classes = classes + torch.diag(probabilities.sum(0)) - probabilities.T @ probabilities
        num_rows, num_classes = num_rows + len(features), probabilities.shape[1]
    return Curvature(
        cast("Tensor", units / num_rows),
        cast("Tensor", classes / num_rows) if form == "kronecker" else torch.eye(num_classes, dtype=torch.float64),
    )


def _units(form: Form, features: Tensor, probabilities: Tensor) -> Tensor:
    weights = probabilities * (1 - probabilities)
    if form in ("blocks", "shared"):
        weights = weights * (weights.shape[1] / (weights.shape[1] - 1))
    match form:
        case "full":
            pairs = (probabilities.to(features.dtype)[:, :, None] * features[:, None]).flatten(1)
            whole = -(pairs.T @ pairs)
            for c, own in enumerate(weights.T):  # p − p² would lose all digits where p is near 1
                span = slice(c * features.shape[1], (c + 1) * features.shape[1])
                whole[span, span] = _moment(features, own)
            return whole[None]
        case "blocks":
            return torch.stack([_moment(features, own) for own in weights.T])
        case "shared":
            return _moment(features, weights.mean(1))[None]
        case "kronecker":
            return (features.T @ features)[None]


def _moment(features: Tensor, weights: Tensor) -> Tensor:
    """Return Σ_i weights_i f_i f_iᵀ, strip by strip of its lower half, which is mirrored."""
    weighted, size = features * weights.to(features.dtype)[:, None], features.shape[1]
    moment = features.new_empty(size, size)
    for start in range(0, size, STRIP):
        strip = slice(start, min(size, start + STRIP))
        moment[strip, : strip.stop] = weighted[:, strip].T @ features[:, : strip.stop]
        moment[:start, strip] = moment[strip, :start].T
    return moment


def damped(found: Curvature, damping: float) -> Curvature:
    """Return lower Cholesky factors of H + damping·I.

    A Kronecker product is damped factor by factor: (A + √damping/π·I) ⊗ (S + π√damping·I) with π² the ratio of
    S's mean diagonal to A's (Martens and Grosse 2015, 6.3).

    Args:
        found: undamped.
        damping: absolute, positive.

    Raises:
        ValueError: the damped matrix is not positive definite in float64.
    """
    on_units, on_classes = damping, 0.0
    is_identity = torch.equal(found.classes, torch.eye(len(found.classes), dtype=torch.float64))
    if not is_identity:
        ratio = found.units.diagonal(dim1=1, dim2=2).mean() / found.classes.diagonal().mean()
        on_units = float((damping * ratio).sqrt())
        on_classes = damping / on_units
    return Curvature(_factor(found.units, on_units, damping), _factor(found.classes, on_classes, damping))


def _factor(matrices: Tensor, added: float, damping: float) -> Tensor:
    whole = matrices.clone()
    whole.diagonal(dim1=-2, dim2=-1).add_(added)
    factors, failed = cast("tuple[Tensor, Tensor]", torch.linalg.cholesky_ex(whole))  # pyright: ignore[reportUnknownMemberType]
    if failed.any() or not factors.isfinite().all():
        raise ValueError(
            f"a damping of {damping:.3g} does not make the curvature positive definite: give a larger one, "
            "and features that are finite"
        )
    return factors


class Solved(NamedTuple):
    """Test rows, multiplied by the inverse of H.

    Attributes:
        values: H⁻¹ (v ⊗ f), "test cls·unit"; or S⁻¹ f, "test unit", where classes and units are apart.
        directions: v, "test cls"; or A⁻¹ v.
    """

    values: Float[Tensor, "test pair"]
    directions: Float[Tensor, "test cls"]


def solve(factors: Curvature, features: Float[Tensor, "test unit"], directions: Float[Tensor, "test cls"]) -> Solved:
    """Multiply v ⊗ f by the inverse of H, row by row, in the features' precision.

    Args:
        factors: see `damped`.
        features: f.
        directions: v.
    """
    units, classes = (part.to(features.dtype) for part in factors)
    num_units, width = features.shape[1], units.shape[1]
    if width != num_units:
        pairs = (directions[:, :, None] * features[:, None]).flatten(1)
        return Solved(torch.cholesky_solve(pairs.T, units[0]).T, directions)
    if len(units) > 1:
        solved = torch.stack([torch.cholesky_solve(features.T, unit).T for unit in units], dim=1)
        return Solved(solved.mul_(directions[:, :, None]).flatten(1), directions)
    solved = torch.cholesky_solve(features.T, units[0]).T
    return Solved(solved, torch.cholesky_solve(directions.T, classes).T)


def pair_products(
    test: Solved, features: Float[Tensor, "train unit"], residuals: Float[Tensor, "train cls"]
) -> Float[Tensor, "test train"]:
    """Return (v ⊗ f)ᵀ H⁻¹ (r_i ⊗ f_i) for all pairs.

    Args:
        test: see `solve`.
        features: f_i.
        residuals: r_i.
    """
    num_units = features.shape[1]
    if test.values.shape[1] == num_units:
        return (test.values @ features.T).mul_(test.directions @ residuals.T)
    products = features.new_zeros(len(test.values), len(features))
    for c, own in enumerate(residuals.T):
        solved = test.values[:, c * num_units : (c + 1) * num_units]
        products.addmm_(solved, (features * own[:, None]).T)
    return products


def own_products(
    factors: Curvature,
    features: Float[Tensor, "row unit"],
    directions: Float[Tensor, "row cls"],
    residuals: Float[Tensor, "row cls"],
) -> Float[Tensor, " row"]:
    """Return (v ⊗ f)ᵀ H⁻¹ (r ⊗ f) for each row alone."""
    solved = solve(factors, features, directions)
    if solved.values.shape[1] == features.shape[1]:
        return (solved.values * features).sum(1) * (solved.directions * residuals).sum(1)
    return torch.einsum("rcu,ru,rc->r", solved.values.view(*residuals.shape, -1), features, residuals)


def row_space(features: Float[Tensor, "row unit"]) -> Float[Tensor, "unit rank"]:
    """Return an orthonormal basis of what the rows span, for fewer rows than units.

    H + damping·I acts as the damping alone on all that is orthogonal to the rows, so products with a row are the
    same in this basis: the sample-space (push-through) form, exactly.
    """
    return cast("Tensor", torch.linalg.qr(features.T)[0])  # pyright: ignore[reportUnknownMemberType]
