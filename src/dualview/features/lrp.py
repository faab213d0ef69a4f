"""Layer-wise relevance propagation: the measured output, handed back operation by operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn

from dualview.engine.measured import Measured
from dualview.engine.outputs import Kind
from dualview.engine.propagation.account import warn_of
from dualview.engine.propagation.composites import NAMES, Composite, Rule, composite
from dualview.engine.propagation.passes import relevance
from dualview.engine.propagation.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from dualview.engine.propagation.terminal import Flat, WSquare, ZBox
from dualview.engine.propagation.trace import Trace
from dualview.engine.site import Site
from dualview.engine.task import Task
from dualview.features._attribution import FeatureAttribution
from dualview.features._method import Explained, FeatureMethod, attributed

__all__ = ["LRP", "NAMES", "AlphaBeta", "Composite", "Epsilon", "Flat", "Gamma", "WSquare", "ZBox", "ZPlus"]


def raw_directions(task: Task, raw: Tensor, targets: Tensor) -> Tensor:
    """Return the gradient "row logit" of each row's measured output with respect to the model's raw outputs."""
    directions = task.directions(raw, targets)
    one_logit = task.problem == "classification" and raw.shape[1] == 1
    return (directions[:, 1:] - directions[:, :1]) / 2 if one_logit else directions


@dataclass(frozen=True)
class LRP(FeatureMethod):
    """Layer-wise relevance propagation (Bach et al. 2015) on the operations of any functional graph.

    Relevance begins at the logits as v_c·logit_c, where v is the gradient of the measured output
    (one-hot for a logit; one logit z counts as two columns, ∓z/2), and each operation shares its
    outputs' relevance among its inputs by its rule. What reaches the inputs and what operations
    absorbed add up to the beginning: `account` lists it, operation by operation. With plain
    epsilon = 0 on a network without biases it is gradient × input.

    Rules stand on operations, not on modules: residual adds, functional calls, in-place forms and
    modules used several times are seen as they are; an operation without a rule raises. Without
    convolutions "epsilon-plus" is epsilon with biases left out of denominators, which may then be small: its shares
    are complete, but unfaithful on many networks of linear layers (see the card), where "epsilon" is better.

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
    linearises: ClassVar[bool] = True

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
        differentiable: bool = False,
        sites: Site | Iterable[Site] = (),
    ) -> FeatureAttribution:
        """Share the measured output of each sample among its input features.

        Args:
            task: the model and what is measured; a bare model serves where every default fits.
            inputs: a batch as the model takes it (tensor, tuple or dict; first axis: test), or a data
                set or DataLoader, whose labels are not used.
            targets: label or name of the class to explain, one a sample or one for all; the network's
                predictions by default.
            batch_size: samples per pass, which sets the memory needed; None chooses by their size.
            differentiable: relevance keeps no graph to the weights, so this must be False.
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
        sites = (sites,) if isinstance(sites, Site) else tuple(sites)
        strangers = [site for site in sites if not isinstance(site, Site)]
        if strangers:
            raise TypeError(f"`sites` hold {strangers[0]!r}; expected a Site such as Site('layer1', 'output')")
        explain = partial(self.explain, sites=sites)
        found = attributed(self, explain, task, inputs, targets, batch_size, differentiable, stacklevel=2)
        accounts = dict(zip(found.outputs, found.accounts, strict=True))
        warn_of(accounts if found.account is None else {"": found.account}, stacklevel=2)
        return found

    def explain(self, measured: Measured, sites: tuple[Site, ...] = ()) -> Explained:
        def seed(_: slice, passed: Trace) -> Tensor:
            measured.see(passed.logits)  # the pass makes them anyway
            return raw_directions(measured.task, passed.logits, measured.columns)

        found = relevance(measured.task.model, [measured.inputs], self.composite(), seed, sites=sites)
        return Explained(found.inputs, account=found.account, sites=found.sites)
