"""How far two models agree: on predictions, and on logits or numbers."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.ops.ranking import kendall_tau

KENDALL_BUDGET = 2**27
"""Pairs of classes that `logit_agreement` compares at most; beyond it takes evenly spaced rows."""


def matthews(first: Int[Tensor, " row"], second: Int[Tensor, " row"], num_classes: int) -> float:
    """Return the multi-class Matthews correlation of two labelings, from −1 to 1.

    (c·s − Σ_k p_k t_k) / sqrt((s² − Σ p_k²)(s² − Σ t_k²)) with s samples, c agreeing, and p_k, t_k
    the counts of class k (Gorodkin 2004). Where one labeling is constant it is undefined: NaN.
    """
    counts = [torch.bincount(labels, minlength=num_classes).double() for labels in (first, second)]
    samples = float(len(first))
    agreeing = float((first == second).sum())
    covariance = agreeing * samples - float(counts[0] @ counts[1])
    variances = [samples**2 - float(count @ count) for count in counts]
    product = variances[0] * variances[1]
    return covariance / product**0.5 if product > 0 else float("nan")


def logit_agreement(surrogate: Float[Tensor, "row cls"], network: Float[Tensor, "row cls"]) -> dict[str, float]:
    """Compare a surrogate's logits, biases included, with the network's.

    Returns:
        agreement: share of rows with the same predicted class.
        matthews: Matthews correlation of the predictions.
        cosine: mean over rows of the cosine between the two logit vectors.
        kendall: mean over rows of Kendall's tau-b across classes (rows with a constant vector apart).
        kendall_rows: how many rows the mean above was taken over.
        rows: number of rows.
    """
    num_rows, num_classes = network.shape
    predictions = [logits.argmax(1) for logits in (surrogate, network)]
    step = max(1, -(-num_rows * num_classes**2 // KENDALL_BUDGET))
    taus = kendall_tau(surrogate[::step].double(), network[::step].double())
    taus = taus[~taus.isnan()]
    cosines = torch.nn.functional.cosine_similarity(surrogate.double(), network.double(), dim=1)
    return {
        "agreement": float((predictions[0] == predictions[1]).double().mean()),
        "matthews": matthews(predictions[0], predictions[1], num_classes),
        "cosine": float(cosines.mean()),
        "kendall": float(taus.mean()) if len(taus) else float("nan"),
        "kendall_rows": len(taus),
        "rows": num_rows,
    }


def number_agreement(surrogate: Float[Tensor, "row out"], network: Float[Tensor, "row out"]) -> dict[str, float]:
    """Compare the numbers of two regressions.

    Returns:
        r2: 1 − (mean squared difference) / (variance of the network), outputs taken together; NaN where that is zero.
        correlation: mean over outputs of Pearson's correlation (constant ones apart).
        rows: number of rows.
    """
    surrogate, network = surrogate.double(), network.double()
    variance = float(network.var(0, correction=0).mean())
    error = float((surrogate - network).square().mean())
    return {"r2": 1 - error / variance if variance else float("nan"), **_correlation(surrogate, network)}


def label_agreement(surrogate: Float[Tensor, "row label"], network: Float[Tensor, "row label"]) -> dict[str, float]:
    """Compare two models that say of each label whether it is present, by the sign of its logit.

    Returns:
        agreement: share of labels, over all rows, that both say the same of.
        correlation: mean over labels of Pearson's correlation of the logits (constant ones apart).
        rows: number of rows.
    """
    return {
        "agreement": float(((surrogate > 0) == (network > 0)).double().mean()),
        **_correlation(surrogate.double(), network.double()),
    }


def _correlation(first: Float[Tensor, "row out"], second: Float[Tensor, "row out"]) -> dict[str, float]:
    centred = [part - part.mean(0) for part in (first, second)]
    sizes = [part.square().sum(0).sqrt() for part in centred]
    found = (centred[0] * centred[1]).sum(0) / (sizes[0] * sizes[1])
    return {"correlation": float(found[~found.isnan()].mean()), "rows": len(first)}
