"""Maps: activations of a site that lie over the input, channel by channel, like an image of it."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualview.engine.measured import Measured, Parts
from dualview.engine.site import Site, as_site

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class _Made(NamedTuple):
    """Maps that one call of a module made, and their node in autograd's graph."""

    site: Site
    node: Any
    axes: int
    by_convolution: bool


def map_site(measured: Measured, site: Site | str | None) -> Site:
    """Return where the maps stand: the site that was asked for, else `last_maps`."""
    return last_maps(measured) if site is None else as_site(measured.task.model, site)


def last_maps(measured: Measured) -> Site:
    """Return the output of the last convolution, or where that is one branch of several, of a module that has them all.

    Of the modules whose output is maps of more than one place, the first that everything between input and output of
    the model passes: the convolution that is called last, modules around it (the block of a residual network), those
    called later, those called before. A forward pass of one sample, whose autograd graph tells what goes round what.

    Raises:
        ValueError: no convolution makes maps, or something goes round each of the modules that make maps.
    """
    model = type(measured.task.model).__name__
    made, inputs, output = _watched(measured)
    convolutions = [k for k, one in enumerate(made) if one.by_convolution]
    if not convolutions:
        raise ValueError(
            f"{model} calls no convolution module that makes maps of more than one place: give `site`, the name of a "
            "module"
        )
    first, last = convolutions[0], convolutions[-1]
    site, _, axes, _ = made[last]
    entrance = inputs[lies_over(measured, axes)]
    later = sorted(made[last:], key=lambda one: not f"{site.module}.".startswith(f"{one.site.module}."))  # around first
    for one in (*later, *reversed(made[first:last])):
        if one.axes == axes and _all_pass(output, one.node, entrance):
            return one.site
    raise ValueError(
        f"part of what reaches the output of {model} goes round its last convolution, {site.module!r}, and round each "
        f"other module that makes maps: give `site`, as {site.module!r} for the maps of that branch alone"
    )


def _watched(measured: Measured) -> tuple[list[_Made], dict[str, Any], Any]:
    """Run one sample; return the maps in the order in which modules made them, and the nodes of inputs and output."""
    calls: Counter[str] = Counter()
    made: list[_Made] = []

    def see(name: str, module: nn.Module, _: Any, output: Any) -> Tensor | None:
        site = Site(name, "output", calls[name])
        calls[name] += 1
        if not isinstance(output, Tensor) or not output.is_floating_point():
            return None
        if output.ndim < 3 or output[0, 0].numel() < 2:
            return None
        # A node of its own, also behind a detach, where the graph begins here, and where a view is written to.
        seen = (output if output.requires_grad else output.clone().requires_grad_()).clone()
        made.append(_Made(site, seen.grad_fn, output.ndim - 2, isinstance(module, CONVOLUTIONS)))
        return seen

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in measured.task.model.named_modules():
            if not isinstance(module, torch.jit.ScriptModule):  # takes no hooks
                hooks.callback(module.register_forward_hook(partial(see, name)).remove)
        given = {place: part[:1].clone().requires_grad_().clone() for place, part in measured.parts.items()}
        output = measured.outputs(measured.samples[:1], given)
    return made, {place: part.grad_fn for place, part in given.items()}, output.grad_fn


def _all_pass(output: Any, node: Any, entrance: Any) -> bool:
    """Tell whether a node is on the way from the output down to the entrance, and cutting it leaves no way."""
    pending, seen = [output], set()
    while pending:
        here = pending.pop()
        if here is None or here in seen:
            continue
        seen.add(here)
        if here is not node:
            pending.extend(below for below, _ in here.next_functions)
    return node in seen and entrance not in seen


def as_maps(values: Tensor, tokens: tuple[int, ...] | None) -> Float[Tensor, "row channel ..."]:
    """Return what stands at a site with its channels first and its space behind.

    Args:
        values: "row channel space…", or with `tokens` "row token channel".
        tokens: the grid that the last tokens make up, row by row, (rows, columns) of an image; those
            before them (the class token) are left out.

    Raises:
        ValueError: another number of axes, fewer tokens than the grid has, or no grid.
    """
    if tokens is None:
        if values.ndim < 3:
            raise ValueError(
                f"`site` has activations of shape {tuple(values.shape)}; expected (test, channel, height, width), or "
                "(test, channel, time)"
            )
        return values
    if not isinstance(tokens, (tuple, list)) or not tokens or any(length < 1 for length in tokens):
        raise ValueError(f"`tokens` is {tokens!r}; expected the grid they make up, (rows, columns) or (times,)")
    count = math.prod(tokens)
    if values.ndim != 3 or values.shape[1] < count:
        raise ValueError(
            f"`site` has activations of shape {tuple(values.shape)}; tokens={tokens} need (test, {count} or more, "
            "channel)"
        )
    return values[:, -count:].transpose(1, 2).unflatten(2, tokens)


def over_input(measured: Measured, maps: Float[Tensor, "sample ..."]) -> Parts:
    """Return maps at the size of the input they lie over, linearly interpolated, of length 1 along its channels.

    The input's last axes are taken for space: a series "sample time channel" has to be given channels first.

    Raises:
        ValueError: no input has as many axes of space, or several have.
    """
    axes = maps.ndim - 1
    place = lies_over(measured, axes)
    part = measured.parts[place]
    size = part.shape[-axes:]
    found = F.interpolate(maps[:, None], size=size, mode=MODES[axes], align_corners=False)
    return {place: found.reshape(len(maps), *[1] * (part.ndim - 1 - axes), *size)}


def lies_over(measured: Measured, axes: int) -> str:
    """Return the place of the one input that maps with so many axes of space lie over.

    Raises:
        ValueError: no input has as many, or several have.
    """
    for channels in (1, 0):  # "channel space…" before "space…"
        fitting = [place for place, part in measured.parts.items() if part.ndim == 1 + channels + axes]
        if fitting:
            break
    if len(fitting) != 1 or axes not in MODES:
        shapes = {place: tuple(part.shape) for place, part in measured.parts.items()}
        raise ValueError(
            f"the map at `site` has {axes} axes of space, which lies over {len(fitting)} of the inputs, of shapes "
            f"{shapes}; expected exactly one. Give another `site`, or for a vision transformer tokens=(rows, columns)"
        )
    return fitting[0]
