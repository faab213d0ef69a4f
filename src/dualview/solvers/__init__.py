"""Optimisation problems: features and labels in, a dual solution with its certificate out."""

from dualview.solvers._solution import DualSolution
from dualview.solvers.crammer_singer import crammer_singer, path
from dualview.solvers.crammer_singer.problem import row_weights
from dualview.solvers.dual import dual
from dualview.solvers.metrics import Metric
from dualview.solvers.response import response

__all__ = ["DualSolution", "Metric", "crammer_singer", "dual", "path", "response", "row_weights"]
