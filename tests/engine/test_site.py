"""Pointing inside a model, and watching what passes there."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

from dualview.engine.site import Site, as_site, describe_linears, intercepted, module_at, watch


class Twice(nn.Module):
    """One Linear called on the input and on its own output, and given its input by name the second time."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.unused = nn.Linear(3, 3)

    def forward(self, x):
        return self.fc(input=self.fc(x))


def test_each_call_is_seen_on_both_sides():
    model, x = Twice().double(), torch.randn(4, 3, dtype=torch.float64)
    once = model.fc(x)
    twice = model.fc(once)
    for site, expected in (
        (Site("fc", "input", 0), x),
        (Site("fc", "output", 0), once),
        (Site("fc", "input", 1), once),
        (Site("fc", "output", 1), twice),
        (Site("", "input"), x),
        (Site("", "output"), twice),
    ):
        with watch(model, site) as watched:
            model(x)
            assert torch.equal(watched.take(site), expected), site


def test_each_pass_is_taken_apart_from_the_one_before():
    model = nn.Sequential(nn.Linear(2, 2))
    site = Site("0", "input")
    with watch(model, site) as watched:
        for x in torch.randn(3, 5, 2):
            model(x)
            assert torch.equal(watched.take(site), x)


def test_what_was_seen_is_not_changed_by_later_operations_in_place():
    class Overwrites(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def forward(self, x):
            features = x + 1
            out = self.fc(features)
            features.zero_()
            return out

    x, site = torch.randn(3, 2), Site("fc", "input")
    with torch.no_grad(), watch(model := Overwrites(), site) as watched:
        model(x)
    assert torch.equal(watched.take(site), x + 1)


def test_the_hook_goes_even_after_an_exception():
    model = nn.Linear(2, 2)
    for side in ("input", "output"):
        with pytest.raises(RuntimeError, match="mat1 and mat2"), watch(model, Site("", side)):
            model(torch.randn(4, 3))
    assert not model._forward_hooks and not model._forward_pre_hooks


def test_a_module_that_was_not_called_or_not_that_often_is_named():
    model, x = Twice(), torch.randn(4, 3)
    with watch(model, Site("unused", "input")) as watched:
        model(x)
        with pytest.raises(ValueError, match="'unused' was not called"):
            watched.take(Site("unused", "input"))
    with watch(model, Site("fc", "input", 2)) as watched:
        model(x)
        with pytest.raises(ValueError, match="'fc' was called 2 times; call 2 does not exist"):
            watched.take(Site("fc", "input", 2))


def test_a_site_holds_one_tensor():
    class Pair(nn.Module):
        def forward(self, x, y):
            return x, y

    model = nn.Sequential(Pair())
    for side in ("input", "output"):
        with (
            watch(model, Site("0", side)),
            pytest.raises(ValueError, match=f"the {side} of module '0' holds . tensors"),
        ):
            model[0](torch.ones(1), torch.ones(1))


@dataclass
class Output:
    """What a module may return."""

    hidden: Tensor
    count: int


class Dataclassed(nn.Module):
    def forward(self, x):
        return Output(x + 1, 2)


def test_a_tensor_in_a_dataclass_is_replaced_and_the_rest_kept():
    x = torch.ones(2, 3)
    with intercepted(model := Dataclassed(), {Site("", "output"): lambda tensor: 5 * tensor}):
        output = model(x)
    assert torch.equal(output.hidden, 10 * x) and output.count == 2


def test_a_site_of_whole_numbers_or_of_a_negative_call_is_refused():
    model = nn.Sequential(nn.Embedding(4, 3))
    message = "the input of module '0' holds torch.int64; a site needs floating-point numbers"
    with pytest.raises(ValueError, match=message), intercepted(model, {Site("0", "input"): lambda ids: ids}):
        model(torch.zeros(2, 5, dtype=torch.int64))
    with pytest.raises(ValueError, match="`site` has call=-1; a module's calls are counted from 0"):
        as_site(model, Site("0", "output", -1))


def test_modules_are_found_by_name_and_unknown_names_list_the_linear_layers():
    model = nn.ModuleDict({"body": nn.Sequential(nn.Conv2d(1, 2, 3), nn.Linear(4, 3)), "head": nn.Linear(3, 2)})
    assert module_at(model, "body.1") is model["body"][1]
    assert module_at(model, "") is model
    expected = r"readout='fc' is not a module of ModuleDict. Linear layers are: 'body.1' \(4 → 3\), 'head' \(3 → 2\)\."
    with pytest.raises(ValueError, match=expected):
        module_at(model, "fc")
    with pytest.raises(ValueError, match="readout='head.weight' is not a module"):
        module_at(model, "head.weight")


def test_a_layer_with_two_names_is_listed_under_both():
    model = nn.Module()
    model.first = model.second = nn.Linear(2, 3)
    assert describe_linears(model) == "Linear layers are: 'first' (2 → 3), 'second' (2 → 3)."
    assert describe_linears(nn.ReLU()) == "It has no linear layer (torch.nn.Linear)."
