"""Every feature method as it is set here, and Captum's counterparts; or why a case does not admit it."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

import dualview as dv
from benchmarks.features.cases import Case
from dualview import features
from dualview.engine.outputs import Kind
from dualview.features._attribution import FeatureAttribution
from dualview.features._method import FeatureMethod

EXACT, PLAIN = "Taylor exact", "IntegratedGradients"


class Contender(NamedTuple):
    """What is measured, and what makes a result of it."""

    explain: Callable[[], Any]
    finish: Callable[[Any], FeatureAttribution] = lambda found: found


def contenders(case: Case) -> dict[str, Contender | str]:
    """Return what explains the case, by label; or why nothing does."""
    ours = {
        label: method
        if isinstance(method, str)
        else Contender(partial(method.attribute, case.model, case.inputs, case.targets))
        for label, method in methods(case).items()
    }
    assert {label.split()[0] for label in ours} == set(features.__all__)
    return ours | rivals(case)


def methods(case: Case) -> dict[str, FeatureMethod | str]:
    draws = dv.Samples(case.background, 2 if case.large else 10)
    flat = None if case.is_picture else "the network has no maps"
    share = 0.04 if case.large else 0.01
    side = 5 if case.large else 10
    return {
        "Gradient": dv.Gradient(),
        "Gradient absolute": dv.Gradient(absolute=True),
        "SmoothGrad": dv.SmoothGrad(draws=50),
        "InputXGradient": dv.InputXGradient(),
        PLAIN: dv.IntegratedGradients(steps=50),
        "ExpectedGradients": dv.ExpectedGradients(case.background, draws=50),
        "BlurIG": "columns have no order to smooth along" if flat else dv.BlurIG(50 if case.large else 7, steps=50),
        "GuidedIG": dv.GuidedIG(steps=50),
        "SAMP": dv.SAMP(share=share),
        "SAMP published": dv.SAMP(share=share, complete=False),
        "CrediblePath": dv.CrediblePath(draws, steps=25),
        "PathIntegral": dv.PathIntegral(in_reading_order, steps=50),
        "Conductance": dv.Conductance(case.site, steps=50),
        "DeepLIFT": dv.DeepLIFT(),
        "DeepLIFT reveal-cancel": dv.DeepLIFT("reveal-cancel"),
        "LRP epsilon": dv.LRP("epsilon"),
        "LRP epsilon-plus": dv.LRP("epsilon-plus"),
        "GradCAM": flat or dv.GradCAM(case.site),
        "GradCAM signed": flat or dv.GradCAM(case.site, relu=False),
        "IIA": flat or dv.IIA(case.site, outer=side, inner=side),
        "Occlusion": dv.Occlusion(case.many),
        "Taylor": dv.Taylor(players=case.many),
        EXACT: dv.Taylor("exact", players=case.few),
        "DualEncoder": "it explains the similarity of two embeddings, not a logit",
    }


def in_reading_order(x: Tensor, alpha: Tensor) -> Tensor:
    """Fade rows of a picture in from above, columns of a table from the left."""
    lines = x.shape[-2] if x.ndim > 2 else x.shape[-1]
    place = torch.arange(lines).reshape(-1, 1) if x.ndim > 2 else torch.arange(lines)
    return x * (alpha * lines - place).clamp(0, 1)


def rivals(case: Case) -> dict[str, Contender | str]:
    """Return Captum's counterparts with 50 points on a path, from 0 or the background as ours."""
    from captum import attr

    model, inputs, targets = case.model, case.inputs, case.targets
    zero = torch.zeros_like(inputs)
    window = (inputs.shape[1], case.many.size, case.many.size) if case.is_picture else (1,)

    def integrated() -> Tensor:
        size = 4 if case.large else None
        return attr.IntegratedGradients(model).attribute(inputs, zero, targets, n_steps=50, internal_batch_size=size)

    def sampled() -> Tensor:
        torch.manual_seed(0)
        parts = 10 if case.large else 1  # 300 rows in one pass would take all memory
        one = partial(
            attr.GradientShap(model).attribute, inputs, case.background, n_samples=50 // parts, target=targets
        )
        return torch.stack([one() for _ in range(parts)]).mean(0)

    def occluded() -> Tensor:
        scores = attr.Occlusion(model).attribute(inputs, window, strides=window, target=targets)
        return scores / torch.tensor(window).prod()  # a player's effect, divided among its numbers

    def mapped() -> Tensor:
        layer = attr.LayerGradCam(model, model.get_submodule(case.site))
        small = layer.attribute(inputs, targets, relu_attributions=True)
        return attr.LayerGradCam.interpolate(small, inputs.shape[2:], "bilinear")

    def guided() -> Tensor:
        return attr.GuidedBackprop(model).attribute(inputs.clone().requires_grad_(), targets)

    def differences() -> Tensor:
        return attr.DeepLift(model).attribute(inputs, zero, targets)

    share, mean = (partial(_share, case, references) for references in (zero[:1], case.background))
    effect, similarity = partial(_result, case, "effect"), partial(_result, case, "similarity")
    return {
        "Captum IntegratedGradients": Contender(integrated, share),
        "Captum GradientShap": Contender(sampled, mean),
        "Captum DeepLift": Contender(differences, share),
        "Captum Occlusion": Contender(occluded, effect),
        "Captum GuidedBackprop": Contender(guided, similarity),
        "Captum LayerGradCam": Contender(mapped, similarity) if case.is_picture else "the network has no maps",
    }


def _share(case: Case, references: Tensor, values: Tensor) -> FeatureAttribution:
    """Return Captum's scores, and what they miss of f(x) less the references' mean."""
    with torch.no_grad():
        own, mean = case.model(case.inputs), case.model(references).mean(0)
    change = own.gather(1, case.targets[:, None])[:, 0] - mean[case.targets]
    missed = values.detach().flatten(1).sum(1) - change
    return dataclasses.replace(_result(case, "share", values), change=change, completeness_error=missed)


def _result(case: Case, kind: Kind, values: Tensor) -> FeatureAttribution:
    return FeatureAttribution(
        values.detach(),
        kind,
        "logit",
        linearised=False,
        lower_is_better=False,
        targets=case.targets,
        predicted=case.targets,
        method="Captum",
    )
