"""DeepLIFT: the output's change from a baseline, handed back call by call."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor

from dualview.engine.batches import map_tensors, with_parts
from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.propagation.difference_rules import RULES
from dualview.engine.propagation.differences import Differences, differences
from dualview.engine.removal import as_removal
from dualview.features._method import Explained, FeatureMethod

Rule = Literal["rescale", "reveal-cancel"]


@dataclass(frozen=True, repr=False)
class DeepLIFT(FeatureMethod):
    """DeepLIFT (Shrikumar, Greenside and Kundaje 2017) on the calls of any functional graph.

    Every call gets multipliers m with Σ m Δx = Δy for the differences Δ to the baseline. Chained back from
    the measured output they give scores m_i (x_i − x'_i), which add up to f(x) − f(x'). At a non-linearity
    m = Δy / Δx (rescale), so that saturation and kinks between baseline and input are seen.

    Scores depend on how the network is written: two nets that compute the same may be explained
    differently. Functional calls, residuals, in-place forms and modules used several times are seen as they are;
    a call without a rule raises, and so do scores that miss what they should add up to by more than rounding.

    Args:
        rule: "rescale"; or "reveal-cancel", which at a non-linearity right after a linear layer or convolution
            (batch norm between them folded in) shares Δy between the positive and the negative
            contributions to Δx before it cancels them, and is "rescale" elsewhere. `checks` count both.
        baseline: x', as for `IntegratedGradients`. Over several draws the scores are averaged, which with
            "rescale" is Deep SHAP (Lundberg and Lee 2017).

    Costs a forward pass on x', and a forward and a backward pass on x, for each draw. The operands of
    non-linear calls on x' are kept until those on x have met them.

    Example:
        >>> scores = DeepLIFT(baseline=Blur(10)).attribute(model, images)  # doctest: +SKIP
        >>> scores.completeness_error.abs().max()  # doctest: +SKIP
    """

    rule: Rule = "rescale"
    _: KW_ONLY
    baseline: Any = 0.0

    kind: ClassVar[Kind] = "share"

    def __post_init__(self) -> None:
        if self.rule not in get_args(Rule):
            raise ValueError(f"`rule` is {self.rule!r}; choose from 'rescale' and 'reveal-cancel'")
        object.__setattr__(self, "baseline", as_removal(self.baseline))

    def explain(self, measured: Measured) -> Explained:
        reference, samples = self.baseline.reference(measured), measured.samples
        values: Parts = {}
        change = torch.zeros((), device=samples.device)
        calls: dict[str, int] = {}
        for draw in range(reference.draws):
            found = self._against(measured, reference.rows(samples, torch.full_like(samples, draw)))
            share = 1 / reference.draws
            values = {place: values.get(place, 0) + share * part for place, part in found.contributions.items()}
            change, calls = change + share * (found.values - found.reference_values), found.calls
        checks = {f"{rule} calls": torch.full_like(change, calls.get(rule, 0)) for rule in RULES}
        return Explained(values, change=change, checks=checks)

    def _against(self, measured: Measured, references: Parts) -> Differences:
        task = measured.task

        def outputs(parts: Parts) -> Tensor:
            own = map_tensors(torch.clone, measured.inputs)  # the model may write to what `baseline` does not name
            return task.forward(with_parts(own, parts))

        def measure(made: Tensor, raw: Tensor) -> Tensor:
            measured.see(made)  # the pass on the inputs makes them anyway
            return measured.measure(raw, measured.samples)

        unfit = [place for place in references if place not in measured.parts]
        if unfit:
            raise ValueError(f"`baseline` names {unfit[0]!r}, whose whole numbers have no differences to share")
        inputs = {place: measured.parts[place] for place in references}
        return differences(task.model, outputs, measure, inputs, references, signed=self.rule == "reveal-cancel")
