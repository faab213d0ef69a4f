"""The feature view: which parts of the input made a prediction."""

from dualview.features.blur_ig import BlurIG
from dualview.features.conductance import Conductance
from dualview.features.credible_path import CrediblePath
from dualview.features.deep_lift import DeepLIFT
from dualview.features.dual_encoder import DualEncoder
from dualview.features.expected_gradients import ExpectedGradients
from dualview.features.grad_cam import GradCAM
from dualview.features.gradient import Gradient
from dualview.features.guided_ig import GuidedIG
from dualview.features.iia import IIA
from dualview.features.input_x_gradient import InputXGradient
from dualview.features.integrated_gradients import IntegratedGradients
from dualview.features.lrp import LRP
from dualview.features.occlusion import Occlusion
from dualview.features.path_integral import PathIntegral
from dualview.features.samp import SAMP
from dualview.features.smooth_grad import SmoothGrad
from dualview.features.taylor import Taylor

__all__ = [
    "BlurIG",
    "Conductance",
    "CrediblePath",
    "DeepLIFT",
    "DualEncoder",
    "ExpectedGradients",
    "GradCAM",
    "Gradient",
    "GuidedIG",
    "IIA",
    "InputXGradient",
    "IntegratedGradients",
    "LRP",
    "Occlusion",
    "PathIntegral",
    "SAMP",
    "SmoothGrad",
    "Taylor",
]
