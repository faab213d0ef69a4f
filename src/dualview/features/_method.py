"""What a feature method is: an output of a task shared among, or traced to, the parts of the input."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from dualview.engine.outputs import Kind
from dualview.engine.task import Task
from dualview.features._attribution import FeatureAttribution


class FeatureMethod(ABC):
    """Attribute predictions to input features. Subclasses are frozen dataclasses; fields are hyper-parameters."""

    kind: ClassVar[Kind]

    @abstractmethod
    def attribute(
        self, task: Task, inputs: Any, targets: Any = None, *, batch_size: int | None = None
    ) -> FeatureAttribution:
        """Score every input feature of each sample for the task's measured output.

        Args:
            task: the model and what is measured; a bare model serves where every default fits.
            inputs: a batch as the model takes it (tensor, tuple or dict; first axis: test), or a data
                set or DataLoader, whose labels are not used.
            targets: label of the class to explain, one a sample or one for all; the network's
                predictions by default.
            batch_size: samples per pass, which sets the memory needed; None chooses by their size.

        Returns:
            Scores shaped like the inputs; positive speaks for a larger measured output.
        """
