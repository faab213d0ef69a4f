"""The feature view: which parts of the input made a prediction."""

from dualview.features.gradient import Gradient
from dualview.features.integrated_gradients import IntegratedGradients
from dualview.features.lrp import LRP

__all__ = ["LRP", "Gradient", "IntegratedGradients"]
