"""RelatIF: influence relative to how much a training sample changes the network or its losses as a whole.

Source: Barshan, Brunet and Dziugaite, "RelatIF: Identifying Explanatory Training Samples via Relative Influence",
AISTATS 2020 (arXiv 2003.11630). Independent implementation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.data._gradients import BLOCK, member_layout
from dualview.data._method import DataMethod, HeldOut, Prepared, as_method, inner_state, joined
from dualview.data.ekfac import EKFAC
from dualview.engine.batches import Inputs
from dualview.engine.gradients import members
from dualview.engine.labels import Problem
from dualview.engine.outputs import Kind
from dualview.engine.record import Sides
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task
from dualview.ops.gradients import dense
from dualview.ops.layout import dense_width_of

SOLVED_NUMBERS = 2**25  # of the dense gradients that are solved for at a time


@dataclass(frozen=True)
class RelatIF(DataMethod):
    """Score training samples by their influence, divided by how much including them changes as a whole.

    With I(x, i) the effect of `of`, g_i the gradient of the training sample's loss and H the damped curvature,

        form="loss":   score(x, i) = I(x, i) / √(g_iᵀ H⁻¹ g_i / n),    ℓ-RelatIF: expected change of losses,
        form="theta":  score(x, i) = I(x, i) / (‖H⁻¹ g_i‖ / n),        θ-RelatIF: change of the parameters.

    The measured output's change per unit of that: of two samples with equal influence the one that speaks to this
    prediction, and not to all, stands higher, so that outliers do not head every list. Sums mean nothing. Samples whose
    gradient vanishes score zero. Self-influence is that of `of`, divided alike.

    Args:
        of: a method that inverts a curvature: `EKFAC`, `Influence`, `Arnoldi`, `DataInf`; for form="loss" also
            `KernelInfluence` and `LastLayerInfluence`.
        form: "loss" or "theta".

    Example:
        >>> method = RelatIF(EKFAC(), form="theta")
    """

    of: Any = EKFAC()
    form: str = "loss"

    kind: ClassVar[Kind] = "similarity"

    def __post_init__(self) -> None:
        object.__setattr__(self, "of", as_method(self.of))
        if self.form not in ("loss", "theta"):
            raise ValueError(f"`form` is {self.form!r}; choose from 'loss' and 'theta'")
        if not self.of.inverts_curvature:
            raise ValueError(f"`of` must invert a curvature, as EKFAC() or Influence() does; it is {self.of!r}")
        if getattr(self.of, "leverage", False):
            raise ValueError("`of` takes each sample's own part out of the curvature: give Influence(leverage=False)")
        if self.form == "theta" and type(self.of).solve is DataMethod.solve:
            raise ValueError(f"{type(self.of).__name__} has no change of parameters: use form='loss', or EKFAC()")

    @property
    def reads_readout(self) -> bool:  # type: ignore[override]
        """As `of` does."""
        return self.of.reads_readout

    @property
    def problems(self) -> tuple[Problem, ...]:  # type: ignore[override]
        """As of `of`."""
        return self.of.problems

    def resolved(self, task: Task) -> dict[str, Any]:
        return self.of.resolved(task)

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        return self.of.representations(task, probe)

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[Any, dict[str, Any]]:
        state, facts = self.of.fit(task, train, positions, held_out)
        scored = self.of.scored(state)
        sizes = self._sizes(state, train, scored)
        smallest = float(sizes.max()) * torch.finfo(sizes.dtype).eps
        facts |= {"without_gradient": int((sizes <= smallest).sum())}
        return joined(state, sizes=torch.where(sizes > smallest, sizes, torch.inf)), facts

    def _sizes(self, state: Any, train: Table, scored: Tensor) -> Float[Tensor, " scored"]:
        """Return the denominator of each scored sample."""
        if self.form == "loss":
            own = torch.cat([self.of.self_scores(state, rows, train) for rows in train.blocks(BLOCK, scored)])
            return own.clamp(min=0).sqrt()
        layout = member_layout(train, 0)
        found = []
        for rows in train.blocks(max(1, SOLVED_NUMBERS // dense_width_of(layout)), scored):
            (one,) = members(train.layout, rows.values)
            found.append(self.of.solve(state, dense(layout, one.gradients), train).norm(dim=1))
        return torch.cat(found) / len(scored)

    def state_from(self, tensors: dict[str, Tensor]) -> Any:
        return joined(self.of.state_from(tensors), sizes=tensors["sizes"])

    def scored(self, state: Any) -> Int[Tensor, " train"]:
        return self.of.scored(inner_state(self.of, state))

    def prepare(self, state: Any, task: Task, test: Rows, train: Table) -> Prepared:
        return self.of.prepare(inner_state(self.of, state), task, test, train)

    def score(self, state: Any, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        return self.of.score(inner_state(self.of, state), test, train) / self._of_rows(state, train)

    def self_scores(self, state: Any, train: Rows, table: Table) -> Float[Tensor, " train"]:
        return self.of.self_scores(inner_state(self.of, state), train, table) / self._of_rows(state, train)

    def _of_rows(self, state: Any, train: Rows) -> Float[Tensor, " train"]:
        return state.sizes[torch.searchsorted(self.scored(state), train.index)]
