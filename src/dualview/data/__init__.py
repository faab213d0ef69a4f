"""The data view: which training samples made a prediction."""

from dualview.data.dualview import DualView

__all__ = ["DualView"]
