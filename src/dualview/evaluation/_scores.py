"""What metrics read: scores with one sign, checked once, and who is among the first k where scores tie."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dualview.data._attribution import DataAttribution
from dualview.errors import NonFiniteError

Scores = Tensor | DataAttribution
"""Scores "test train" in which positive speaks for a larger measured output, or a result that holds them."""

BLOCK_ENTRIES = 2**20
"""Scores that a metric works on at once, beside the matrix itself."""


def raw_scores(scores: Scores, *, k: int | None = None, name: str = "scores") -> Float[Tensor, "test train"]:
    """Return scores as one finite matrix on the CPU, with the sign they came with.

    Args:
        scores: a float tensor "test train" or a DataAttribution.
        k: how many proponents of each row are looked at; None if all scores are.
        name: what the user calls them.

    Raises:
        NonFiniteError: a score is NaN or infinite; its `index` holds rows of the matrix.
        ValueError: they are no float matrix, or the result was cut to fewer than k samples.
    """
    if isinstance(scores, DataAttribution):
        if scores.top_k is not None and (k is None or k > scores.top_k):
            needed = "all scores" if k is None else f"the {k} strongest"
            raise ValueError(
                f"`{name}` holds only the top {scores.top_k} of each sign, and {needed} are needed; "
                "explain again without top=" + ("" if k is None else f", or with top={k}")
            )
        result, scores = scores, scores.dense()
        proponents = ((-scores if result.lower_is_better else scores) > 0).sum(1)
        if result.top_k is not None and k is not None and int(proponents.min()) < k:
            raise ValueError(
                f"`{name}` holds the top {result.top_k} of each sign, and test row {int(proponents.argmin())} has only "
                f"{int(proponents.min())} proponents: the {k} strongest cannot be told; explain again without top="
            )
    if scores.ndim != 2 or scores.numel() == 0 or not scores.is_floating_point():
        found = f"{scores.dtype} of shape {tuple(scores.shape)}"
        raise ValueError(f'`{name}` must be a float tensor "test train" or a DataAttribution, not empty; it is {found}')
    scores = scores.detach().cpu()
    scores = scores if scores.dtype == torch.float64 else scores.float()
    if not all(end.isfinite() for end in torch.aminmax(scores)):  # NaN is both; ten times as fast as a look at each
        bad = (~torch.isfinite(scores)).any(1).nonzero().squeeze(1)
        raise NonFiniteError(
            f"`{name}` are NaN or infinite in {len(bad)} of {len(scores)} rows, the first of them "
            f"row {int(bad[0])}; a metric of them would mean nothing: mend the scores, or leave these rows out",
            tuple(bad[:10].tolist()),
        )
    return scores


def proponent_scores(scores: Scores, *, k: int | None = None, name: str = "scores") -> Float[Tensor, "test train"]:
    """Return scores as one finite matrix in which larger means a stronger proponent.

    Those of a result whose output is a loss change sign. Arguments and errors: see `raw_scores`.
    """
    matrix = raw_scores(scores, k=k, name=name)
    return -matrix if isinstance(scores, DataAttribution) and scores.lower_is_better else matrix


def summable(scores: Scores, *, allow_similarity: bool = False, name: str = "scores") -> Float[Tensor, "test train"]:
    """Return scores whose sums over training samples mean something, with the sign they came with.

    A tensor does not say what it is: whoever hands it over vouches for it.

    Args:
        scores: a float tensor "test train" or a DataAttribution.
        allow_similarity: sum similarities all the same.
        name: what the user calls them.

    Raises:
        NonFiniteError: a score is NaN or infinite.
        ValueError: they are similarities, or the result was cut to a top k, whose sums lack the rest.
    """
    if isinstance(scores, DataAttribution) and scores.kind == "similarity" and not allow_similarity:
        raise ValueError(
            f"`{name}` are similarities ({scores.method}): their sums over training samples mean nothing; "
            "pass allow_similarity=True to sum them all the same"
        )
    return raw_scores(scores, name=name)


def row_blocks(scores: Float[Tensor, "test train"]) -> Iterator[slice]:
    """Yield slices of rows that hold about BLOCK_ENTRIES scores each."""
    size = max(1, BLOCK_ENTRIES // scores.shape[1])
    yield from (slice(start, start + size) for start in range(0, len(scores), size))


class FirstK(NamedTuple):
    """The k highest of each row; equals at the k-th place are in it with the probability a random order gives them.

    Attributes:
        inside: "test train", surely among the first k.
        tied: "test train", equal to the k-th highest.
        chance: "test", float64, probability of each tied one to be among the first k; 1 where all of them are.
    """

    inside: Bool[Tensor, "test train"]
    tied: Bool[Tensor, "test train"]
    chance: Float[Tensor, " test"]

    def expected(self, wanted: Bool[Tensor, "*test train"]) -> Float[Tensor, " test"]:
        """Return the expected number of wanted samples among the first k of each row."""
        return (self.inside & wanted).sum(1) + self.chance * (self.tied & wanted).sum(1)

    def membership(self) -> Float[Tensor, "test train"]:
        """Return the probability of each sample to be among the first k of each row."""
        return self.inside + self.chance[:, None] * self.tied

    def notes(self) -> list[str]:
        """Say where the k-th place is shared."""
        shared = int((self.chance < 1).sum())
        if not shared:
            return []
        return [f"the k-th place is shared by equal scores for {shared} of {len(self.chance)} rows: averaged over ties"]


def first_k(scores: Float[Tensor, "test train"], k: int) -> FirstK:
    """Return who is among the k highest of each row."""
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"`k` is {k}; expected 1 to {scores.shape[1]}, the number of training samples")
    threshold = torch.topk(scores, k, dim=1, sorted=False).values.amin(1, keepdim=True)
    inside, tied = scores > threshold, scores == threshold
    return FirstK(inside, tied, (k - inside.sum(1)).double() / tied.sum(1))


def constant_rows(scores: Float[Tensor, "test train"]) -> Bool[Tensor, " test"]:
    """Tell which rows hold one number only."""
    return scores.amin(1) == scores.amax(1)


def constancy_notes(scores: Float[Tensor, "test train"], name: str = "scores") -> list[str]:
    """Say how many rows hold one number only, and so order nothing."""
    constant = int(constant_rows(scores).sum())
    return [f"{constant} of {len(scores)} test samples have constant {name}, which order nothing"] if constant else []


def expected_jaccard(first: FirstK, k: int) -> Float[Tensor, "test test"]:
    """Return the Jaccard index |A ∩ B| / |A ∪ B| of each two lists of k, averaged over each list's ties; diagonal 0.

    A list is a sure part and f samples drawn from b equal ones. Of those that list s draws, y lie in the
    sure part of list t and p among its equals: a multivariate hypergeometric pair. List t then draws x of
    the q samples among its equals that list s holds: a hypergeometric number. The lists share c + y + x,
    c those that are sure in both. Lists without a cut tie draw nothing, and the index is exact at once.
    """
    cut = (first.chance < 1)[:, None]
    sure, equals = (first.inside | (first.tied & ~cut)).float(), (first.tied & cut).float()
    both = (sure @ sure.T).long()
    if not cut.any():
        return _jaccard(both, k).fill_diagonal_(0)
    log_choose = _log_choose(sure.shape[1], k)
    drawn, num_equal = k - sure.sum(1).long()[:, None], equals.sum(1).long()[:, None]
    ways = log_choose[num_equal, drawn + k]
    q = torch.arange(k + 1)
    index = torch.zeros(len(sure), k + 1, k + 1, dtype=torch.float64)  # of list t, given q and c + y
    for x in range(k + 1):
        odds = log_choose[q, x + k] + log_choose[(num_equal - q).clamp(min=0), drawn - x + k] - ways
        index += odds.exp()[:, :, None] * _jaccard((q + x).clamp(max=k), k)
    into_sure, into_equals = (equals @ sure.T).long(), (equals @ equals.T).long()  # list s's equals in list t's parts
    expected = torch.zeros_like(both, dtype=torch.float64)
    for y in range(k + 1):
        s, t = (into_sure >= y).triu(1).nonzero().T
        if not len(s):
            break
        surely, unsure, left = into_sure[s, t], into_equals[s, t], drawn[s, 0] - y + k
        elsewhere, held, shared = num_equal[s, 0] - surely - unsure, into_sure[t, s], (both[s, t] + y).clamp(max=k)
        odds_y = log_choose[surely, y + k] - ways[s, 0]
        total = torch.zeros_like(odds_y)
        for p in range(min(k - y, int(unsure.max())) + 1):
            odds = odds_y + log_choose[unsure, p + k] + log_choose[elsewhere, left - p]
            total += odds.exp() * index[t, (held + p).clamp(max=k), shared]
        expected[s, t] += total
    return expected + expected.T


def chance_of_jaccard(k: int, num_train: int) -> float:
    """Return the mean Jaccard index of two random lists of k, which share a hypergeometric number of samples."""
    ways = [math.comb(k, shared) * math.comb(num_train - k, k - shared) for shared in range(k + 1)]
    return sum(way / math.comb(num_train, k) * shared / (2 * k - shared) for shared, way in enumerate(ways))


def _jaccard(shared: Tensor, k: int) -> Tensor:
    return shared.double() / (2 * k - shared)


def _log_choose(n: int, k: int) -> Float[Tensor, "upper lower"]:
    """Return the log of a over b at [a, b + k], for a up to n and b from −k to k; −∞ where b is not within 0 … a."""
    logs = torch.lgamma(torch.arange(1, n + 2).double())
    a, b = torch.arange(n + 1)[:, None], torch.arange(-k, k + 1)
    return torch.where((b >= 0) & (b <= a), logs[a] - logs[b.clamp(min=0)] - logs[(a - b).clamp(0, n)], -torch.inf)
