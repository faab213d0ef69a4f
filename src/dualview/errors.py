"""Every exception and warning of the library that a caller may want to catch.

    Exception
    ├── ValueError
    │   └── NonFiniteError      recorded numbers are NaN or infinite; names the samples
    └── OSError
        └── StoreError          a store cannot be used; says what to do
            ├── StoreMismatch   it was made by another model, or from other data
            └── DamagedFile     a file is truncated, altered or not ours

    UserWarning
    └── DualViewWarning         something changes what a result means
        ├── AugmentationWarning two reads of one training sample differ
        ├── GapWarning          a solver stopped above the asked gap
        └── ProbabilityWarning  a classifier gives probabilities, not logits

Everything else that goes wrong is a built-in type (`ValueError`, `TypeError`, `KeyError`): nobody
needs to tell those apart, and each message says what was expected, what came, and what to do.
"""


class NonFiniteError(ValueError):
    """Recorded numbers are NaN or infinite.

    Attributes:
        index: positions in the data set of the first offending samples.
    """

    def __init__(self, message: str, index: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.index = index


class StoreError(OSError):
    """A store cannot be used as asked."""


class StoreMismatch(StoreError):
    """A store was made by another model, or from other data."""


class DamagedFile(StoreError):
    """A file is truncated, altered, or not one of ours."""


class DualViewWarning(UserWarning):
    """Something changes what a result means."""


class AugmentationWarning(DualViewWarning):
    """Two reads of the same training sample differ."""


class GapWarning(DualViewWarning):
    """A solver stopped above the asked relative duality gap."""


class ProbabilityWarning(DualViewWarning):
    """A classifier's outputs look like probabilities, where logits are needed."""
