"""Metrics of the dual family: what a class's weights are measured in, ½ Σ_c W_cᵀ M_c W_c."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BLOCK_ROWS = 1024
_LEAST_DAMPING = 1e-10  # below, float64 could lose it beside the largest eigenvalue


@dataclass(frozen=True, eq=False)
class Metric:
    """M_c = blockdiag(A_c, 1): a matrix on the features, and 1 for the constant, which stands apart.

    Class c's kernel is phiᵀ M_c⁻¹ phi with phi = [features, 1].

    Attributes:
        factors: lower Cholesky factors of M_c, float64 "group unit unit", the constant's unit last: one group for all
            classes, or one for each; None for the identity.
        damping: lambda, the absolute value that was added to the diagonal.
    """

    factors: Float[Tensor, "group unit unit"] | None = None
    damping: float = 0.0

    @property
    def by_class(self) -> bool:
        """Say whether classes have matrices of their own."""
        return self.factors is not None and len(self.factors) > 1

    def product(self, weights: Float[Tensor, "*test cls unit"]) -> Float[Tensor, "*test cls unit"]:
        """Return M_c w_c for each class."""
        if self.factors is None:
            return weights
        return self._rows(self.factors @ (self.factors.mT @ self._columns(weights)), weights)

    def solve(self, sums: Float[Tensor, "*test cls unit"]) -> Float[Tensor, "*test cls unit"]:
        """Return M_c⁻¹ s_c for each class."""
        if self.factors is None:
            return sums
        return self._rows(torch.cholesky_solve(self._columns(sums), self.factors), sums)

    def whiten(self, features: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """Return float64 rows L⁻¹ f, in which a metric that classes share is the identity."""
        if self.factors is None:
            return features
        (factor,) = self.factors[:, :-1, :-1]
        solve = torch.linalg.solve_triangular  # pyright: ignore[reportUnknownMemberType,reportUnknownVariableType]
        return torch.cat([cast("Tensor", solve(factor, block.T, upper=False)).T for block in _blocks(features)])

    def plus(self, matrix: Float[Tensor, "unit unit"]) -> Metric:
        """Return the metric with a matrix added to each M_c."""
        whole = torch.eye(len(matrix), dtype=matrix.dtype) if self.factors is None else self.factors @ self.factors.mT
        return Metric(cholesky((whole + matrix).view(-1, *matrix.shape)), self.damping)

    def of(self, classes: Int[Tensor, " cls"]) -> Metric:
        """Return the metric of some of the classes."""
        return Metric(self.factors[classes], self.damping) if self.by_class and self.factors is not None else self

    def _columns(self, rows: Tensor) -> Tensor:
        """Gather the vectors that share a factor as columns, "group unit column"."""
        assert self.factors is not None
        groups, num_units, _ = self.factors.shape
        return rows.reshape(-1, groups, rows.shape[-2] // groups, num_units).permute(1, 3, 0, 2).flatten(2)

    def _rows(self, columns: Tensor, like: Tensor) -> Tensor:
        groups, num_units, _ = columns.shape
        return columns.view(groups, num_units, -1, like.shape[-2] // groups).permute(2, 0, 3, 1).reshape(like.shape)


def plain() -> Metric:
    """Return the identity: the weights' own norm."""
    return Metric()


def whitened(features: Float[Tensor, "row feature"], damping: float = 0.01) -> Metric:
    """Return A = (1/n) Σ_i f_i f_iᵀ + lambda·I, shared by the classes.

    Args:
        features: of the training rows, without the constant.
        damping: lambda as a multiple of the second moment's mean eigenvalue, positive.

    Raises:
        ValueError: the damping is too small or the features are all zero.
    """
    return curvature(features, None, damping)


def curvature(
    features: Float[Tensor, "row feature"], probabilities: Float[Tensor, "row cls"] | None, damping: float = 0.01
) -> Metric:
    """Return A_c = (1/n) Σ_i p_ic (1 - p_ic) f_i f_iᵀ + lambda·I for each class, of the softmax's curvature.

    Args:
        features: of the training rows, without the constant.
        probabilities: p, at the temperature that the curvature is to have; None weighs all rows alike, once.
        damping: lambda as a multiple of the mean eigenvalue over all classes, positive.

    Raises:
        ValueError: the damping is too small or the features are all zero.
    """
    num_rows, num_features = features.shape
    weights = (
        torch.ones(num_rows, 1) if probabilities is None else probabilities.double() * (1 - probabilities.double())
    )
    moments = torch.zeros(weights.shape[1], num_features, num_features, dtype=torch.float64)
    for block, part in zip(_blocks(features), _blocks(weights), strict=True):
        for moment, weight in zip(moments, part.T, strict=True):
            moment.addmm_((block * weight[:, None]).T, block, alpha=1 / num_rows)
    mean = float(moments.diagonal(dim1=1, dim2=2).mean())
    absolute = damping * mean
    if not _LEAST_DAMPING * mean < absolute < math.inf:
        raise ValueError(
            f"damping={damping} times a mean eigenvalue of {mean:.3g} cannot make the matrix positive definite; "
            f"give finite features that are not all zero, and a damping above {_LEAST_DAMPING}"
        )
    moments.diagonal(dim1=1, dim2=2).add_(absolute)
    factors = torch.zeros(len(moments), num_features + 1, num_features + 1, dtype=torch.float64)
    factors[:, :-1, :-1] = cholesky(moments)
    factors[:, -1, -1] = 1
    return Metric(factors, absolute)


def cholesky(matrices: Float[Tensor, "*group unit unit"]) -> Float[Tensor, "*group unit unit"]:
    """Return lower Cholesky factors."""
    return cast("Tensor", torch.linalg.cholesky(matrices))  # pyright: ignore[reportUnknownMemberType]


def _blocks(features: Tensor) -> Iterator[Tensor]:
    """Walk the rows in float64."""
    for start in range(0, len(features), _BLOCK_ROWS):
        yield features[start : start + _BLOCK_ROWS].double()
