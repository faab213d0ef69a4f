"""Layer-wise relevance propagation: the measured output, handed back operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from dualview._version import __version__
from dualview.engine.datasets import input_batches
from dualview.engine.labels import columns_of
from dualview.engine.outputs import Kind
from dualview.engine.propagation.account import warn_of
from dualview.engine.propagation.composites import NAMES, Composite, Rule, composite
from dualview.engine.propagation.passes import relevance
from dualview.engine.propagation.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from dualview.engine.propagation.terminal import Flat, WSquare, ZBox
from dualview.engine.propagation.trace import Trace
from dualview.engine.site import Site
from dualview.engine.source import Source
from dualview.engine.task import Task, as_task, class_logits
from dualview.features._attribution import FeatureAttribution
from dualview.features._method import FeatureMethod

__all__ = ["LRP", "NAMES", "AlphaBeta", "Composite", "Epsilon", "Flat", "Gamma", "WSquare", "ZBox", "ZPlus"]

BATCH_BYTES = 4 * 2**20  # of inputs: a pass keeps every activation of its batch


def raw_directions(task: Task, raw: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient "row logit" of each row's measured output with respect to the model's raw outputs."""
    directions = task.directions(raw, targets)
    return (directions[:, 1:] - directions[:, :1]) / 2 if raw.shape[1] == 1 else directions


@dataclass(frozen=True)
class LRP(FeatureMethod):
    """Layer-wise relevance propagation (Bach et al. 2015) on the operations of any functional graph.

    Relevance begins at the logits as v_c·logit_c, where v is the gradient of the measured output
    (one-hot for a logit; one logit z counts as two columns, ∓z/2), and each operation shares its
    outputs' relevance among its inputs by its rule. What reaches the inputs and what operations
    absorbed add up to the beginning: `account` lists it, operation by operation. With plain
    epsilon = 0 on a network without biases it is gradient × input.

    Rules stand on operations, not on modules: residual adds, functional calls, in-place forms and
    modules used several times are seen as they are; an operation without a rule raises.

    Args:
        rule: a composite by name ("epsilon", "gamma", "epsilon-plus", "epsilon-plus-flat",
            "epsilon-alpha2-beta1", "epsilon-alpha2-beta1-flat", "z-plus", "alpha2-beta1"); one rule
            for all operations; or a map from module names, patterns ("features.*") or torch
            functions to rules, plain epsilon elsewhere. Rules are found in `dualview.features.lrp`.
        bias: what becomes of biases. "absorb": they stand in the denominator and keep their part;
            "exclude": they do not, and relevance is lost only at zero denominators; "share": their
            part is spread equally over the operation's non-zero inputs. All is booked. The default
            is "absorb" for single rules and "exclude" for composites of several.
        epsilon: stabiliser, in units of an operation's largest denominator for that sample; 1e-8 by default.

    Example:
        >>> maps = LRP("epsilon-plus-flat").attribute(model, images)  # doctest: +SKIP
        >>> maps.values.sum(1)  # over colours: "test height width"  # doctest: +SKIP
    """

    rule: str | Rule | Composite | Mapping[str | Callable, str | Rule]
    _: KW_ONLY
    bias: str | None = None
    epsilon: float | int | None = None

    kind: ClassVar[Kind] = "share"

    def __post_init__(self) -> None:
        if isinstance(self.rule, Mapping):
            object.__setattr__(self, "rule", dict(self.rule))  # the user's own may change later
        self.composite()

    def __hash__(self) -> int:
        rule = frozenset(self.rule.items()) if isinstance(self.rule, Mapping) else self.rule
        return hash((rule, self.bias, self.epsilon))

    def __repr__(self) -> str:
        options = "".join(
            f", {name}={value!r}"
            for name, value in (("bias", self.bias), ("epsilon", self.epsilon))
            if value is not None
        )
        return f"LRP({self.rule!r}{options})"

    def composite(self) -> Composite:
        """Return which rule stands where."""
        return composite(self.rule, bias=self.bias, epsilon=self.epsilon)

    def attribute(
        self,
        task: Task | nn.Module,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int | None = None,
        sites: Site | Iterable[Site] = (),
    ) -> FeatureAttribution:
        """Share the measured output of each sample among its input features.

        Args:
            task: the model and what is measured; a bare model serves where every default fits.
            inputs: a batch as the model takes it (tensor, tuple or dict; first axis: test), or a data
                set or DataLoader, whose labels are not used.
            targets: label of the class to explain, one a sample or one for all; the network's
                predictions by default.
            batch_size: samples per pass, which sets the memory needed; None chooses by their size.
            sites: places inside the model where relevance is to be read as well.

        Returns:
            Relevance shaped like the inputs, in units of the measured output; its sum and what the
            account lists add up to v·logits, the output itself where that is a logit.

        Raises:
            NotImplementedError: an operation has no rule; it is named with its module.
            TypeError: numbers other than float32 or float64, or no floating-point input.
            ValueError: a rule fits nothing, or a terminal rule stands elsewhere than at the input.
            NonFiniteError: relevance overflowed; the operation is named.
        """
        found = self.unwarned(task, inputs, targets, batch_size=batch_size, sites=sites)
        assert found.account is not None
        warn_of({"": found.account}, stacklevel=2)
        return found

    def unwarned(
        self,
        task: Task | nn.Module,
        inputs: Any,
        targets: Any = None,
        *,
        batch_size: int | None = None,
        sites: Site | Iterable[Site] = (),
    ) -> FeatureAttribution:
        """Do as `attribute`, for callers who warn of the account themselves."""
        task = as_task(task)
        sites = (sites,) if isinstance(sites, Site) else tuple(sites)
        strangers = [site for site in sites if not isinstance(site, Site)]
        if strangers:
            raise TypeError(f"`sites` hold {strangers[0]!r}; expected a Site such as Site('layer1', 'output')")
        total, batches = input_batches(inputs, task.split, batch_size, BATCH_BYTES)
        explained = _Explained(task, targets, total)
        found = relevance(task.model, batches, self.composite(), explained.seed, sites=sites)
        output = task.single_output
        values = found.inputs
        return FeatureAttribution(
            values=next(iter(values.values())) if len(values) == 1 else values,
            kind=self.kind,
            measured=task.measured,
            linearised=not getattr(output, "linear", False),
            lower_is_better=getattr(output, "lower_is_better", False),
            targets=torch.cat(explained.columns),
            predicted=class_logits(found.logits).argmax(1),
            method=repr(self),
            account=found.account,
            sites=found.sites,
            class_names=task.class_names,
            version=__version__,
            source=Source.of(task, inputs),
        )


class _Explained:
    """Which output column each sample is explained for, found batch by batch as its logits become known."""

    def __init__(self, task: Task, targets: Any, total: int) -> None:
        self.task, self.targets, self.columns = task, targets, list[Tensor]()
        if targets is not None and np.ndim(targets) == 0:
            self.targets = [targets.item() if hasattr(targets, "item") else targets] * total
        if self.targets is not None and len(self.targets) != total:
            raise ValueError(f"`targets` hold {len(self.targets)} labels for {total} samples")

    def seed(self, rows: slice, passed: Trace) -> Tensor:
        """Return v, the modified gradient v_c·logit_c / logit_c that relevance begins with."""
        raw = passed.logits
        if self.targets is None:
            columns = class_logits(raw).argmax(1)
        else:
            columns = columns_of(self.targets[rows], max(2, raw.shape[1]), self.task.classes, start=rows.start)
        self.columns.append(columns.cpu())
        return raw_directions(self.task, raw, columns.to(raw.device))
