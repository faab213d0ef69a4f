"""Credible path attribution: integrated gradients from admissible baselines, along admissible steps."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.engine.measured import Measured, Parts
from dualview.engine.outputs import Kind
from dualview.engine.path import Straight, accumulate, ends, passes, per_row, terms
from dualview.engine.removal import Noise, Reference, as_removal
from dualview.features._method import DISCARDED, Explained, FeatureMethod
from dualview.ops.quadrature import Rule, quadrature


@dataclass(frozen=True, repr=False)
class CrediblePath(FeatureMethod):
    """Integrated gradients over several baselines, of which only those that mean absence count.

    This is the library's reading of Akhtar and Jalwana (2023), whose algorithm was not at hand: their
    demands, that a baseline means absence and a path does not leave the box between it and the input,
    put into numbers. A baseline is admissible if the network gives the explained class no more than
    `tau` there. The paths are straight, so that none leaves the box. Steps where f exceeds f(x) are
    discarded: they credit features for an output that the input does not have. φ is the mean over the
    admissible baselines of what is left; where f falls all the way to x, nothing is.

    With one admissible baseline and nothing discarded it is `IntegratedGradients`. Else the scores add up
    to f(x) − f(x') less what was discarded: `completeness_error` is minus `checks["discarded change"]`, to the
    quadrature. The other checks of a sample are its share of "admissible baselines" and of "discarded steps".

    Args:
        baseline: the candidates, as for `IntegratedGradients`, e.g. `Samples(train, 10)`.
        tau: the largest probability of the explained class at an admissible baseline; None takes chance,
            1 / number of classes.
        steps: nodes on each path.
        rule: of the quadrature.
        discard: leave steps out where f exceeds f(x).

    Costs `steps` forward and backward passes a sample and baseline, a forward pass for each baseline of
    each sample, and one for its prediction.

    Example:
        >>> found = CrediblePath(Samples(train, 10), tau=0.05).attribute(model, images)  # doctest: +SKIP
        >>> found.checks["admissible baselines"]  # doctest: +SKIP
    """

    baseline: Any = field(default_factory=Noise)
    _: KW_ONLY
    tau: float | int | None = None
    steps: int = 50
    rule: Rule = "gauss-legendre"
    discard: bool = True

    kind: ClassVar[Kind] = "share"
    keeps_graph: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", as_removal(self.baseline))
        quadrature(self.rule, self.steps)  # refuses what it cannot do
        if self.tau is not None and not 0 < self.tau <= 1:
            raise ValueError(f"`tau` is {self.tau}; expected a probability, more than 0")

    def explain(self, measured: Measured) -> Explained:
        reference = self.baseline.reference(measured)
        path = Straight(reference, ends(measured, reference), self.rule, self.steps)
        at_baselines, admissible = self._baselines(measured, reference)
        weights = admissible.to(at_baselines) / admissible.sum(1, keepdim=True)
        highest = measured.values + 100 * torch.finfo(measured.values.dtype).eps * measured.values.abs()
        values: Parts = {}
        discarded, steps = torch.zeros_like(highest), torch.zeros_like(highest)
        for samples, nodes, outputs, contributions in terms(measured, path):
            weight = weights[samples, nodes // self.steps] * reference.draws
            kept = weight * (outputs <= highest[samples]) if self.discard else weight
            accepted = {place: per_row(kept, part) * part for place, part in contributions.items()}
            accumulate(values, accepted, samples, len(measured))
            gained = sum(part.flatten(1).sum(1) for part in contributions.values())
            discarded.index_add_(0, samples, ((weight - kept) * gained).detach())
            steps.index_add_(0, samples, ((weight - kept) / path.num_nodes).detach())
        checks = {
            "admissible baselines": admissible.to(steps).mean(1),
            "discarded steps": steps,
            DISCARDED: discarded,
        }
        return Explained(values, change=measured.values - (weights * at_baselines).sum(1), checks=checks)

    def _baselines(
        self, measured: Measured, reference: Reference
    ) -> tuple[Float[Tensor, "sample draw"], Bool[Tensor, "sample draw"]]:
        """Return f at each baseline, and whether it may stand for absence."""
        if measured.task.problem != "classification":
            raise ValueError(f"CrediblePath asks for a class's probability; a {measured.task.problem} task has none")
        outputs, probabilities = [], []
        for samples, draws in passes(measured, reference.draws):
            raw = measured.outputs(samples, reference.rows(samples, draws))
            outputs.append(measured.measure(raw, samples))
            shares = measured.task.logits(raw).detach().softmax(1)
            probabilities.append(shares.gather(1, measured.columns[samples][:, None])[:, 0])
            chance = 1 / shares.shape[1]
        shape = (reference.draws, len(measured))
        tau = chance * (1 + 1e-6) if self.tau is None else self.tau  # a network that prefers nothing is at chance
        least = torch.cat(probabilities).reshape(shape).T
        admissible = least <= tau
        if not bool(admissible.any(1).all()):
            sample = int((~admissible.any(1)).nonzero()[0])
            raise ValueError(
                f"no baseline is admissible for sample {measured.start + sample}: the class explained has a "
                f"probability of {float(least[sample].min()):.3g} or more at each, `tau` allows {tau:.3g}. Give other "
                "baselines, or a larger tau="
            )
        return torch.cat(outputs).reshape(shape).T, admissible
