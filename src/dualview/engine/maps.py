"""Maps: activations of a site that lie over the input, channel by channel, like an image of it."""

from __future__ import annotations

import math
from collections import Counter
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dualview.engine.measured import Measured, Parts
from dualview.engine.site import Site, as_site

MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def map_site(measured: Measured, site: Site | str | None) -> Site:
    """Return where the maps stand: the site that was asked for, else the output of the last convolution."""
    return last_convolution(measured) if site is None else as_site(measured.task.model, site)


def last_convolution(measured: Measured) -> Site:
    """Return the output of the convolution that is called last: a forward pass of one sample.

    Raises:
        ValueError: no module of the model is a convolution.
    """
    model = measured.task.model
    calls: Counter[str] = Counter()
    last: list[Site] = []

    def see(name: str, *_: Any) -> None:
        last[:] = [Site(name, "output", calls[name])]
        calls[name] += 1

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)):
                hooks.callback(module.register_forward_hook(partial(see, name)).remove)
        measured.activations([], measured.samples[:1], {})
    if not last:
        raise ValueError(f"{type(model).__name__} calls no convolution module: give `site`, the name of a module")
    return last[0]


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
    for channels in (1, 0):  # "channel space…" before "space…"
        fitting = {place: part for place, part in measured.parts.items() if part.ndim == 1 + channels + axes}
        if fitting:
            break
    if len(fitting) != 1 or axes not in MODES:
        shapes = {place: tuple(part.shape) for place, part in measured.parts.items()}
        raise ValueError(
            f"the map at `site` has {axes} axes of space, which lies over {len(fitting)} of the inputs, of shapes "
            f"{shapes}; expected exactly one. Give another `site`, or for a vision transformer tokens=(rows, columns)"
        )
    ((place, part),) = fitting.items()
    size = part.shape[-axes:]
    found = F.interpolate(maps[:, None], size=size, mode=MODES[axes], align_corners=False)
    return {place: found.reshape(len(maps), *[1] * (part.ndim - 1 - axes), *size)}
