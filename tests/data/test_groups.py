"""Groups: sums of their samples' scores, and the closed form of ridge regression where the method has it."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

import dualview as dv
from dualview.data._groups import members_of
from tests.data.test_grad_dot import fit

SOURCE = ["web" if k % 3 else "scan" for k in range(119)] + [None]


@pytest.mark.parametrize("method", [dv.DualView(C=0.02), dv.GradDot(), dv.DataInf()])
def test_a_groups_score_is_the_sum_of_its_samples(problem, method):
    explainer = fit(problem.model, problem.train, method)
    scores = explainer.explain(*problem.test).dense()
    found = explainer.explain_groups(problem.test[0], SOURCE, problem.test[1])
    assert found.groups == ("scan", "web") and found.sizes.tolist() == [40, 79] and not found.joint
    web = torch.tensor([source == "web" for source in SOURCE])
    scan = torch.tensor([source == "scan" for source in SOURCE])
    expected = torch.stack([scores[:, scan].sum(1), scores[:, web].sum(1)], dim=1)
    torch.testing.assert_close(found.scores, expected, rtol=1e-10, atol=1e-12)
    assert (found.kind, found.measured, len(found)) == (method.kind, "logit", 30)


def test_a_group_left_out_of_ridge_regression_together():
    """Ridge: removing F changes f(x) by −xᵀ A⁻¹ X_Fᵀ (I − X_F A⁻¹ X_Fᵀ)⁻¹ e_F exactly; here both ways."""
    generator = torch.Generator().manual_seed(0)
    inputs, test = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (40, 6))
    targets = inputs @ torch.tensor([1.0, -2.0, 0.5, 0.0]).double() + torch.randn(40, generator=generator).double()
    method = dv.KernelInfluence(damping=0.01)
    penalty = 0.01 * float(inputs.square().sum(1).mean())  # what that damping is

    def ridge(rows: torch.Tensor) -> torch.Tensor:
        gram = inputs[rows].T @ inputs[rows] + penalty * torch.eye(4).double()
        return torch.linalg.solve(gram, inputs[rows].T @ targets[rows])

    whole = torch.arange(40)
    model = nn.Linear(4, 1, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(ridge(whole)[None])
    groups = {"one": [7], "ten": torch.arange(10), "masked": torch.arange(40) % 2 == 0, "all but five": range(5, 40)}
    explainer = fit(dv.Task(model, problem="regression"), (inputs, targets[:, None]), method)
    found = explainer.explain_groups(test, groups)
    assert found.joint and found.sizes.tolist() == [1, 10, 20, 35]
    for k, members in enumerate(members_of(groups, 40).values()):
        rest = whole[~torch.isin(whole, members)]
        expected = test @ (ridge(whole) - ridge(rest))
        torch.testing.assert_close(found.scores[:, k], expected, rtol=1e-9, atol=1e-11)


def test_the_joint_effect_is_the_newton_step_of_each_checkpoint(problem):
    """Of one sample alone it is its score, divided by one minus its leverage."""
    explainer = fit(problem.model, problem.train, dv.KernelInfluence())
    found = explainer.explain_groups(problem.test[0][:4], {"one": [5]}, problem.test[1][:4]).scores[:, 0]
    single = explainer.explain(problem.test[0][:4], problem.test[1][:4]).dense()[:, 5]
    slope, root = explainer.state.slopes[0, 5], explainer.state.roots[0, 5]
    leverage = root.square() * explainer.self_influence()[5] / slope.square()
    assert 0.01 < float(leverage) < 1
    torch.testing.assert_close(found, single / (1 - leverage), rtol=1e-9, atol=1e-12)


def test_members_can_be_told_in_three_ways():
    assert {name: list(m) for name, m in members_of(torch.tensor([True, False, True]), 3).items()} == {"group": [0, 2]}
    assert {name: list(m) for name, m in members_of({"a": [2, 0], "b": np.array([1])}, 3).items()} == {
        "a": [0, 2],
        "b": [1],
    }
    for column in (
        pd.Series(["x", "y", "x"], index=[7, 8, 9]),
        pd.Series(["x", "y", "x"], dtype="string"),
        np.array(["x", "y", "x"]),
        ["x", "y", "x"],
    ):
        assert {name: list(m) for name, m in members_of(column, 3).items()} == {"x": [0, 2], "y": [1]}
    flags = pd.Series([True, False, True], index=[7, 8, 9])
    for mask in (flags, flags.astype("boolean"), flags.to_numpy()):
        assert {name: list(m) for name, m in members_of(mask, 3).items()} == {"group": [0, 2]}
        assert {name: list(m) for name, m in members_of({"a": mask}, 3).items()} == {"a": [0, 2]}
    holes = pd.Series(["x", None, "x"], dtype="string")
    assert {name: list(m) for name, m in members_of(holes, 3).items()} == {"x": [0, 2]}
    assert {name: list(m) for name, m in members_of([1.0, float("nan"), None], 3).items()} == {1.0: [0]}
    assert {name: list(m) for name, m in members_of(torch.tensor([4, 4, 2]), 3).items()} == {4: [0, 1], 2: [2]}


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"a": []}, "'a' has no members"),
        ({"a": torch.zeros(3, dtype=torch.bool)}, "'a' has no members"),
        (torch.zeros(3, dtype=torch.bool), "'group' has no members"),
        ({}, "names no group"),
        ([None, None, None], "names no group"),
        ({"a": [3]}, "positions outside 0 to 2"),
        ({"a": [-1]}, "positions outside 0 to 2"),
        ({"a": [1, 1]}, "names a training sample twice"),
        ({"a": torch.ones(4, dtype=torch.bool)}, "a mask of 4 values for 3 training samples"),
        ({"a": [0.5]}, "must be a mask or positions"),
        (["x", "y"], "holds 2 values for 3 training samples"),
        ("xyz", "must be a mask, a mapping"),
        (np.array([[1], [2], [1]]), "must be a mask, a mapping"),
        (5, "must be a mask, a mapping"),
    ],
)
def test_groups_that_are_none_are_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        members_of(groups, 3)


def test_similarities_have_no_sums(problem):
    with pytest.raises(ValueError, match="sums of similarities mean nothing"):
        fit(problem.model, problem.train, dv.GradCos()).explain_groups(problem.test[0], {"a": [0]})


def test_samples_without_a_score_add_nothing(problem):
    explainer = fit(problem.model, problem.train, dv.GradDot(), held_out=0.25)
    rest = [k for k in range(120) if k not in explainer.positions.tolist()]
    found = explainer.explain_groups(problem.test[0], {"held out": rest, "mixed": [*rest, int(explainer.positions[0])]})
    single = explainer.explain(problem.test[0]).dense()[:, explainer.positions[0]]
    assert not found.scores[:, 0].any()
    torch.testing.assert_close(found.scores[:, 1], single, rtol=1e-12, atol=0)


def test_the_table_lists_each_test_samples_groups_by_strength(problem):
    explainer = fit(problem.model, problem.train, dv.GradDot())
    found = explainer.explain_groups(problem.test[0], SOURCE)
    table = found.to_pandas()
    assert [*table.columns] == ["test", "group", "size", "score", "target", "predicted"] and len(table) == 60
    for row, part in table.groupby("test"):
        assert part["score"].abs().is_monotonic_decreasing
        assert {*zip(part["group"], part["score"], strict=True)} == {
            *zip(found.groups, found.scores[row].tolist(), strict=True)
        }
