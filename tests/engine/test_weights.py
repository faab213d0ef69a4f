"""Whether a model still is the one that was fitted."""

import copy

import pytest
import torch
from torch import nn

import dualview as dv
from dualview.engine.weights import Weights


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).eval()


def test_equal_weights_pass_however_they_were_written():
    model = network()
    seen = Weights.of(model)
    seen.check(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()))  # written anew, with the same values
    before = seen.glimpse
    seen.check(model)
    assert seen.glimpse != before
    model[0].weight = nn.Parameter(model[0].weight.detach().clone())  # another tensor, the same values
    seen.check(model)


@pytest.mark.parametrize("change", ["step", "statistics", "replaced"])
def test_other_weights_are_refused(change):
    model = network()
    seen = Weights.of(model)
    if change == "step":
        with torch.no_grad():
            model[3].bias += 1e-6
    elif change == "statistics":
        model.train()(torch.randn(16, 4, generator=torch.Generator().manual_seed(0)))
        model.eval()
    else:
        model[0] = nn.Linear(4, 8)
    with pytest.raises(ValueError, match=r"the weights of Sequential.*others than at its fit.*model\.eval\(\)"):
        seen.check(model)


def test_a_network_left_in_training_mode_is_noticed_when_it_is_asked():
    """Running it moves its batch norm: scores would be of another network, without a word."""
    model = network().train()
    inputs = torch.randn(60, 4, generator=torch.Generator().manual_seed(1))
    explainer = dv.fit(dv.GradDot(), model, (inputs, inputs[:, :3].argmax(1)), progress=False)
    explainer.explain(inputs[:2])
    assert model.training  # as it was
    model(inputs)
    with pytest.raises(ValueError, match="running statistics, are others than at its fit"):
        explainer.explain(inputs[:2])
