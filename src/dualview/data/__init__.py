"""The data view: which training samples made a prediction."""

from dualview.data.arnoldi import Arnoldi
from dualview.data.bm25 import BM25
from dualview.data.confidence import Confidence
from dualview.data.d_trak import DTRAK
from dualview.data.data_inf import DataInf
from dualview.data.dualview import DualView
from dualview.data.ekfac import EKFAC
from dualview.data.feature_similarity import FeatureSimilarity
from dualview.data.forward_influence import ForwardInfluence
from dualview.data.grad_cos import GradCos
from dualview.data.grad_dot import GradDot
from dualview.data.influence import Influence
from dualview.data.input_kernel import InputKernel
from dualview.data.input_similarity import InputSimilarity
from dualview.data.kernel_influence import KernelInfluence
from dualview.data.last_layer_influence import LastLayerInfluence
from dualview.data.loss import Loss
from dualview.data.random import Random
from dualview.data.relat_if import RelatIF
from dualview.data.representer_points import RepresenterPoints
from dualview.data.same_class import SameClass
from dualview.data.support_spectrum import SupportSpectrum
from dualview.data.trace_ntk import TraceNTK
from dualview.data.tracin import TracIn
from dualview.data.trak import TRAK

__all__ = [
    "BM25",
    "DTRAK",
    "EKFAC",
    "TRAK",
    "Arnoldi",
    "Confidence",
    "DataInf",
    "DualView",
    "FeatureSimilarity",
    "ForwardInfluence",
    "GradCos",
    "GradDot",
    "Influence",
    "InputKernel",
    "InputSimilarity",
    "KernelInfluence",
    "LastLayerInfluence",
    "Loss",
    "Random",
    "RelatIF",
    "RepresenterPoints",
    "SameClass",
    "SupportSpectrum",
    "TraceNTK",
    "TracIn",
]
