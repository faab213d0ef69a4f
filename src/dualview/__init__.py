"""Explain a trained model's predictions by its training data, features and components."""

import importlib as _importlib
import typing as _typing

from dualview._version import __version__
from dualview.data import (
    BM25,
    DTRAK,
    EKFAC,
    TRAK,
    Arnoldi,
    Confidence,
    DataInf,
    DualView,
    FeatureSimilarity,
    ForwardInfluence,
    GradCos,
    GradDot,
    Influence,
    InputKernel,
    InputSimilarity,
    KernelInfluence,
    LastLayerInfluence,
    Loss,
    Random,
    RelatIF,
    RepresenterPoints,
    SameClass,
    SupportSpectrum,
    TraceNTK,
    TracIn,
)
from dualview.data._attribution import DataAttribution
from dualview.data._curve import Curve
from dualview.data._explainer import Explainer
from dualview.data._fit import fit, open
from dualview.data._groups import GroupAttribution
from dualview.data._ranking import Ranking
from dualview.data._selection import Selection
from dualview.engine.outputs import Output, contrast, log_probability, logit, loss, margin, mean_square
from dualview.engine.players import Patches, Pixels
from dualview.engine.removal import Blur, Constant, Noise, Samples
from dualview.engine.site import Site
from dualview.engine.store import Store
from dualview.engine.task import Task
from dualview.evaluation.significance import Significance, uncertainty
from dualview.features import (
    IIA,
    LRP,
    SAMP,
    BlurIG,
    Conductance,
    CrediblePath,
    DeepLIFT,
    DualEncoder,
    ExpectedGradients,
    GradCAM,
    Gradient,
    GuidedIG,
    InputXGradient,
    IntegratedGradients,
    Occlusion,
    PathIntegral,
    SmoothGrad,
    Taylor,
)
from dualview.features._allocation import Allocation
from dualview.features._attribution import FeatureAttribution
from dualview.relations import Maps, Relation, relate, render

if _typing.TYPE_CHECKING:
    from dualview.plotting import plot
    from dualview.report import write_report

__all__ = [
    "Allocation",
    "Arnoldi",
    "BM25",
    "Blur",
    "BlurIG",
    "Conductance",
    "Confidence",
    "Constant",
    "CrediblePath",
    "Curve",
    "DTRAK",
    "DataAttribution",
    "DataInf",
    "DeepLIFT",
    "DualEncoder",
    "DualView",
    "EKFAC",
    "ExpectedGradients",
    "Explainer",
    "FeatureAttribution",
    "FeatureSimilarity",
    "ForwardInfluence",
    "GradCAM",
    "GradCos",
    "GradDot",
    "Gradient",
    "GroupAttribution",
    "GuidedIG",
    "IIA",
    "Influence",
    "InputKernel",
    "InputSimilarity",
    "InputXGradient",
    "IntegratedGradients",
    "KernelInfluence",
    "LRP",
    "LastLayerInfluence",
    "Loss",
    "Maps",
    "Noise",
    "Occlusion",
    "Output",
    "Patches",
    "PathIntegral",
    "Pixels",
    "Random",
    "Ranking",
    "RelatIF",
    "Relation",
    "RepresenterPoints",
    "SAMP",
    "SameClass",
    "Samples",
    "Selection",
    "Significance",
    "Site",
    "SmoothGrad",
    "Store",
    "SupportSpectrum",
    "TRAK",
    "Task",
    "Taylor",
    "TracIn",
    "TraceNTK",
    "__version__",
    "contrast",
    "fit",
    "log_probability",
    "logit",
    "loss",
    "margin",
    "mean_square",
    "open",
    "plot",
    "relate",
    "render",
    "uncertainty",
    "write_report",
]

_LATE = {"plot": "dualview.plotting", "write_report": "dualview.report"}  # they bring matplotlib and jinja2


def __getattr__(name: str) -> object:
    if name in _LATE:
        return getattr(_importlib.import_module(_LATE[name]), name)
    raise AttributeError(f"module 'dualview' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATE})
