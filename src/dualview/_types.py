"""Names of axes, in the order in which they stand everywhere, and the tensor types built on them.

The axis words are `output test train class unit feature param`; in annotations `class` is written
`cls`, since jaxtyping parses the words as Python expressions.
"""

from typing import TypeAlias

from jaxtyping import Float, Int
from torch import Tensor

TestTrain: TypeAlias = Float[Tensor, "test train"]
TestUnit: TypeAlias = Float[Tensor, "test unit"]
TestClass: TypeAlias = Float[Tensor, "test cls"]
TrainUnit: TypeAlias = Float[Tensor, "train unit"]
TrainClass: TypeAlias = Float[Tensor, "train cls"]
ClassUnit: TypeAlias = Float[Tensor, "cls unit"]
RowUnit: TypeAlias = Float[Tensor, "row unit"]
RowClass: TypeAlias = Float[Tensor, "row cls"]
PerRow: TypeAlias = Float[Tensor, " row"]
PerTest: TypeAlias = Float[Tensor, " test"]
PerTrain: TypeAlias = Float[Tensor, " train"]
RowIndex: TypeAlias = Int[Tensor, " row"]
TrainIndex: TypeAlias = Int[Tensor, " train"]
