"""The measured output of a batch's samples, as a function of parts of what goes through the network."""

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.engine.measured import Measured, one_each
from dualview.errors import NonFiniteError
from dualview.features._method import FeatureMethod
from tests.features.budget import counted

torch.set_num_threads(1)
ROWS = torch.tensor([2, 0, 2])


class Two(nn.Module):
    """An image and a table, both floating point, and tokens, which are not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.embedding, self.fc = nn.Linear(3, 4), nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, image: Tensor, ids: Tensor, table: Tensor) -> Tensor:
        return self.fc((self.first(image) + self.embedding(ids)).tanh() * table)


@pytest.fixture
def model() -> Two:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Two().double().eval()


def inputs() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    return {"image": image, "ids": torch.tensor([0, 3, 1, 4]), "table": image[:, :1] + 2}


def measured(model: nn.Module, **options) -> Measured:
    return Measured(dv.Task(model), inputs(), [0, 1, 2, 0], size=2, **options)


def test_rows_hold_versions_of_samples(model):
    one, given = measured(model), inputs()
    image = torch.zeros(3, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = model(image, given["ids"][ROWS], given["table"][ROWS])[torch.arange(3), torch.tensor([2, 0, 2])]
        torch.testing.assert_close(one.at(ROWS, {"image": image}), expected, rtol=1e-14, atol=0)
        torch.testing.assert_close(one.values, model(**given)[torch.arange(4), [0, 1, 2, 0]], rtol=1e-14, atol=0)
    assert list(one.parts) == ["image", "table"] and torch.equal(one.predicted, model(**given).argmax(1))
    assert [rows.tolist() for rows in one.chunks(5)] == [[0, 1], [2, 3], [4]]


def test_gradients_are_those_of_the_parts_put_in(model):
    one, given = measured(model), inputs()
    image = given["image"][ROWS].clone().requires_grad_()
    values, gradients = one.gradients(ROWS, {"image": image})
    expected = model(image, given["ids"][ROWS], given["table"][ROWS])[torch.arange(3), torch.tensor([2, 0, 2])]
    torch.testing.assert_close(gradients["image"], torch.autograd.grad(expected.sum(), image)[0], rtol=1e-13, atol=0)
    assert list(gradients) == ["image"] and not values.requires_grad and image.grad is None
    assert all(weight.grad is None for weight in model.parameters())


def test_activations_can_be_seen_replaced_and_differentiated(model):
    one, given, site = measured(model), inputs(), dv.Site("first", "output")
    seen = one.activations([site], ROWS, {})[site]
    torch.testing.assert_close(seen, model.first(given["image"][ROWS]).detach(), rtol=1e-14, atol=0)
    moved = seen + 1
    values, gradients = one.gradients(ROWS, {site: moved})
    leaf = moved.clone().requires_grad_()
    hidden = (leaf + model.embedding(given["ids"][ROWS])).tanh() * given["table"][ROWS]
    expected = model.fc(hidden)[torch.arange(3), torch.tensor([2, 0, 2])]
    torch.testing.assert_close(values, expected.detach(), rtol=1e-14, atol=0)
    torch.testing.assert_close(gradients[site], torch.autograd.grad(expected.sum(), leaf)[0], rtol=1e-13, atol=0)
    again, held, slopes = one.gradients_at([site], ROWS, {})
    torch.testing.assert_close(held[site], seen, rtol=0, atol=0)
    torch.testing.assert_close(again, one.at(ROWS, {}).detach(), rtol=0, atol=0)
    torch.testing.assert_close(slopes[site], one.gradients(ROWS, {site: seen})[1][site], rtol=1e-13, atol=0)
    with pytest.raises(ValueError, match=r"an activation of shape \(3, 4\) cannot become \(3, 2\)"):
        one.at(ROWS, {site: seen[:, :2]})


def test_weights_are_constants_unless_they_are_asked_for(model):
    fixed, free = measured(model), measured(model, differentiable=True)
    with torch.enable_grad():
        assert not fixed.at(ROWS, {}).requires_grad and not fixed.raw.requires_grad
        assert free.at(ROWS, {}).requires_grad and free.raw.requires_grad
        site = dv.Site("first", "output")
        activation = free.activations([site], ROWS, {})[site]
        values, gradients = free.gradients(ROWS, {site: activation})
    assert activation.requires_grad and gradients[site].requires_grad and values.requires_grad
    # the graph goes through the activation, which is a function of the first layer's weights
    assert torch.autograd.grad(gradients[site].sum(), model.first.weight)[0].abs().sum() > 0


def test_inputs_of_inference_mode_and_with_a_graph_serve(model):
    with torch.inference_mode():
        given = inputs()
    for part in (given, {**inputs(), "image": inputs()["image"].requires_grad_()}):
        found = dv.Gradient().attribute(model, part, targets=0)
        torch.testing.assert_close(
            found.values["image"], dv.Gradient().attribute(model, inputs(), targets=0).values["image"]
        )


def test_what_it_refuses(model):
    with pytest.raises(TypeError, match="no floating-point tensor, and token ids have no gradient"):
        _ = Measured(dv.Task(nn.Embedding(3, 2)), torch.zeros(2, dtype=torch.int64), None, size=2).parts
    with pytest.raises(TypeError, match="`inputs` are torch.float16; expected float32 or float64"):
        _ = Measured(dv.Task(nn.Linear(3, 2)), torch.zeros(2, 3).half(), None, size=2).parts
    broken = inputs()
    broken["table"][2] = torch.nan
    with pytest.raises(NonFiniteError, match=r"NaN or infinite for samples \[12\]"):
        _ = Measured(dv.Task(model), broken, [0] * 4, size=4, start=10).values

    class Detached(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.detach())

    one = Measured(dv.Task(Detached(3, 2)), torch.ones(2, 3), [0, 0], size=2)
    with pytest.raises(ValueError, match="does the model detach it"):
        one.gradients(one.samples, one.parts)


def test_token_ids_are_told_what_works():
    """Both methods that the message names, on a model whose first layer embeds."""
    net = nn.Sequential(nn.Embedding(5, 4), nn.Flatten(), nn.Linear(12, 3)).eval()
    ids = {"input_ids": torch.tensor([[1, 2, 3], [4, 0, 1]])}
    with pytest.raises(
        TypeError, match=r"IntegratedGradients\(\{'input_ids': 0\}, site=.*Occlusion\(baseline=\{'input_"
    ):
        dv.Gradient().attribute(net, ids)
    path = dv.IntegratedGradients({"input_ids": 0}, site="0").attribute(net, ids)
    # A linear model: what a token adds is what replacing it by the baseline takes away.
    occluded = dv.Occlusion(baseline={"input_ids": 0}).attribute(net, ids)
    torch.testing.assert_close(path.values.sum(-1), occluded.values, rtol=1e-4, atol=1e-6)


def test_targets_are_one_each_or_one_for_all():
    assert one_each(None, 3) is None and one_each("owl", 3) == ["owl"] * 3
    assert one_each(torch.tensor(2), 2) == [2, 2] and one_each([1, 0], 2) == [1, 0]
    with pytest.raises(ValueError, match="`targets` hold 2 labels for 3 samples"):
        one_each([1, 0], 3)


def test_every_output_of_a_task_shares_the_first_pass(model):
    method: FeatureMethod = dv.Gradient()
    with counted(model) as rows:
        method.attribute(dv.Task(model, output=(dv.logit, dv.margin)), inputs(), targets=0)
    assert rows.forward == 4 + 2 * 4 and rows.backward == 2 * 4
