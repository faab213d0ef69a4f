"""Optimisation problems: features and labels in, a dual solution with its certificate out."""

from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer import crammer_singer, path
from dualview.solvers.crammer_singer.problem import row_weights

__all__ = ["DualSolution", "crammer_singer", "path", "row_weights"]
