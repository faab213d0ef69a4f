"""Per-sample gradients of a model: planned on a few samples, recorded batch by batch."""

from dualview.engine.gradients.plan import GradientPlan
from dualview.engine.gradients.planner import plan_gradients
from dualview.engine.gradients.representation import Gradients, Member, members

__all__ = ["GradientPlan", "Gradients", "Member", "members", "plan_gradients"]
