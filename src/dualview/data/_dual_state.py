"""What a fit of the dual family leaves: dual rows, the weights they make, and the metric of these."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dualview.solvers import DualSolution, Metric


class DualState(NamedTuple):
    """A fitted surrogate: the dual rows that are not zero, and the weights they make.

    Row r of the dual belongs to training sample support[r]; its entries stand at row_start[r] to
    row_start[r + 1] of entry_class and entry_value (compressed sparse rows).

    Attributes:
        support: "support" positions in the training set, rising.
        row_start: "support+1".
        entry_class: "entry" output columns.
        entry_value: "entry" float64 dual coefficients alpha.
        weights: "cls unit" float64, Σ_i alpha_ic f_i.
        bias: "cls" float64, Σ_i alpha_ic.
        class_counts: "cls" training samples fitted to each class, those of weight zero left out; where they are
            fitted to numbers or several labels, all that take part.
        metric_factors: "group factor factor" see `solvers.Metric`; empty for the plain metric.
    """

    support: Int[Tensor, " support"]
    row_start: Int[Tensor, " row_start"]
    entry_class: Int[Tensor, " entry"]
    entry_value: Float[Tensor, " entry"]
    weights: Float[Tensor, "cls unit"]
    bias: Float[Tensor, " cls"]
    class_counts: Int[Tensor, " cls"]
    metric_factors: Float[Tensor, "group factor factor"]

    @classmethod
    def of(
        cls,
        solution: DualSolution,
        positions: Int[Tensor, " train"],
        class_counts: Int[Tensor, " cls"],
        metric: Metric,
    ) -> DualState:
        """Return what a solution on the rows at these positions leaves."""
        alpha = solution.coefficients.coalesce()
        rows, classes = alpha.indices()
        support, counts = rows.unique_consecutive(return_counts=True)
        return cls(
            support=positions[support],
            row_start=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            entry_class=classes.contiguous(),
            entry_value=alpha.values(),
            weights=solution.weights[:, :-1].contiguous(),
            bias=solution.weights[:, -1].contiguous(),
            class_counts=class_counts,
            metric_factors=alpha.values().new_zeros(0, 0, 0) if metric.factors is None else metric.factors,
        )

    @property
    def metric(self) -> Metric:
        """In which weights are measured, and whose inverse the kernel holds."""
        return Metric(self.metric_factors if len(self.metric_factors) else None)

    def coefficients(self, train_index: Int[Tensor, " train"]) -> Float[Tensor, "train cls"]:
        """Return the dual rows of these training samples, dense float64; zero for the others."""
        dense = self.entry_value.new_zeros(len(train_index), len(self.bias))
        if len(self.support) == 0:
            return dense
        rank = torch.searchsorted(self.support, train_index).clamp(max=len(self.support) - 1)
        held = (self.support[rank] == train_index).nonzero().squeeze(1)
        rank = rank[held]
        counts = self.row_start[rank + 1] - self.row_start[rank]
        rows = held.repeat_interleave(counts)
        within = torch.arange(len(rows)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        entries = self.row_start[rank].repeat_interleave(counts) + within
        dense[rows, self.entry_class[entries]] = self.entry_value[entries]
        return dense

    def kernel_times(self, values: Float[Tensor, "row unit"], column: int) -> Float[Tensor, "row unit"]:
        """Return A_c⁻¹ f of each row, whose inner products with features are class c's kernel, but for the constant."""
        if not len(self.metric_factors):
            return values
        padded = F.pad(values.double(), (0, 1))[:, None]
        metric = self.metric.of(torch.tensor([column]))
        return metric.solve(padded)[:, 0, :-1].to(values.dtype)

    def sums(self) -> Float[Tensor, "cls unit"]:
        """Return Σ_i alpha_ic f_i, float64; the weights themselves in the plain metric."""
        padded = F.pad(self.weights, (0, 1))
        return self.metric.product(padded)[:, :-1]
