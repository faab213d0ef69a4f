"""Attribution priors: penalties on scores that say what a model should look at, for training loops.

Each takes scores with their graph to the weights, `attribute(..., differentiable=True).values`, and returns
one number to add to the loss (Erion et al. 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def total_variation(values: Float[Tensor, "sample ..."], axes: Sequence[int]) -> Float[Tensor, ""]:
    """Return the mean over samples of Σ |φ_{k+1} − φ_k| between neighbours along these axes.

    A penalty on it asks for scores that are smooth over an image or along time.

    Args:
        values: scores.
        axes: those on which there are neighbours: (-2, -1) of images, (-1,) of series.

    Raises:
        ValueError: the first axis, of samples, is among them, or there is none.
    """
    along = [axis % values.ndim for axis in axes]
    if not along or 0 in along:
        raise ValueError(f"`axes` are {tuple(axes)}; expected axes of a sample, such as (-2, -1) of an image")
    pieces = [values.diff(dim=axis).abs().flatten(1).sum(1) for axis in along]
    return torch.stack(pieces).sum(0).mean()


def graph_penalty(values: Float[Tensor, "sample ..."], weights: Float[Tensor, "feature feature"]) -> Float[Tensor, ""]:
    """Return φ̄ᵀ L φ̄ = ½ Σ_ij W_ij (φ̄_i − φ̄_j)², where φ̄ is the mean of |φ| over samples and L the Laplacian of W.

    A penalty on it asks for similar importance of features that belong together.

    Args:
        values: scores.
        weights: W, how much two features belong together; symmetric, so that each pair counts once.

    Raises:
        ValueError: not one weight for each two features.
    """
    size = values.flatten(1).shape[1]
    if weights.shape != (size, size):
        raise ValueError(f"`weights` have shape {tuple(weights.shape)}; expected ({size}, {size}), each two features")
    importance = values.flatten(1).abs().mean(0)
    return 0.5 * (weights * (importance[:, None] - importance) ** 2).sum()


def gini(values: Float[Tensor, "sample ..."]) -> Float[Tensor, ""]:
    """Return the Gini coefficient of the mean of |φ| over samples: 0 where all are equal, 1 − 1/d for one feature.

    Σ_ij |φ̄_i − φ̄_j| / (2 d Σ_i φ̄_i) of d features. Sparsity is asked for by subtracting it from the loss.
    It is NaN where all scores are zero.

    Args:
        values: scores.
    """
    importance = values.flatten(1).abs().mean(0).sort().values
    size = len(importance)
    rank = torch.arange(1, size + 1, device=values.device, dtype=values.dtype)
    return ((2 * rank - size - 1) * importance).sum() / (size * importance.sum())
