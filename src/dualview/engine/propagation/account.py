"""Where the relevance of one pass went: what reached the inputs, and what each operation absorbed."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dualview.errors import DualViewWarning, NonFiniteError

Kind = Literal["bias", "epsilon", "zero denominator", "constant"]

WARN_ABOVE = 0.05
WARN_GROWTH = 1e3
EXACT = 1e-6  # of |seed| + Σ|absorbed|, in float64
ROUNDING = 32  # float32 roundings granted per unit of relevance that passes an operation


class Place(NamedTuple):
    """Where in the model an operation stands.

    Attributes:
        operation: the torch function's name.
        module: name of the innermost module that was running; empty for the model itself.
        module_type: that module's class name.
    """

    operation: str
    module: str = ""
    module_type: str = ""

    def __str__(self) -> str:
        inside = f"module {self.module!r} ({self.module_type})" if self.module else f"the model ({self.module_type})"
        return f"operation {self.operation!r} in {inside}" if self.module_type else f"operation {self.operation!r}"


@dataclass(frozen=True, eq=False)
class Absorbed:
    """Relevance that an operation kept instead of passing it to its inputs.

    Attributes:
        place: the operation and the module it stands in.
        kind: what took it: the "bias" in the denominator, the "epsilon" there, a "zero denominator"
            that left nothing to share it among, or a "constant" part that depends on no input.
        amount: per sample "sample" where the operation's first axis is the batch, else one number.
    """

    place: Place
    kind: Kind
    amount: Tensor

    @property
    def total(self) -> float:
        """The amount over all samples."""
        return float(self.amount.sum())

    @property
    def size(self) -> float:
        """The sum over samples of the amounts' absolute values."""
        return float(self.amount.abs().sum())


class Branches(NamedTuple):
    """How far two branches cancel where they are added.

    Attributes:
        place: the addition.
        ratio: Σ (|R_a| + |R_b|) / Σ |R_a + R_b| over its elements; 1 where nothing cancels. Large
            values say that the maps below show differences of large numbers.
    """

    place: Place
    ratio: float


class Growth(NamedTuple):
    """Where relevance of both signs is largest on its way.

    Attributes:
        place: the operation at whose output it is.
        ratio: Σ|R| there / Σ|R| at the seed; above 1 parts of either sign cancel in the sum.
    """

    place: Place
    ratio: float


@dataclass(frozen=True, eq=False)
class Account:
    """The balance of one pass: `seed` = `inputs` + the sum of `absorbed`.

    Attributes:
        seed: relevance the pass began with, per sample "sample" or one number.
        inputs: relevance that reached the inputs, in the same form.
        absorbed: what each operation kept, in the order of the backward pass.
        branches: how far branches cancel at each addition.
        residual: |seed − inputs − Σ absorbed|: rounding, checked against `tolerance`; of the worst sample.
        tolerance: what it was checked against.
        growth: where relevance of both signs is largest on its way; None where there was none.
    """

    seed: Tensor
    inputs: Tensor
    absorbed: tuple[Absorbed, ...]
    branches: tuple[Branches, ...]
    residual: float
    tolerance: float
    growth: Growth | None = None

    def __repr__(self) -> str:
        """Say the balance and who took most; the fields hold every number."""
        largest = "".join(f"; {entry.total:.4g} by {entry.kind} at {entry.place}" for entry in self.largest())
        return (
            f"Account(seed {float(self.seed.sum()):.6g} = inputs {float(self.inputs.sum()):.6g} + absorbed "
            f"{sum(entry.total for entry in self.absorbed):.6g}, {self.absorbed_share:.2%} of the seed{largest})"
        )

    @property
    def absorbed_share(self) -> float:
        """Σ|absorbed| / |seed|, both summed over samples; 0 where nothing was absorbed."""
        absorbed, seed = sum(entry.size for entry in self.absorbed), float(self.seed.abs().sum())
        if not absorbed:
            return 0.0
        return absorbed / seed if seed else float("inf")

    def of_samples(self, index: Tensor) -> Account:
        """Return the account of some samples; what is not known sample by sample becomes NaN."""
        absorbed = tuple(
            Absorbed(
                entry.place,
                entry.kind,
                entry.amount[index] if entry.amount.ndim else torch.full_like(self.seed[index], torch.nan),
            )
            for entry in self.absorbed
        )
        return replace(self, seed=self.seed[index], inputs=self.inputs[index], absorbed=absorbed)

    def largest(self, count: int = 3) -> tuple[Absorbed, ...]:
        """Return the entries that took most."""
        return tuple(sorted(self.absorbed, key=lambda entry: entry.size, reverse=True)[:count])


class Ledger:
    """The books of the running pass; operations write into it during backward."""

    def __init__(self, num_samples: int) -> None:
        self.num_samples = num_samples
        self.unsure: set[Place] = set()  # where the first axis may be another than the sample
        self.open()

    def open(self) -> None:
        """Forget the last pass."""
        self._absorbed: list[Absorbed] = []
        self._branches: list[tuple[Place, Tensor, Tensor]] = []
        self._flow: list[tuple[Place, Tensor]] = []

    def book(self, place: Place, kind: Kind, amounts: Tensor) -> None:
        """Write down what an operation absorbed, element by element of its output."""
        self.enter(place, kind, self.per_sample(amounts, place))

    def enter(self, place: Place, kind: Kind, amount: Tensor) -> None:
        """Write down what an operation absorbed, by sample or in total."""
        self._absorbed.append(Absorbed(place, kind, amount))

    def see_flow(self, place: Place, relevance: Tensor) -> None:
        """Take note of the relevance at an operation's output: its size bounds the pass's rounding."""
        self._flow.append((place, relevance.abs().sum()))

    def see_branches(self, place: Place, apart: Tensor, together: Tensor) -> None:
        """Take note of |R_a| + |R_b| and |R_a + R_b| at an addition."""
        self._branches.append((place, apart.sum(), together.sum()))

    def per_sample(self, amounts: Tensor, place: Place | None = None) -> Tensor:
        """Sum over everything but the batch axis; over all where the first axis is not, or may not be, the batch."""
        amounts = amounts.detach()
        if amounts.ndim and amounts.shape[0] == self.num_samples and place not in self.unsure:
            return amounts.flatten(1).sum(1) if amounts.ndim > 1 else amounts.clone()
        return amounts.sum()

    def close(self, seed: Tensor, inputs: list[Tensor]) -> Account:
        """Balance the books: sample by sample where all entries are known so, in total where not.

        Args:
            seed: relevance at the seed, element by element.
            inputs: relevance at each input, element by element.

        Raises:
            ArithmeticError: seed and account differ by more than rounding explains.
        """
        begun = self.per_sample(seed)
        parts = [self.per_sample(values) for values in inputs]
        absorbed = tuple(entry for entry in self._absorbed if entry.size)
        amounts = [entry.amount for entry in absorbed]
        if len({part.shape for part in (begun, *parts)}) > 1:
            parts = [part.sum() for part in parts]
        reached = torch.stack(parts).sum(0)
        rounding = 0.0
        if seed.dtype != torch.float64:
            # Every operation rounds what passes it by some units in the last place, and most sum thousands of terms.
            flow = sum(float(part.abs().sum()) for part in (seed, *inputs)) + sum(float(size) for _, size in self._flow)
            rounding = ROUNDING * torch.finfo(seed.dtype).eps * flow
        residuals, tolerances = _balance(begun, reached, amounts, rounding)
        if amounts and not bool((residuals <= tolerances).all()):
            # Some first axis was taken for the samples, having their number by chance: nothing is known apart.
            absorbed = tuple(replace(entry, amount=entry.amount.sum()) for entry in absorbed)
            residuals, tolerances = _balance(begun, reached, [entry.amount for entry in absorbed], rounding)
        worst = int((residuals - tolerances).argmax())
        residual, tolerance = float(residuals.flatten()[worst]), float(tolerances.flatten()[worst])
        growth = self._growth(seed, inputs)
        account = Account(begun, reached, absorbed, self._cancelling(), residual, tolerance, growth)
        if not residual <= tolerance:
            advice = "" if seed.dtype == torch.float64 else " Rounding may be the cause: try model.double()."
            which = f" of sample {worst}" if residuals.numel() > 1 else ""
            totals = (float(seed.sum()), float(reached.sum()), sum(entry.total for entry in absorbed))
            raise ArithmeticError(
                f"the relevance{which} at the seed should be what reached the inputs plus what was absorbed; they "
                f"differ by {residual:.3g}, more than the tolerated {tolerance:.3g}. In total {totals[0]:.6g} began, "
                f"{totals[1]:.6g} arrived and {totals[2]:.6g} was absorbed.{advice}"
            )
        return account

    def _growth(self, seed: Tensor, inputs: list[Tensor]) -> Growth | None:
        begun = float(seed.abs().sum())
        sizes = [(place, float(size)) for place, size in self._flow]
        sizes.append((Place("input"), sum(float(values.abs().sum()) for values in inputs)))
        place, largest = max(sizes, key=lambda entry: entry[1])
        return Growth(place, largest / begun) if begun else None

    def _cancelling(self) -> tuple[Branches, ...]:
        return tuple(
            Branches(place, float(apart / together) if together > 0 else float("inf") if apart > 0 else 1.0)
            for place, apart, together in self._branches
        )


def _balance(seed: Tensor, inputs: Tensor, amounts: list[Tensor], rounding: float) -> tuple[Tensor, Tensor]:
    """Return by how much the books differ and what is tolerated: by sample where all is known so, else in total."""
    if len({part.shape for part in (seed, inputs, *amounts)}) > 1:
        seed, inputs, amounts = seed.sum(), inputs.sum(), [amount.sum() for amount in amounts]
    residuals = (seed - inputs - sum(amounts)).abs()
    return residuals, EXACT * (seed.abs() + sum(amount.abs() for amount in amounts)) + rounding


def joined_account(accounts: Sequence[Account]) -> Account:
    """Return one account of passes over several batches, with amounts sample by sample, on the CPU."""
    places: dict[tuple[Place, Kind], None] = {(e.place, e.kind): None for account in accounts for e in account.absorbed}
    additions = dict.fromkeys(branch.place for account in accounts for branch in account.branches)
    return Account(
        torch.cat([account.seed.reshape(-1).cpu() for account in accounts]),
        torch.cat([account.inputs.reshape(-1).cpu() for account in accounts]),
        tuple(Absorbed(*key, _joined([_amount(account, *key) for account in accounts])) for key in places),
        tuple(
            Branches(place, max(b.ratio for account in accounts for b in account.branches if b.place == place))
            for place in additions
        ),
        max(account.residual for account in accounts),
        max(account.tolerance for account in accounts),
        max((account.growth for account in accounts if account.growth), key=lambda growth: growth.ratio, default=None),
    )


def _amount(account: Account, place: Place, kind: Kind) -> Tensor:
    """Return what one place took in one way; per sample, unless one of its entries is not."""
    entries = [e.amount.cpu() for e in account.absorbed if e.place == place and e.kind == kind]
    if any(amount.ndim == 0 for amount in entries):
        return torch.stack([amount.sum() for amount in entries]).sum()
    return torch.stack(entries).sum(0) if entries else torch.zeros_like(account.seed.cpu())


def _joined(amounts: list[Tensor]) -> Tensor:
    if all(amount.ndim for amount in amounts):
        return torch.cat(amounts)
    return torch.stack([amount.sum() for amount in amounts]).sum()


def warn_of(accounts: Mapping[str, Account], *, stacklevel: int) -> None:
    """Warn, once, where maps say less than they seem to: much was absorbed, or relevance grew out of all proportion.

    Args:
        accounts: by what they are of, e.g. "on the test side"; the empty word where there is one alone.
        stacklevel: as in `warnings.warn`, counted from here.
    """
    said = [f"{what}: {words}" if what else words for what, account in accounts.items() for words in _remarks(account)]
    if said:
        warnings.warn(". ".join(said), DualViewWarning, stacklevel=stacklevel + 1)


def _remarks(account: Account) -> Iterator[str]:
    share = account.absorbed_share
    if share > WARN_ABOVE:
        where = "; ".join(f"{entry.total:.3g} by {entry.kind} at {entry.place}" for entry in account.largest())
        much = f"{share:.1%}" if share <= 1 else f"{share:.3g} times the seed, in parts of either sign,"
        yield f"{much} of the relevance was absorbed on the way and is not in the maps: {where}"
    if account.growth is not None and account.growth.ratio > WARN_GROWTH:
        yield (
            f"relevance of both signs grew {account.growth.ratio:.3g}-fold up to {account.growth.place}, so that the "
            "maps are small differences of large numbers: another rule, or bias='absorb', may be steadier"
        )


def check_finite(values: Tensor, what: str) -> None:
    """Raise where relevance is NaN or infinite, naming what made it so."""
    if not bool(values.sum().isfinite()) and not bool(values.isfinite().all()):  # the sum alone is cheap
        raise NonFiniteError(f"relevance became NaN or infinite at {what}: try model.double(), or a larger epsilon")
