"""What was seen while C was chosen: how sparse and how faithful the surrogate is at each value."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from dualview._display import png
from dualview.engine.frames import imported_pandas

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True)
class Curve:
    """Support share and fidelity against C, rising, one entry a value that was solved for.

    The solutions are rough (a relative gap of 1e-4); the fit itself is solved again at the chosen C.

    Attributes:
        C: weights of the sum of losses, rising.
        support_share: share of the fitted samples with a score at all.
        seconds: wall time of each solution.
        chosen: which entry was taken.
        by: what it was chosen for, "fidelity" or "support".
        asked_support: the share that was asked for, where it was chosen for that.
        num_held_out: samples that fidelity was measured on; the surrogates here did not see them.
        fidelity: share of these for which surrogate and network predict the same class. This and what
            follows is None where no samples were held out.
        fidelity_error: its standard error, of a binomial share.
        shortfall: how far it is behind the best, in agreement smoothed at the decision boundary.
        shortfall_error: standard error of that difference, over samples.
    """

    C: tuple[float, ...]
    support_share: tuple[float, ...]
    seconds: tuple[float, ...]
    chosen: int
    by: Literal["fidelity", "support"]
    asked_support: float | None = None
    num_held_out: int = 0
    fidelity: tuple[float, ...] | None = None
    fidelity_error: tuple[float, ...] | None = None
    shortfall: tuple[float, ...] | None = None
    shortfall_error: tuple[float, ...] | None = None

    def __len__(self) -> int:
        return len(self.C)

    def __repr__(self) -> str:
        chosen = f"C={self.C[self.chosen]:.3g} by {self.by}, support {self.support_share[self.chosen]:.1%}"
        fidelity = "" if self.fidelity is None else f", fidelity {self.fidelity[self.chosen]:.1%}"
        return f"Curve({len(self)} values of C from {self.C[0]:.3g} to {self.C[-1]:.3g}; chosen {chosen}{fidelity})"

    def _repr_png_(self) -> bytes | None:
        """Show the curve in a notebook, where `dualview.plot` was imported."""
        return png(self)

    @property
    def reachable_support(self) -> tuple[float, float]:
        """The smallest and the largest support share that were seen."""
        return min(self.support_share), max(self.support_share)

    def to_pandas(self) -> pandas.DataFrame:
        """Return a table with one line per value of C; `chosen` says which was taken."""
        pandas = imported_pandas()
        columns = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        frame = pandas.DataFrame({name: column for name, column in columns.items() if isinstance(column, tuple)})
        frame["chosen"] = [entry == self.chosen for entry in range(len(self))]
        return frame

    def describe(self) -> dict[str, Any]:
        """Return all fields as JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def of(cls, description: dict[str, Any]) -> Curve:
        """Rebuild what `describe` returned."""
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in description.items()}
        return cls(**fields)
