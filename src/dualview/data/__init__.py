"""The data view: which training samples made a prediction."""

from dualview.data.confidence import Confidence
from dualview.data.d_trak import DTRAK
from dualview.data.dualview import DualView
from dualview.data.forward_influence import ForwardInfluence
from dualview.data.grad_cos import GradCos
from dualview.data.grad_dot import GradDot
from dualview.data.kernel_influence import KernelInfluence
from dualview.data.last_layer_influence import LastLayerInfluence
from dualview.data.loss import Loss
from dualview.data.random import Random
from dualview.data.same_class import SameClass
from dualview.data.trace_ntk import TraceNTK
from dualview.data.tracin import TracIn
from dualview.data.trak import TRAK

__all__ = [
    "DTRAK",
    "TRAK",
    "Confidence",
    "DualView",
    "ForwardInfluence",
    "GradCos",
    "GradDot",
    "KernelInfluence",
    "LastLayerInfluence",
    "Loss",
    "Random",
    "SameClass",
    "TraceNTK",
    "TracIn",
]
