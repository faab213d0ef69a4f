"""ForwardInfluence: influence of training samples on the prediction, from activations alone.

What is known of influence through a linear readout (Koh and Liang, ICML 2017, arXiv 1703.04730) is applied to the
inputs of several layers at once, as if the network's logits were linear in all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, NamedTuple, cast, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import one_hot, pad
from torch.nn.modules.conv import _ConvNd

from dualview.data._gradients import check_cross_entropy
from dualview.data._method import DataMethod, HeldOut, Prepared
from dualview.data._numbers import positive, whole
from dualview.engine.batches import Inputs, num_rows
from dualview.engine.isolation import untouched
from dualview.engine.outputs import Kind
from dualview.engine.record import Activations, Sides
from dualview.engine.site import Site, describe_linears
from dualview.engine.tables import Rows, Table
from dualview.engine.task import Task, class_logits
from dualview.ops.curvature import (
    Curvature,
    Form,
    Solved,
    curvature,
    damped,
    own_products,
    pair_products,
    row_space,
    solve,
)
from dualview.ops.layout import plain, split_parts
from dualview.ops.projection import project
from dualview.solvers.losses import entmax

WARM = 1.5  # temperature where none can be matched
WARMEST = 10.0
SHARPER = {1.0: 1.0, 1.5: 2.0, 2.0: 10 / 3}  # entmax order: its temperature relative to the softmax's
MOST_UNITS = 2048  # of all sites together, up to which earlier layers join
MOST_NUMBERS = 2**27  # of the matrices of all classes, 1 GB in float64, beyond which they share one
BLOCK = 4096


def residuals(
    logits: Float[Tensor, "row cls"], targets: Int[Tensor, " row"], *, temperature: float = 1.0, order: float = 1.0
) -> Float[Tensor, "row cls"]:
    """Return e_y − entmax(z/T), the negative gradient of the loss at temperature T, in float64."""
    return one_hot(targets, logits.shape[1]) - entmax(logits.double() / (SHARPER[order] * temperature), order)


def matched_temperature(
    logits: Float[Tensor, "row cls"],
    targets: Int[Tensor, " row"],
    held_logits: Float[Tensor, "held cls"],
    held_targets: Int[Tensor, " held"],
) -> float:
    """Return the T from 1 to 10 at which training samples have the mean residual 1 − p that held-out ones have at 1.

    A network is surer of what it was trained on; at this temperature it doubts it as much as anything else.
    """

    def doubt(logits: Tensor, targets: Tensor, temperature: float) -> float:
        return float(residuals(logits, targets, temperature=temperature).gather(1, targets[:, None]).mean())

    wanted = doubt(held_logits, held_targets, 1.0)
    low, high = 1.0, WARMEST
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if doubt(logits, targets, middle) < wanted else (low, middle)
    return low


class ForwardState(NamedTuple):
    """A fitted curvature.

    Attributes:
        positions: "fitted" positions that are scored.
        scales: "unit", what each recorded number is multiplied by.
        basis: "unit rank" of the rows, the constant's unit last; empty where rows stay as they are.
        units: Cholesky factors; see `ops.curvature.Curvature`.
        classes: likewise.
        temperature: T.
        share: 1/n.
    """

    positions: Int[Tensor, " fitted"]
    scales: Float[Tensor, " unit"]
    basis: Float[Tensor, "augmented rank"]
    units: Float[Tensor, "group pair pair"]
    classes: Float[Tensor, "cls cls"]
    temperature: Float[Tensor, ""]
    share: Float[Tensor, ""]


@dataclass(frozen=True)
class ForwardInfluence(DataMethod):
    """Estimate the effect of including each training sample by influence through linear maps of cached activations.

    With phi the activations at all sites, each site divided by the root of its mean squared norm, a constant behind
    them, and v the gradient of the measured output with respect to the logits,

        score(x, i) = (v ⊗ phi(x))ᵀ (H + λI)⁻¹ (r_i ⊗ phi_i)/n,        r_i = e_{y_i} − softmax(z_i/T),

    H the curvature of the cross-entropy of logits that are linear in phi, at temperature T (`ops.curvature`), in units
    of the measured output. No gradient is taken: recording is one forward pass. With the readout's input alone, T = 1
    and absolute damping it is the influence of a linear softmax model with that L2 penalty. Self-influence is what
    including a sample takes from its own loss. H by blocks leaves out that classes move against each other: sizes
    are right for two classes and roughly for more ("full" has them exactly), ranks hardly differ.

    Args:
        sites: names of layers whose inputs are taken, or how many of the last Linear and convolution layers; "auto"
            takes two, and earlier ones while all together have no more than 2,048 units.
        damping: λ, as a multiple of the mean diagonal of the training samples' kernel, tr H/(n·classes): so many
            samples' worth of curvature, whatever the number of sites and units.
        temperature: T, or "matched": that of `matched_temperature` on held-out samples (1.5 where there are none).
        curvature: "full", "blocks" for each class, "shared" by them, or "kronecker"; "auto" takes blocks, and shared
            where these would take more than 1 GB.
        absolute: take `damping` as λ itself.
        order: of the entmax in place of the softmax of r_i: 1, 1.5 or 2. Above 1 samples of which the network is
            sure have no score. Its temperature is T, 2T or 10T/3.
        cut: share of the training samples with the largest residuals; the others get no score.
        scaled: whether sites are divided by their norms.
        constant: behind the activations.
        pooled: average maps over positions instead of flattening them.
        projection: units that phi is projected to at random, where it has more.
        seed: of the projection.

    Example:
        >>> method = ForwardInfluence()
        >>> last_layer = ForwardInfluence(sites=1)
    """

    sites: Any = "auto"
    damping: float = 5.0
    temperature: float | str = WARM
    curvature: str = "auto"
    _: KW_ONLY
    absolute: bool = False
    order: float = 1.0
    cut: float | None = None
    scaled: bool = True
    constant: float = 0.3
    pooled: bool = False
    projection: int | None = None
    seed: int = 0

    State: ClassVar[type[ForwardState]] = ForwardState
    kind: ClassVar[Kind] = "effect"
    reads_loss: ClassVar[bool] = True
    reads_readout: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "sites", _checked_sites(self.sites))
        if self.temperature != "matched":
            positive(self.temperature, "temperature")
        positive(self.damping, "damping")
        if self.curvature not in ("auto", *get_args(Form)):
            raise ValueError(f"`curvature` is {self.curvature!r}; choose from auto, {', '.join(get_args(Form))}")
        if self.order not in SHARPER:
            raise ValueError(f"`order` is {self.order!r}; choose from 1, 1.5 and 2")
        if self.cut is not None and not 0 < self.cut <= 1:
            raise ValueError(f"`cut` must be a share above 0, up to 1; it is {self.cut!r}")
        if (
            isinstance(self.constant, bool)
            or not isinstance(self.constant, Real)
            or not 0 <= self.constant < float("inf")
        ):
            raise ValueError(f"`constant` must be a number, 0 or larger; it is {self.constant!r}")
        whole(self.seed, "seed", 0)
        if self.projection is not None and (not isinstance(self.projection, Integral) or self.projection < 1):
            raise ValueError(f"`projection` must be a positive whole number, or None; it is {self.projection!r}")

    def representations(self, task: Task, probe: Inputs | None = None) -> Sides:
        if isinstance(self.sites, tuple):
            unknown = [name for name in self.sites if name not in dict(task.model.named_modules())]
            if unknown:
                raise ValueError(
                    f"`sites` names {unknown[0]!r}, which is no module of {type(task.model).__name__}. "
                    f"{describe_linears(task.model)}"
                )
            sites = tuple(Site(name, "input") for name in self.sites)
        else:
            assert probe is not None and isinstance(task.readout, Site)
            sites = _last_sites(task, task.readout, probe, None if self.sites == "auto" else cast("int", self.sites))
        activations = Activations(sites, self.pooled)
        return Sides(activations, activations)

    # ── fitting ──────────────────────────────────────────────────────────────────────────────────

    def fit(
        self, task: Task, train: Table, positions: Int[Tensor, " train"], held_out: HeldOut | None = None
    ) -> tuple[ForwardState, dict[str, Any]]:
        check_cross_entropy(task, train, "ForwardInfluence")
        temperature = self._temperature(train, positions, held_out)
        scales = self._scales(train, positions)
        basis = scales.new_empty(0, 0)
        width, num_train = train.width + 1, len(positions)
        if width > num_train and (self.projection is None or self.projection > num_train):
            whole = train.values if num_train == len(train) else train.rows(positions).values
            basis = row_space(self._augmented(scales, whole))
        outputs = class_logits(train.parts[0].outputs[:1])

        def blocks() -> Iterator[tuple[Tensor, Tensor]]:
            for rows in train.blocks(BLOCK, positions):
                yield (
                    self._features(scales, basis, rows.values),
                    (class_logits(rows.outputs).double() / temperature).softmax(1),
                )

        width = min(width, basis.shape[1] or width, self.projection or width)
        form = self._form(outputs.shape[1], width)
        found = curvature(form, blocks())
        unit = found.mean_diagonal * width / num_train
        damping = self.damping if self.absolute else self.damping * unit
        factors = damped(found, damping)
        kept = self._kept(train, positions, temperature)
        state = ForwardState(
            positions=kept,
            scales=scales,
            basis=basis,
            units=factors.units.to(train.dtype),
            classes=factors.classes.to(train.dtype),
            temperature=torch.tensor(temperature, dtype=torch.float64),
            share=torch.tensor(1 / num_train, dtype=torch.float64),
        )
        chosen = {"chosen": temperature} if self.temperature == "matched" else {}
        return state, chosen | {
            "sites": [part.name for part in train.layout],
            "temperature": temperature,
            "damping": damping,
            "damping_over_mean_diagonal": damping / found.mean_diagonal if found.mean_diagonal else None,
            "curvature": form,
            "units": width,
            "support": len(kept),
            "support_share": len(kept) / num_train,
        }

    def _temperature(self, train: Table, positions: Tensor, held_out: HeldOut | None) -> float:
        if self.temperature != "matched":
            return float(self.temperature)
        if held_out is None:
            return WARM
        index = torch.arange(len(held_out.table)) if held_out.positions is None else held_out.positions
        (logits, targets), (held_logits, held_targets) = (
            (class_logits(table.outputs[rows]), table.targets[rows])
            for table, rows in ((train, positions), (held_out.table, index))
        )
        return matched_temperature(logits, targets, held_logits, held_targets)

    def _scales(self, train: Table, positions: Tensor) -> Float[Tensor, " unit"]:
        """Return 1/√(mean ‖a‖²) of its site for each unit."""
        squares = torch.zeros(len(train.layout), dtype=torch.float64)
        for rows in train.blocks(BLOCK, positions):
            squares += torch.stack([part.double().square().sum() for part in split_parts(train.layout, rows.values)])
        norms = (squares / len(positions)).sqrt()
        norms[norms == 0] = 1  # a site that is always silent stays so
        by_site = 1 / norms if self.scaled else torch.ones_like(norms)
        widths = torch.tensor([part.width for part in train.layout])
        return by_site.repeat_interleave(widths).to(train.dtype)

    def _form(self, num_classes: int, width: int) -> Form:
        if self.curvature != "auto":
            return cast("Form", self.curvature)
        return "blocks" if num_classes * width**2 <= MOST_NUMBERS else "shared"

    def _kept(self, train: Table, positions: Tensor, temperature: float) -> Int[Tensor, " fitted"]:
        """Return the positions of samples whose residual is not zero, or among the largest."""
        sizes = torch.cat([self._residuals(rows, temperature).norm(dim=1) for rows in train.blocks(BLOCK, positions)])
        if self.cut is not None:
            largest = sizes.argsort(descending=True, stable=True)[: max(1, round(self.cut * len(sizes)))]
            sizes = torch.zeros_like(sizes).index_copy_(0, largest, sizes[largest])
        return positions[sizes > 0]

    # ── scoring ──────────────────────────────────────────────────────────────────────────────────

    def prepare(self, state: ForwardState, task: Task, test: Rows, train: Table) -> Prepared:
        features = self._features(state.scales, state.basis, test.values)
        directions = task.directions(test.outputs, test.targets).to(features.dtype)
        return Prepared(*solve(_factors(state), features, directions), train.layout)

    def score(self, state: ForwardState, test: Prepared, train: Rows) -> Float[Tensor, "test train"]:
        features = self._features(state.scales, state.basis, train.values)
        alpha = (self._residuals(train, float(state.temperature)) * float(state.share)).to(features.dtype)
        return pair_products(Solved(test.values, test.directions), features, alpha)

    def self_scores(self, state: ForwardState, train: Rows, table: Table) -> Float[Tensor, " train"]:
        features = self._features(state.scales, state.basis, train.values)
        on_loss = residuals(class_logits(train.outputs), train.targets).to(features.dtype)
        alpha = (self._residuals(train, float(state.temperature)) * float(state.share)).to(features.dtype)
        return own_products(_factors(state), features, on_loss, alpha)

    def _residuals(self, rows: Rows, temperature: float) -> Float[Tensor, "row cls"]:
        return residuals(class_logits(rows.outputs), rows.targets, temperature=temperature, order=self.order)

    def _augmented(self, scales: Tensor, values: Float[Tensor, "row unit"]) -> Float[Tensor, "row augmented"]:
        return pad(values * scales, (0, 1), value=self.constant)

    def _features(self, scales: Tensor, basis: Tensor, values: Float[Tensor, "row unit"]) -> Float[Tensor, "row rank"]:
        phi = self._augmented(scales, values)
        if len(basis):
            return phi @ basis
        if self.projection is not None and phi.shape[1] > self.projection:
            return project((plain("", phi.shape[1]),), phi, width=self.projection, seed=self.seed)
        return phi


def _factors(state: ForwardState) -> Curvature:
    return Curvature(state.units, state.classes)


def _checked_sites(sites: Any) -> str | int | tuple[str, ...]:
    """Return the field `sites`: "auto", a whole number from 1, or a tuple of names."""
    if sites == "auto":
        return sites
    if isinstance(sites, Integral) and not isinstance(sites, bool) and int(sites) >= 1:
        return int(sites)
    if isinstance(sites, Sequence) and not isinstance(sites, str) and sites and all(isinstance(x, str) for x in sites):
        return tuple(sites)
    raise ValueError(f'`sites` must be "auto", a number of layers, or the names of some; it is {sites!r}')


def _last_sites(task: Task, readout: Site, probe: Inputs, number: int | None) -> tuple[Site, ...]:
    """Return the inputs of the readout and of the Linear and convolution calls before it, in the order of calls.

    Layers that share an input count once.
    """
    seen: list[tuple[Site, Tensor]] = []
    calls: dict[str, int] = {}

    def listen(name: str) -> Any:
        def see(_module: nn.Module, args: tuple[Any, ...]) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            if not args or not isinstance(args[0], Tensor) or args[0].is_nested:
                return
            shared = [k for k, (_, tensor) in enumerate(seen) if args[0] is tensor]
            if not shared:
                seen.append((Site(name, "input", call), args[0]))
            elif name == readout.module:  # another head had it first
                seen[shared[0]] = (readout, args[0])

        return see

    modules = [(name, module) for name, module in task.model.named_modules() if isinstance(module, nn.Linear | _ConvNd)]
    handles = [module.register_forward_pre_hook(listen(name)) for name, module in modules]
    try:
        with untouched(task.model):
            task.forward(probe)
    finally:
        for handle in handles:
            handle.remove()
    sites = [site for site, _ in seen]
    before = [(site, tensor) for site, tensor in seen[: sites.index(readout)] if tensor.shape[:1] == (num_rows(probe),)]
    taken, units = [readout], seen[sites.index(readout)][1][0].numel()
    for site, tensor in reversed(before):
        units += tensor[0].numel()
        enough = len(taken) >= 2 and units > MOST_UNITS if number is None else len(taken) >= number
        if enough:
            break
        taken.append(site)
    return tuple(reversed(taken))
