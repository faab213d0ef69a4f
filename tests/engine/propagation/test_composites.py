"""A composite puts each rule where it says, and an entry that fits nothing is an error."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine.propagation.composites import NAMES, composite
from dualview.engine.propagation.rules import AlphaBeta, Epsilon, Gamma, ZPlus
from dualview.engine.propagation.terminal import Flat
from dualview.engine.propagation.trace import trace

pytestmark = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(1, 3, 3), nn.ReLU(), nn.Conv1d(3, 3, 3), nn.ReLU())
        self.norm, self.fc = nn.BatchNorm1d(3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.fc(self.norm(self.features(x)).flatten(1)), torch.eye(2).to(x))


BY_HAND = {
    "epsilon": {"*": Epsilon()},
    "gamma": {"features.*": Gamma(), "norm": Epsilon(), "*": Gamma()},
    "z-plus": {"norm": Epsilon(bias="exclude"), "*": ZPlus(bias="exclude")},
    "alpha2-beta1": {"norm": Epsilon(bias="exclude"), "*": AlphaBeta(alpha=2, beta=1, bias="exclude")},
    "epsilon-plus": {"features.*": ZPlus(bias="exclude"), "*": Epsilon(bias="exclude")},
    "epsilon-plus-flat": {"features.0": Flat(), "features.2": ZPlus(bias="exclude"), "*": Epsilon(bias="exclude")},
    "epsilon-alpha2-beta1": {
        F.conv1d: AlphaBeta(alpha=2, beta=1, bias="exclude"),
        "": Epsilon(bias="exclude"),
        torch.nn.functional.batch_norm: Epsilon(bias="exclude"),
        "f?": Epsilon(bias="exclude"),
    },
    "epsilon-alpha2-beta1-flat": {
        "features.0": Flat(),
        torch.conv1d: AlphaBeta(alpha=2, beta=1, bias="exclude"),
        "*": Epsilon(bias="exclude"),
    },
}


@pytest.mark.parametrize("name", NAMES)
def test_a_named_composite_equals_the_map_written_by_hand(name: str):
    torch.manual_seed(0)
    model, x = Net().double().eval(), torch.randn(4, 1, 6).double()
    model.norm.running_mean.normal_()
    found = []
    for rules in (composite(name), composite(BY_HAND[name])):
        passed = trace(model, x, rules)
        seed = torch.ones_like(passed.logits)
        found.append(passed.propagate(gradient=seed).relevance)
    assert torch.equal(*found)


def test_options_reach_every_rule():
    made = composite("epsilon-alpha2-beta1-flat", bias="share", epsilon=1e-3)
    assert made.linear == made.batch_norm == Epsilon(bias="share", epsilon=1e-3)
    assert made.convolution == AlphaBeta(alpha=2.0, beta=1.0, bias="share", epsilon=1e-3)
    assert made.first.epsilon == 1e-3
    assert composite("epsilon").linear.bias == "absorb"
    assert composite("epsilon-plus").linear.bias == "exclude"


def test_the_first_entry_that_fits_decides_and_the_rest_is_plain_epsilon():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 1)).double(), torch.randn(4, 3).double()
    found = [
        trace(model, x, rules).propagate(gradient=torch.ones(4, 1).double()).relevance
        for rules in (
            composite({"0": ZPlus()}, bias="exclude"),
            composite({"0": ZPlus(), F.linear: Epsilon(bias="exclude")}),
            composite({"[0]": ZPlus(), "2": Epsilon(bias="exclude")}),
        )
    ]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_entry_that_fits_nothing_is_an_error():
    model, x = nn.Sequential(nn.Linear(3, 2)), torch.randn(1, 3)
    with pytest.raises(
        ValueError, match=r"'featuers\.0', 'conv2d' of composite 'custom' decides for no linear operation"
    ):
        trace(model, x, composite({"featuers.0": ZPlus(), F.conv2d: ZPlus(), "0": Epsilon()}))


def test_unknown_names_and_idle_options_are_refused():
    with pytest.raises(ValueError, match="rule='lrp' is not known; known are 'epsilon', 'gamma'"):
        composite("lrp")
    with pytest.raises(ValueError, match="`bias` is given for .*holds its own"):
        composite(ZPlus(), bias="share")
    with pytest.raises(ValueError, match="`bias` must be"):
        composite("epsilon", bias="none")
