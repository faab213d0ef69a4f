"""What the loop of all feature methods says of targets, of names, and of inputs that are no batch."""

import warnings
import weakref
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview.errors import ProbabilityWarning
from dualview.features._method import FeatureMethod

METHODS = [dv.LRP("epsilon"), dv.DeepLIFT(), dv.IntegratedGradients(), dv.Gradient(), dv.Occlusion(), dv.GradCAM()]


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
        return nn.Sequential(*body).eval()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_a_sample_without_its_batch_axis_is_told_so(method: FeatureMethod, model: nn.Module, images: Tensor):
    with pytest.raises(ValueError, match=r"shape \(1, 6, 6\) .*for a single sample give inputs\[None\]$") as caught:
        method.attribute(model, images[0])
    assert caught.value.__cause__ is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert method.attribute(model, images[0][None]).values.shape == (1, 1, 6, 6)


def test_a_row_of_numbers_is_told_so_too():
    with pytest.raises(ValueError, match=r"of shape \(5,\) .*give inputs\[None\]$"):
        dv.Gradient().attribute(nn.Linear(5, 3), torch.rand(5))


def test_other_errors_stay_as_they_are(model: nn.Module, images: Tensor):
    with pytest.raises(RuntimeError, match="Given groups=1") as caught:
        dv.Gradient().attribute(model, images.expand(-1, 2, -1, -1))
    assert "inputs[None]" not in str(caught.value)
    with pytest.raises(ValueError, match="label 3 .* is no output column"):
        dv.Gradient().attribute(model, images, 3)


class Watched(nn.Module):
    """A network that writes down the shapes that it sees."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.shapes = model, []

    def forward(self, x: Tensor) -> Tensor:
        self.shapes.append(tuple(x.shape))
        return self.model(x)


class Failing(nn.Module):
    """A network with an error of its own."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error, self.weight = error, nn.Parameter(torch.ones(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        raise self.error


MANY = torch.zeros(5000, 4)


@pytest.mark.parametrize("method", [dv.IntegratedGradients(0), dv.LRP("epsilon"), dv.Gradient()], ids=repr)
def test_a_wrong_label_runs_no_other_pass(method: FeatureMethod):
    model = Watched(nn.Linear(4, 3))
    with pytest.raises(ValueError, match="label 7 .* is no output column"):
        method.attribute(model, MANY, 7, batch_size=32)
    assert model.shapes and set(model.shapes) == {(32, 4)}


@pytest.mark.parametrize("error", [TypeError("its own"), IndexError("its own"), RuntimeError("its own")], ids=repr)
@pytest.mark.parametrize("rows", [40, 5000])
def test_a_models_own_error_stays_as_it_is_and_one_row_is_tried_at_most(error: Exception, rows: int):
    model = Watched(Failing(error))
    with pytest.raises(type(error)) as caught:
        dv.Gradient().attribute(model, MANY[:rows], batch_size=32)
    assert caught.value is error
    tried = [] if rows > 4096 else [(1, 4), (1, 40, 4)]  # more rows than that are no single sample
    assert model.shapes == [(32, 4), *tried]


def test_no_memory_is_not_tried_again():
    error = torch.OutOfMemoryError("no memory")
    model = Watched(Failing(error))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        dv.Gradient().attribute(model, MANY[:40], batch_size=32)
    assert caught.value is error and model.shapes == [(32, 4)]


def test_an_error_in_a_later_batch_is_not_tried_again():
    class Full(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.ndim == 2 and len(x) != 32:
                raise RuntimeError("a batch is not full")
            return x.reshape(len(x), -1)[:, :4]

    model = Watched(Full())
    with pytest.raises(RuntimeError, match="^a batch is not full$"):
        dv.Gradient().attribute(model, MANY[:40], batch_size=32)
    assert {shape[0] for shape in model.shapes} == {32, 8}


def test_a_long_row_is_one_sample():
    with pytest.raises(ValueError, match=r"of shape \(5000,\) .*give inputs\[None\]$"):
        dv.Gradient().attribute(nn.Linear(5000, 3), MANY[:, 0])


def test_targets_may_be_class_names(model: nn.Module, images: Tensor):
    task = dv.Task(model, class_names=["cat", "dog", "cow"])
    found = dv.Gradient().attribute(task, images[:3], ["cow", "cat", "dog"], batch_size=2)
    assert torch.equal(found.values, dv.Gradient().attribute(model, images[:3], [2, 0, 1], batch_size=2).values)
    with pytest.raises(ValueError, match=r"label 'dogs' \(sample 2\) is no class name: did you mean 'dog'"):
        dv.Gradient().attribute(task, images[:3], ["cow", "cat", "dogs"], batch_size=2)


def test_names_in_the_models_config_stand_in_the_result(images: Tensor):
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    model.config = SimpleNamespace(id2label={0: "cat", 1: "dog", 2: "cow"})
    found = dv.Gradient().attribute(model, images[:2], "cow")
    assert found.class_names == ("cat", "dog", "cow") and found.targets.tolist() == [2, 2]
    model.config.id2label[3] = "of another head"
    assert dv.Gradient().attribute(model, images[:2]).class_names is None


@pytest.mark.parametrize("method", [dv.Gradient(), dv.Occlusion()], ids=["Gradient", "Occlusion"])
def test_a_model_that_ends_in_softmax_is_warned_of_once(method: FeatureMethod, images: Tensor):
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3), nn.Softmax(1))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        method.attribute(net, images, batch_size=8)
        method.attribute(net, images[:19])
        method.attribute(dv.Task(net, problem="multi-label"), images)
        method.attribute(net[:2], images)
    (found,) = [one for one in caught if issubclass(one.category, ProbabilityWarning)]
    assert "leave the softmax out" in str(found.message)


def test_one_sigmoid_column_is_not_warned_of(images: Tensor):
    """So few samples as are explained may lie in [0, 1] by chance."""
    net = nn.Sequential(nn.Flatten(), Steep(), nn.Sigmoid())
    outputs = net(images)
    assert outputs.min() < 0.1 and outputs.max() > 0.9
    with warnings.catch_warnings():
        warnings.simplefilter("error", ProbabilityWarning)
        dv.Gradient().attribute(net, images)


class Steep(nn.Module):
    """One column, far below and far above 0."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * (x.mean(1, keepdim=True) - 0.5)


def test_no_raw_output_is_kept(images: Tensor):
    """Of a wide model all of them would be more than the scores."""
    kept: list[weakref.ref] = []

    class Kept(dv.Gradient):
        def explain(self, measured):
            found = super().explain(measured)
            kept.append(weakref.ref(measured.raw))
            assert sum(raw() is not None for raw in kept) <= 2  # this batch's, and the last one's until it is replaced
            return found

    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    assert Kept().attribute(net, images, batch_size=5).values.shape == images.shape
    assert len(kept) == 6 and all(raw() is None for raw in kept)


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.readout = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.readout(self.table(input_ids).mean(1).relu())


@pytest.mark.parametrize("method", [dv.LRP("epsilon"), dv.DeepLIFT()], ids=["LRP", "DeepLIFT"])
def test_token_ids_are_told_what_works_for_them(method: FeatureMethod):
    ids = {"input_ids": torch.arange(1, 5).repeat(2, 1)}
    works = [dv.IntegratedGradients({"input_ids": 0}, site="table"), dv.Occlusion(baseline={"input_ids": 0})]
    with pytest.raises(TypeError, match="token ids .*IntegratedGradients.*site=.*Occlusion.baseline=") as caught:
        method.attribute(Embedded(), ids)
    for other in works:
        assert f"{type(other).__name__}(" in str(caught.value)
        assert other.attribute(Embedded(), ids).values.shape[:2] == (2, 4)
