"""How well a training set represents a sample (Carlini, Erlingsson and Papernot, arXiv 1910.13427).

Of their five scores the four that need no private training; higher is better represented for all.
They know nothing of attributions, and are a cross-check of self-influence and memorisation.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dualview.errors import NonFiniteError
from dualview.ops.ranking import ranks, spearman

_SUM_TOLERANCE = 1e-3  # of a row of probabilities; a float16 softmax over many classes is 5e-4 off


def adversarial_distance(
    features: Float[Tensor, "sample unit"],
    weights: Float[Tensor, "cls unit"],
    targets: Int[Tensor, " sample"],
    biases: Float[Tensor, " cls"] | None = None,
) -> Float[Tensor, " sample"]:
    """Return the signed distance of features to the nearest boundary of their class, for a linear classifier.

    min over rivals c of (z_y − z_c) / ‖w_y − w_c‖, z = W f + b. For a sample of its class it is the norm
    of the smallest change of the features that turns the prediction: the region of a class is an
    intersection of half-spaces, and the nearest of its faces is the nearest way out.

    Args:
        features: what the linear classifier reads.
        weights: its weights.
        targets: labels.
        biases: its biases; None for none.

    Returns:
        In the unit of the features. Negative where another class is predicted (minus the distance to the
        rival that is farthest ahead): such samples are the least represented. ±∞ where no change
        of the features matters, as all weights are the class's own.
    """
    features, weights = features.double(), weights.double()
    _check_finite({"features": features, "weights": weights})
    logits = features @ weights.T + (0 if biases is None else biases.double())
    norms = torch.cdist(weights, weights, compute_mode="donot_use_mm_for_euclid_dist")[targets]
    gaps = logits.gather(1, targets[:, None]) - logits
    distances = (gaps / norms).masked_fill((gaps == 0) & (norms == 0), 0.0)
    return distances.scatter(1, targets[:, None], torch.inf).amin(1)


def holdout_retraining(
    before: Float[Tensor, "sample cls"], after: Float[Tensor, "sample cls"]
) -> Float[Tensor, " sample"]:
    """Return how little predictions change when training goes on on held-out samples.

    −(KL(p‖q) + KL(q‖p)) = −Σ_c (p_c − q_c)(log p_c − log q_c), in nats. This is the published score; a
    summary that calls it stability "when the sample is excluded" describes another one.

    Args:
        before: probabilities of the trained model.
        after: probabilities once it was trained further on data that do not hold the samples.

    Returns:
        From −∞ (a class went to or from probability 0) to 0.
    """
    p, q = (_probabilities(values, name) for values, name in ((before, "before"), (after, "after")))
    return -((p - q) * (p.log() - q.log())).masked_fill(p == q, 0.0).sum(1)


def ensemble_confidence(probabilities: Float[Tensor, "model sample cls"]) -> Float[Tensor, " sample"]:
    """Return the mean over models of the largest class probability, from 1/classes to 1."""
    return _probabilities(probabilities, "probabilities").amax(2).mean(0)


def ensemble_agreement(probabilities: Float[Tensor, "model sample cls"]) -> Float[Tensor, " sample"]:
    """Return minus the mean Jensen-Shannon divergence between pairs of models.

    JS(p, q) = H((p + q)/2) − (H(p) + H(q))/2, H the entropy in nats.

    Returns:
        From −log 2 to 0 (all models say the same).
    """
    p = _probabilities(probabilities, "probabilities")
    if len(p) < 2:
        raise ValueError(f"`probabilities` must hold two models or more; it holds {len(p)}")
    first, second = torch.triu_indices(len(p), len(p), 1)
    own = torch.special.entr(p).sum(2)
    divergence = torch.zeros_like(own[0])
    for a, b in zip(first.tolist(), second.tolist(), strict=True):
        divergence += torch.special.entr((p[a] + p[b]) / 2).sum(1) - (own[a] + own[b]) / 2
    return -(divergence / len(first)).clamp(min=0)


def rank_normalised(score: Float[Tensor, " sample"], targets: Int[Tensor, " sample"]) -> Float[Tensor, " sample"]:
    """Return each sample's place within its class, (rank − 1/2) / (size of the class).

    Returns:
        Between 0 and 1, the best represented highest, equal ones alike; every class has the mean 1/2.
    """
    if score.isnan().any():
        raise NonFiniteError(
            f"`score` is NaN for {int(score.isnan().sum())} of {len(score)} samples; leave them out",
            tuple(score.isnan().nonzero().squeeze(1)[:10].tolist()),
        )
    places = torch.empty(len(score), dtype=torch.float64)
    for target in targets.unique():
        members = targets == target
        places[members] = (ranks(score[members][None])[0] - 0.5) / int(members.sum())
    return places


def compare(scores: Mapping[str, Float[Tensor, " sample"]]) -> Float[Tensor, "score score"]:
    """Return Spearman's correlation of every two scores, in the order of the mapping; NaN where one is constant."""
    rows = torch.stack([score.double() for score in scores.values()])
    if rows.isnan().any():
        names = [name for name, row in zip(scores, rows, strict=True) if row.isnan().any()]
        raise NonFiniteError(f"scores are NaN in {names}; leave these samples out of all of them")
    first, second = torch.cartesian_prod(torch.arange(len(rows)), torch.arange(len(rows))).T
    return spearman(rows[first], rows[second]).reshape(len(rows), len(rows))


def _probabilities(values: Tensor, name: str) -> Tensor:
    values = values.double()
    _check_finite({name: values})
    sums = values.sum(-1)
    if (values < 0).any() or ((sums - 1).abs() > _SUM_TOLERANCE).any():
        raise ValueError(
            f"`{name}` must be probabilities: not negative, and 1 in sum over the last axis; the sums go from "
            f"{float(sums.min()):.3g} to {float(sums.max()):.3g}. Logits need a softmax first"
        )
    return values


def _check_finite(tensors: Mapping[str, Tensor]) -> None:
    for name, values in tensors.items():
        if not torch.isfinite(values).all():
            raise NonFiniteError(f"`{name}` holds NaN or infinite numbers; mend it, or leave these samples out")
