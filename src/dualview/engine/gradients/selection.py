"""Which parameters' gradients are asked for."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

MAX_NAMES_LISTED = 30


def selected(model: nn.Module, parameters: str | Iterable[str] | None) -> dict[str, nn.Parameter]:
    """Return the selected floating-point parameters by name, in the model's order; see `plan_gradients`.

    Raises:
        ValueError: a selection names nothing, or nothing requires gradients; the error lists the names.
    """
    floating = {name: one for name, one in model.named_parameters() if one.is_floating_point()}
    if parameters is None:
        chosen = {id(one) for one in floating.values() if one.requires_grad}
        if not chosen:
            raise ValueError(f"no parameter requires gradients: name some with parameters=. {_listed(model)}")
    else:
        chosen = set[int]()
        for wanted in (parameters,) if isinstance(parameters, str) else parameters:
            found = _named(model, wanted)
            if not found:
                raise ValueError(
                    f"parameters={wanted!r} is neither a parameter nor a module with parameters. {_listed(model)}"
                )
            chosen |= found
    return {name: one for name, one in floating.items() if id(one) in chosen}


def _named(model: nn.Module, wanted: str) -> set[int]:
    """Return the ids of what a name stands for; a shared parameter has several names."""
    return {
        id(one)
        for name, one in model.named_parameters(remove_duplicate=False)
        if one.is_floating_point() and (wanted in ("", name) or name.startswith(f"{wanted}."))
    }


def _listed(model: nn.Module) -> str:
    names = [name for name, _ in model.named_parameters()]
    more = f" and {len(names) - MAX_NAMES_LISTED} more" if len(names) > MAX_NAMES_LISTED else ""
    return f"Parameters of {type(model).__name__} are: {', '.join(names[:MAX_NAMES_LISTED])}{more}."
