"""Sites read what passes a module, its own part of it, whatever is changed in place around it."""

import pytest
import torch
from torch import Tensor, nn

from dualview.engine.propagation.composites import composite
from dualview.engine.propagation.trace import trace
from dualview.engine.site import Site


class Made(nn.Module):
    def __init__(self, forward, **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


X = torch.tensor([[1.0, -2.0, 3.0]])


def read(model: nn.Module, *sites: Site) -> list[list[float]]:
    """Return the relevance at the sites of a net whose output is six times its input."""
    passed = trace(model, X, composite("epsilon"), sites=sites)
    found = passed.propagate(gradient=torch.ones_like(passed.logits))
    assert found.relevance.tolist() == [[6.0, -12.0, 18.0]]
    return [found.sites[site].tolist()[0] for site in sites]


def test_a_modules_own_part_is_read():
    """The module sees x and so does a skip; only what flows through the module counts at its sites."""
    model = Made(lambda m, x: m.inside(x) * 2 + 4 * x, inside=nn.Identity())
    assert read(model, Site("inside", "input")) == [[2.0, -4.0, 6.0]]


def test_sites_are_read_before_in_place_changes():
    def forward(model, x):
        y = model.first(x)
        y *= 3
        y = model.second(y)
        y.mul_(2)
        return y

    model = Made(forward, first=nn.Identity(), second=nn.Identity())
    passed = trace(model, X, composite("epsilon"), sites=[Site("second", "output"), Site("second", "input")])
    found = passed.propagate(gradient=torch.ones(1, 3))
    assert passed.at(Site("second", "output")).tolist() == [[3.0, -6.0, 9.0]]
    assert found.sites[Site("second", "output")].tolist() == [[6.0, -12.0, 18.0]]
    assert found.relevance.tolist() == [[6.0, -12.0, 18.0]]


@pytest.mark.parametrize("watched", [True, False])
def test_an_in_place_module_still_changes_what_others_see(watched: bool):
    def forward(model, x):
        y = x * 1
        z = model.relu(y)
        return torch.cat([y, 2 * z], 1)

    model = Made(forward, relu=nn.ReLU(inplace=True))
    sites = [Site("relu", "input"), Site("relu", "output")] if watched else []
    passed = trace(model, X, composite("epsilon"), sites=sites)
    found = passed.propagate(gradient=torch.ones(1, 6))
    assert passed.logits.tolist() == model(X).tolist() == [[1.0, 0.0, 3.0, 2.0, 0.0, 6.0]]
    assert found.relevance.tolist() == [[3.0, 0.0, 9.0]]
    if watched:
        assert passed.at(sites[0]).tolist() == X.tolist()
        assert found.sites[sites[0]].tolist() == [[3.0, 0.0, 9.0]]


def test_every_call_is_a_site_of_its_own_and_shared_modules_have_several_names():
    shared = nn.Identity()
    model = Made(lambda m, x: m.a(m.b(m.a(x) * 2) * 3), a=shared, b=shared)
    sites = [Site("a", "output", 0), Site("b", "output", 1), Site("a", "input", 2)]
    assert read(model, *sites) == [[6.0, -12.0, 18.0]] * 3
    with pytest.raises(ValueError, match=r"site \('b', 'output', 3\): module 'b' was called 3 times"):
        trace(model, X, composite("epsilon"), sites=[Site("b", "output", 3)])


def test_sites_that_cannot_be_read_say_why():
    idle = Made(lambda m, x: m.b(x), a=nn.Identity(), b=nn.Unflatten(1, (3, 1)))
    with pytest.raises(ValueError, match="module 'a' was not called"):
        trace(idle, X, composite("epsilon"), sites=[Site("a", "input")])
    two = Made(lambda m, x: m.a(x)[0], a=Made(lambda m, x: (x, 2 * x)))
    with pytest.raises(ValueError, match="the output of a Made holds 2 tensors"):
        trace(two, X, composite("epsilon"), sites=[Site("a", "output")])

    def overwrite(model, x):
        y = x * 1
        view = model.view(y)
        view.relu_()
        return y

    view = Made(overwrite, view=nn.Flatten(0))
    with pytest.raises(NotImplementedError, match=r"site \('view', 'output', 0\) is a view that was changed in place"):
        trace(view, X, composite("epsilon"), sites=[Site("view", "output")])
    constant = Made(lambda m, x: x + m.a(torch.ones(3)), a=nn.Identity())
    with pytest.raises(ValueError, match="the output of a Identity to be read does not depend on the inputs"):
        trace(constant, X, composite("epsilon"), sites=[Site("a", "output")])


def test_keyword_inputs_are_read():
    class Named(nn.Module):
        def forward(self, *, scale: float, x: Tensor) -> Tensor:
            return scale * x

    model = Made(lambda m, x: m.a(x=x, scale=6.0), a=Named())
    assert read(model, Site("a", "input")) == [[6.0, -12.0, 18.0]]
