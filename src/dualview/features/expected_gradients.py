"""Expected gradients: integrated gradients averaged over references from a data set, one node a draw."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import Path, integrate, per_row, reference_values
from dualview.engine.removal import Drawn, Pool
from dualview.features._method import Explained, FeatureMethod


@dataclass(frozen=True, repr=False)
class ExpectedGradients(FeatureMethod):
    """Expected gradients (Erion et al. 2021): integrated gradients with references drawn from data.

    φ_i = E [(x_i − x'_i) ∂f/∂x_i (x' + α (x − x'))] over x' from the data and α uniform on [0, 1]. The
    scores add up to f(x) − E f(x'); the result's `completeness_error` is their sum minus f(x) and plus
    the mean f(x') of the references drawn.

    Args:
        data: where references come from, such as the training set: a tensor, a batch as the model takes
            it, a data set or DataLoader.
        draws: pairs (x', α) for each sample; 100 to 200 to explain, 1 in a training loop. No sample of
            the data is drawn twice before all have been.
        seed: of the draws. In a training loop give another one each step.
        shared: whether all samples are compared with the same pairs: results then depend on no other
            sample, and f(x') costs one pass for all. False draws own pairs for each sample by its place
            in `inputs`, as an attribution prior needs (see `dualview.ops.priors`).

    Costs `draws` forward and backward passes a sample, a forward pass a sample, and one for each
    reference, which is that of a draw where they are shared. References are read when they are needed.

    Example:
        >>> scores = ExpectedGradients(train_images).attribute(model, images)  # doctest: +SKIP
        >>> own = ExpectedGradients(train_images, draws=1, seed=step, shared=False)  # doctest: +SKIP
        >>> prior = total_variation(own.attribute(model, batch, differentiable=True).values, (-2, -1))  # doctest: +SKIP
    """

    data: Any
    _: KW_ONLY
    draws: int = 200
    seed: int = 0
    shared: bool = True

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.draws < 1:
            raise ValueError(f"`draws` is {self.draws}; expected at least 1")
        object.__setattr__(self, "data", self.data if isinstance(self.data, Pool) else Pool(self.data))

    @property
    def baseline(self) -> Pool:
        """What stands in for absent features."""
        return self.data

    def explain(self, measured: Measured) -> Explained:
        pairs = _Pairs(*self._drawn(measured), measured.parts)
        return Explained(
            integrate(measured, pairs), change=measured.values - reference_values(measured, pairs.references)
        )

    def _drawn(self, measured: Measured) -> tuple[Drawn, Tensor]:
        """Draw references and α "sample draw"; the α of a sample fall into as many equal parts of [0, 1]."""
        generator = torch.Generator().manual_seed(self.seed)
        if self.shared:
            own, positions = 1, _permuted(len(self.data), self.draws, generator)[None]
        else:
            own = measured.total
            positions = torch.stack([_permuted(len(self.data), own, generator) for _ in range(self.draws)], dim=1)
        stratum = torch.rand(own, self.draws, generator=generator).argsort(1)
        alphas = (stratum + torch.rand(own, self.draws, generator=generator, dtype=torch.float64)) / self.draws
        batch = slice(None) if self.shared else slice(measured.start, measured.start + len(measured))
        return Drawn(self.data, measured, positions[batch]), alphas[batch]


@dataclass(eq=False)
class _Pairs(Path):
    """One point on the line from each reference."""

    references: Drawn
    alphas: Float[Tensor, "sample draw"]
    end: Parts

    def __post_init__(self) -> None:
        self.num_nodes = self.references.draws

    def at(self, samples: Tensor, nodes: Tensor) -> tuple[Parts, Parts]:
        alphas = self.alphas[samples.cpu() % len(self.alphas), nodes.cpu()]
        points, steps = {}, {}
        for place, start in self.references.rows(samples, nodes).items():
            way = self.end[place][samples] - start
            points[place], steps[place] = start + per_row(alphas, way) * way, way / self.num_nodes
        return points, steps


def _permuted(num: int, count: int, generator: torch.Generator) -> Int[Tensor, " count"]:
    """Return `count` positions below `num`: all of them in random order, then again."""
    rounds = -(-count // num)
    return torch.cat([torch.randperm(num, generator=generator) for _ in range(rounds)])[:count]
