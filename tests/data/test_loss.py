"""Loss: the network's loss on each training sample, whatever the task's."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import dualview as dv
from tests.data.test_grad_dot import CLOSE, fit, numbers

WEIGHTS = torch.tensor([1.0, 5.0, 0.2, 2.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "loss", "truth"),
    [
        ("classification", dv.loss, lambda z, y: z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]),
        (
            "classification",
            nn.CrossEntropyLoss(weight=WEIGHTS, reduction="sum"),
            lambda z, y: WEIGHTS[y] * (z.logsumexp(1) - z.gather(1, y[:, None])[:, 0]),
        ),
        ("regression", dv.loss, lambda z, y: 0.5 * (z - y).square().sum(1)),
        ("regression", F.l1_loss, lambda z, y: (z - y).abs().mean(1)),
        ("multi-label", dv.loss, lambda z, y: -((2 * y - 1) * z).sigmoid().log().sum(1)),
        ("multi-label", nn.BCEWithLogitsLoss(), lambda z, y: -((2 * y - 1) * z).sigmoid().log().mean(1)),
    ],
    ids=["cross-entropy", "weighted", "squares", "absolute", "binary", "binary mean"],
)
def test_it_is_the_loss(problem, kind: str, loss, truth):
    inputs, labels = problem.train
    labels = labels if kind == "classification" else numbers(kind).double()
    explainer = fit(dv.Task(problem.model, problem=kind, loss=loss), (inputs, labels), dv.Loss())
    expected = truth(problem.model(inputs).detach(), labels)
    found = explainer.explain(problem.test[0], 1)
    torch.testing.assert_close(found.dense(), expected.expand(30, -1), **CLOSE)
    torch.testing.assert_close(explainer.self_influence(), expected, **CLOSE)
    assert found.kind == "similarity" and not found.lower_is_better
    assert torch.equal(explainer.suspects().index, explainer.suspects(by="loss").index)
