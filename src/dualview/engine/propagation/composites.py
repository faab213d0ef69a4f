"""Which rule stands where: by kind of operation, for the first layer, or by a user's own map."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from dualview.engine.propagation.account import Place
from dualview.engine.propagation.linear_ops import OpKind
from dualview.engine.propagation.rules import AlphaBeta, Epsilon, Gamma, Proportional, ZPlus
from dualview.engine.propagation.terminal import Flat, Terminal, WSquare

Rule = Proportional | Terminal


@dataclass(frozen=True)
class Composite:
    """An assignment of rules to linear operations.

    The first entry of `named` that fits decides; then `first`, for linear operations and
    convolutions that see the input with nothing but rearranging and constants in between; then the
    operation's kind.

    Args:
        name: how results call it.
        linear: for linear layers and matrix products with a constant.
        convolution: for convolutions, transposed ones too.
        batch_norm: for batch norm that does not follow a linear operation directly.
        first: for the first layer; None treats it like the others.
        named: module name or pattern ("features.0", "layer4.*") or torch function
            (torch.nn.functional.conv2d) → rule. Every key must fit somewhere.
    """

    name: str
    linear: Rule
    convolution: Rule
    batch_norm: Rule
    first: Rule | None = None
    named: Mapping[str | Callable, Rule] = dataclasses.field(default_factory=dict)

    def __hash__(self) -> int:
        return hash((self.name, self.linear, self.convolution, self.batch_norm, self.first))

    def choose(
        self, place: Place, functions: tuple[Callable, ...], kind: OpKind, *, is_first: bool
    ) -> tuple[Any, Rule]:
        """Return the rule for an operation, and the key that chose it."""
        for key, rule in self.named.items():
            if key in functions if callable(key) else fnmatchcase(place.module, key):
                return key, rule
        if self.first is not None and is_first and kind != "batch_norm":
            return "first", self.first
        return kind, getattr(self, kind)

    def check_used(self, used: set[Any]) -> None:
        """Raise where an entry of the map, or the first layer's rule, never came to be used."""
        idle = [getattr(key, "__name__", key) for key in self.named if key not in used]
        if idle:
            raise ValueError(
                f"{', '.join(map(repr, idle))} of composite {self.name!r} decides for no linear operation: none fits, "
                "an earlier entry comes first, or it is a batch norm that is folded into the layer before"
            )
        if self.first is not None and "first" not in used and not self.named:
            raise ValueError(
                f"composite {self.name!r} has a rule for the first layer, but no linear layer or convolution sees the "
                "input directly (pooling, or an activation, comes before): use one without it, such as 'epsilon-plus'"
            )


def composite(
    rule: str | Rule | Composite | Mapping[str | Callable, str | Rule],
    *,
    bias: str | None = None,
    epsilon: float | int | None = None,
) -> Composite:
    """Return a composite by name, from one rule for all, or from a map of names or operations to rules.

    Args:
        rule: one of `NAMES`; a rule; or a map of rules, or names of them (`RULES`), which stands on top
            of plain epsilon.
        bias: "absorb", "exclude" or "share"; by default "absorb" for "epsilon", "gamma" and maps, and
            "exclude" for the others. Rules given as objects keep their own.
        epsilon: replaces the default of 1e-8.

    Raises:
        ValueError: the name is not known, or an option is given for rules that hold their own.
    """
    options: dict[str, Any] = {key: value for key, value in (("bias", bias), ("epsilon", epsilon)) if value is not None}
    if isinstance(rule, str):
        if rule not in _MAKERS:
            raise ValueError(f"rule={rule!r} is not known; known are {', '.join(map(repr, NAMES))}")
        maker, default_bias = _MAKERS[rule]
        return maker(rule, {"bias": default_bias, **options})
    if isinstance(rule, Mapping):
        plain = Epsilon(**options)
        for key, one in rule.items():
            if not (isinstance(key, str) or callable(key)) or not isinstance(one, (str, Proportional, Terminal)):
                raise TypeError(
                    f"`rule` maps {key!r} to {one!r}; expected a module name, pattern or torch function, and a rule"
                )
        named = {key: _named(one, options) if isinstance(one, str) else one for key, one in rule.items()}
        return Composite("custom", plain, plain, plain, named=named)
    if not isinstance(rule, (Composite, Proportional, Terminal)):
        raise TypeError(
            f"`rule` is {rule!r}; expected a name, a rule such as Epsilon(), a composite, or a map of rules"
        )
    if options:
        raise ValueError(f"`{next(iter(options))}` is given for {rule!r}, which holds its own: set it there")
    if isinstance(rule, Composite):
        return rule
    if isinstance(rule, Terminal):
        raise ValueError(f"{rule!r} writes to the input only: give it to the first layer, in a map of names to rules")
    return _single(type(rule).__name__, rule)


def _named(name: str, options: dict[str, Any]) -> Rule:
    if name not in RULES:
        raise ValueError(f"rule {name!r} is not known; known are {', '.join(map(repr, RULES))}, and ZBox(low=, high=)")
    if "bias" in options and issubclass(RULES[name], Terminal):
        options = {key: value for key, value in options.items() if key != "bias"}  # as in the composites
    return RULES[name](**options)


def _single(name: str, rule: Proportional) -> Composite:
    """Put one rule everywhere, but plain epsilon behind batch norm, whose one input has no parts to weigh."""
    return Composite(name, rule, rule, Epsilon(bias=rule.bias, epsilon=rule.epsilon))


def _epsilon(name: str, options: dict[str, Any]) -> Composite:
    plain = Epsilon(**options)
    return Composite(name, plain, plain, plain)


def _gamma(name: str, options: dict[str, Any]) -> Composite:
    return _single(name, Gamma(**options))


def _z_plus(name: str, options: dict[str, Any]) -> Composite:
    return _single(name, ZPlus(**options))


def _alpha_beta(name: str, options: dict[str, Any]) -> Composite:
    return _single(name, AlphaBeta(alpha=2, beta=1, **options))


def _epsilon_plus(name: str, options: dict[str, Any]) -> Composite:
    plain = Epsilon(**options)
    return Composite(name, plain, ZPlus(**options), plain)


def _epsilon_plus_flat(name: str, options: dict[str, Any]) -> Composite:
    return _with_flat(_epsilon_plus(name, options))


def _epsilon_alpha_beta(name: str, options: dict[str, Any]) -> Composite:
    plain = Epsilon(**options)
    return Composite(name, plain, AlphaBeta(alpha=2, beta=1, **options), plain)


def _epsilon_alpha_beta_flat(name: str, options: dict[str, Any]) -> Composite:
    return _with_flat(_epsilon_alpha_beta(name, options))


def _with_flat(composite: Composite) -> Composite:
    return dataclasses.replace(composite, first=Flat(epsilon=composite.linear.epsilon))


RULES: dict[str, type[Proportional] | type[Terminal]] = {
    "epsilon": Epsilon,
    "gamma": Gamma,
    "z-plus": ZPlus,
    "alpha2-beta1": AlphaBeta,
    "flat": Flat,
    "w-square": WSquare,
}
"""The rules that a map may name; `ZBox` needs its bounds, so it is given as an object."""

_MAKERS: dict[str, tuple[Callable[[str, dict[str, Any]], Composite], str]] = {
    "epsilon": (_epsilon, "absorb"),
    "gamma": (_gamma, "absorb"),
    "z-plus": (_z_plus, "exclude"),
    "alpha2-beta1": (_alpha_beta, "exclude"),
    "epsilon-plus": (_epsilon_plus, "exclude"),
    "epsilon-plus-flat": (_epsilon_plus_flat, "exclude"),
    "epsilon-alpha2-beta1": (_epsilon_alpha_beta, "exclude"),
    "epsilon-alpha2-beta1-flat": (_epsilon_alpha_beta_flat, "exclude"),
}

NAMES = tuple(_MAKERS)
"""The composites that `composite` knows by name."""
