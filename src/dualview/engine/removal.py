"""What "absent" means: the values that stand in for parts of the input, and which parts go together."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from dualview._display import brief
from dualview.engine.batches import as_inputs, num_rows, tensors_in
from dualview.engine.datasets import as_samples, is_data_set
from dualview.engine.measured import Measured, Parts


@dataclass(frozen=True, eq=False)
class Reference:
    """The reference inputs of a batch's samples.

    Attributes:
        parts: "sample draw ..." by place; either of the first two axes is of length 1 where it does not matter.
    """

    parts: Parts

    @property
    def places(self) -> list[Any]:
        """What it stands in for."""
        return list(self.parts)

    @property
    def shared(self) -> bool:
        """Whether all samples have the same references."""
        return all(part.shape[0] == 1 for part in self.parts.values())

    @property
    def draws(self) -> int:
        """How many references each sample has; results are averaged over them."""
        return max(part.shape[1] for part in self.parts.values())

    def rows(self, samples: Int[Tensor, " row"], draws: Int[Tensor, " row"]) -> Parts:
        """Return the references "row ..." of some draws of some samples."""
        zeros = torch.zeros_like(samples)
        return {
            place: part[samples if part.shape[0] > 1 else zeros, draws if part.shape[1] > 1 else zeros]
            for place, part in self.parts.items()
        }


class Removal(ABC):
    """What stands in for what is absent. Subclasses are frozen dataclasses."""

    def __repr__(self) -> str:
        return brief(self)

    @abstractmethod
    def reference(self, measured: Measured) -> Reference:
        """Return the references of a batch's samples."""


@dataclass(frozen=True)
class Constant(Removal):
    """Values given by the user.

    Args:
        value: a number; a tensor shaped like one sample, or that broadcasts to one; a tensor with one
            for each sample; or a map from an input's place ("0", "mask") to one of these, which may
            name inputs that are whole numbers (token ids) too. What it does not name stays as it is.
    """

    value: Any = 0.0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Constant) and repr(self) == repr(other) and same_values(self.value, other.value)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"Constant({described(self.value)})"

    def reference(self, measured: Measured) -> Reference:
        given = self.value if isinstance(self.value, Mapping) else dict.fromkeys(measured.parts, self.value)
        tensors = tensors_in(measured.inputs)
        strangers = [place for place in given if place not in tensors]
        if strangers or not given:
            came = repr(strangers[0]) if strangers else "nothing"
            raise ValueError(f"`baseline` names {came}; the inputs are {', '.join(map(repr, tensors))}")
        return Reference({place: _placed(value, tensors[place], measured, place) for place, value in given.items()})


@dataclass(frozen=True, repr=False)
class Blur(Removal):
    """The input itself, smoothed by a Gaussian along its last two axes (images) or its last one.

    Args:
        sigma: standard deviation in pixels.
    """

    sigma: float | int = 10.0

    def __post_init__(self) -> None:
        if not self.sigma > 0:
            raise ValueError(f"`sigma` is {self.sigma}; expected more than 0")

    def reference(self, measured: Measured) -> Reference:
        sigma = torch.full((len(measured),), float(self.sigma))
        return Reference({place: blurred(part, sigma)[:, None] for place, part in measured.parts.items()})


@dataclass(frozen=True, eq=False)
class Samples(Removal):
    """Samples of a data set, such as the training set; results are averaged over them.

    Args:
        data: a tensor "sample ...", a batch as the model takes it, a data set or DataLoader.
        count: how many are drawn, without replacement; None takes all.
        seed: of the draw.
    """

    data: Any
    count: int | None = None
    seed: int = 0
    _drawn: dict[str, Tensor] = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        return f"Samples({described(self.data)}, count={self.count}, seed={self.seed})"

    def reference(self, measured: Measured) -> Reference:
        if not self._drawn:
            self._drawn.update(self._draw(measured))
        return Reference({place: part[None] for place, part in _like(self._drawn, measured).items()})

    def _draw(self, measured: Measured) -> dict[str, Tensor]:
        pool = Pool(self.data)
        count = len(pool) if self.count is None else self.count
        if not 1 <= count <= len(pool):
            raise ValueError(f"`count` is {count}; the baseline's data hold {len(pool)} samples")
        order = torch.randperm(len(pool), generator=torch.Generator().manual_seed(self.seed))[:count].sort().values
        return pool.read(order, measured)


class Pool:
    """Samples that references are drawn from, read a few at a time.

    Args:
        data: a tensor "sample ...", a batch as the model takes it, a data set or DataLoader.
    """

    def __init__(self, data: Any) -> None:
        self.data = data
        self._samples = as_samples(data, name="baseline") if is_data_set(data) else None
        self._parts = tensors_in(as_inputs(data)) if self._samples is None else {}
        if self._samples is None and not self._parts:
            raise TypeError(f"the samples of a baseline must be tensors or a data set; they are {type(data).__name__}")

    def __len__(self) -> int:
        return num_rows(self._parts) if self._samples is None else len(self._samples)

    def __repr__(self) -> str:
        return described(self.data)

    def read(self, positions: Int[Tensor, " row"], measured: Measured) -> dict[str, Tensor]:
        """Return what the samples at these positions consist of, "row ..." by place."""
        if self._samples is None:
            parts, which = self._parts, positions
        else:
            found, which = positions.unique(return_inverse=True)
            parts = tensors_in(measured.task.split(self._samples.batch(found.tolist()))[0])
        return {place: part.detach()[which.to(part.device)] for place, part in parts.items() if part.ndim}


@dataclass(frozen=True, eq=False)
class Drawn:
    """References that are read from a pool when they are needed, so that memory does not grow with the draws.

    Attributes:
        pool: what they are drawn from.
        measured: whose inputs they stand in for.
        positions: "sample draw" in the pool, the first axis of length 1 where all samples share them.
    """

    pool: Pool
    measured: Measured
    positions: Int[Tensor, "sample draw"]

    @property
    def places(self) -> list[Any]:
        """What they stand in for."""
        return list(self.measured.parts)

    @property
    def shared(self) -> bool:
        """Whether all samples have the same references."""
        return len(self.positions) == 1

    @property
    def draws(self) -> int:
        """How many references each sample has; results are averaged over them."""
        return self.positions.shape[1]

    def rows(self, samples: Int[Tensor, " row"], draws: Int[Tensor, " row"]) -> Parts:
        """Return the references "row ..." of some draws of some samples."""
        positions = self.positions[samples.cpu() % len(self.positions), draws.cpu()]
        return _like(self.pool.read(positions, self.measured), self.measured)


@dataclass(frozen=True, repr=False)
class Noise(Removal):
    """Uniform noise, the same for every sample; results are averaged over the draws.

    Args:
        low: least value.
        high: largest value.
        count: draws.
        seed: of the noise.
    """

    low: float | int = 0.0
    high: float | int = 1.0
    count: int = 10
    seed: int = 0

    def reference(self, measured: Measured) -> Reference:
        generator = torch.Generator().manual_seed(self.seed)
        parts = {}
        for place, part in measured.parts.items():
            drawn = torch.rand((1, self.count, *part.shape[1:]), generator=generator, dtype=torch.float64)
            parts[place] = (self.low + (self.high - self.low) * drawn).to(part)
        return Reference(parts)


def as_removal(baseline: Any) -> Removal:
    """Accept what users call a baseline: a number, a tensor, a map of them, or a `Removal`."""
    if isinstance(baseline, Removal):
        return baseline
    if isinstance(baseline, (int, float, Tensor, np.ndarray, Mapping)) and not isinstance(baseline, bool):
        return Constant(baseline)
    raise TypeError(
        f"`baseline` must be a number, a tensor, a map from inputs to them, or one of Constant, Blur, Samples and "
        f"Noise; it is {type(baseline).__name__}"
    )


def blurred(part: Tensor, sigma: Tensor) -> Tensor:
    """Smooth each row by a Gaussian of its own standard deviation, in pixels; 0 leaves it as it is.

    Along the last two axes where there are a channel and two more, else along the last one. The kernel
    reaches 4 σ, and beyond the border the border's values go on.
    """
    axes = (-2, -1) if part.ndim >= 4 else (-1,)
    for axis in axes:
        part = _blurred_along(part, sigma.to(part), axis)
    return part


def _blurred_along(part: Tensor, sigma: Tensor, axis: int) -> Tensor:
    moved = part.movedim(axis, -1)
    reach = max(1, int(4 * float(sigma.max()) + 0.5))
    offsets = torch.arange(-reach, reach + 1, device=part.device, dtype=part.dtype)
    width = sigma[:, None].clamp(min=torch.finfo(part.dtype).tiny ** 0.25)
    kernels = torch.exp(-0.5 * (offsets / width) ** 2) * (offsets.abs() <= (4 * width + 0.5).floor().clamp(min=1))
    kernels = kernels / kernels.sum(1, keepdim=True)
    rows = moved.reshape(1, len(part), -1, moved.shape[-1]).flatten(1, 2)  # "1 row·line place"
    lines = rows.shape[1] // len(part)
    padded = F.pad(rows, (reach, reach), mode="replicate")
    found = F.conv1d(padded, kernels.repeat_interleave(lines, 0)[:, None], groups=rows.shape[1])
    return found.reshape(moved.shape).movedim(-1, axis)


def _placed(value: Any, like: Tensor, measured: Measured, place: str) -> Tensor:
    """Return a user's reference as "sample draw ..." with axes of length 1 where it does not vary."""
    given = torch.as_tensor(value, dtype=like.dtype, device=like.device).detach()
    if not like.is_floating_point() and not bool((given == torch.as_tensor(value, device=like.device)).all()):
        raise ValueError(f"`baseline`[{place!r}] is {value!r}; this input holds whole numbers ({like.dtype})")
    sample = like.shape[1:]
    own = measured.total if given.ndim == like.ndim and len(given) == measured.total else None
    if own is not None and given.shape[1:] == sample:
        return given[measured.start : measured.start + len(measured), None]
    try:
        return given.expand(sample)[None, None]
    except RuntimeError:
        raise ValueError(_shape_message(given.shape, like, place, "")) from None


def _like(drawn: Mapping[str, Tensor], measured: Measured) -> Parts:
    """Return samples of a baseline's data as the inputs are: the same places, shapes, precision and device."""
    parts = {}
    for place, part in measured.parts.items():
        if place not in drawn:
            raise ValueError(f"the baseline's samples have no part {place!r}; they have {sorted(drawn)}")
        if drawn[place].shape[1:] != part.shape[1:]:
            raise ValueError(_shape_message(drawn[place].shape[1:], part, place, "a sample of "))
        parts[place] = drawn[place].to(part)
    return parts


def _shape_message(shape: Sequence[int], like: Tensor, place: str, what: str) -> str:
    name = f"`baseline`[{place!r}]" if place else "`baseline`"
    sample = tuple(like.shape[1:])
    return (
        f"{what}{name} has shape {tuple(shape)}; expected a number, {sample} as one sample's input, or "
        f"{('test', *sample)} with one for each sample"
    )


def described(value: Any) -> str:
    """Write numbers as they are, tensors and arrays by their shape."""
    if isinstance(value, (Tensor, np.ndarray)):
        return f"<tensor {'×'.join(map(str, value.shape))}>" if value.ndim else repr(value.item())
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {described(part)}" for key, part in value.items()) + "}"
    return repr(value) if isinstance(value, (int, float)) else f"<{type(value).__name__}>"


def same_values(a: Any, b: Any) -> bool:
    """Compare numbers, tensors, arrays, or maps of them."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(same_values(a[key], b[key]) for key in a)
    return torch.equal(torch.as_tensor(a), torch.as_tensor(b))
