"""The feature view: which parts of the input made a prediction."""

from dualview.features.lrp import LRP

__all__ = ["LRP"]
