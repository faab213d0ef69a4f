"""The data view: which training samples made a prediction."""

from dualview.data.confidence import Confidence
from dualview.data.d_trak import DTRAK
from dualview.data.dualview import DualView
from dualview.data.grad_cos import GradCos
from dualview.data.grad_dot import GradDot
from dualview.data.kernel_influence import KernelInfluence
from dualview.data.loss import Loss
from dualview.data.random import Random
from dualview.data.same_class import SameClass
from dualview.data.tracin import TracIn
from dualview.data.trak import TRAK

__all__ = [
    "DTRAK",
    "TRAK",
    "Confidence",
    "DualView",
    "GradCos",
    "GradDot",
    "KernelInfluence",
    "Loss",
    "Random",
    "SameClass",
    "TracIn",
]
