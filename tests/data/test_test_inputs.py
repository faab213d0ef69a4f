"""What is given to be explained: labels by name, and what is no batch is told how to become one."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dualview as dv
from dualview.errors import ProbabilityWarning

NAMES = ["north", "east", "south", "west"]
COLLATED_LIST = "torch.utils.data.default_collate(inputs), or your loader's collate_fn(inputs)"
COLLATED_SAMPLE = "torch.utils.data.default_collate([sample]), or your loader's collate_fn([sample])"


@pytest.fixture(scope="module")
def named(problem) -> dv.Explainer:
    return dv.fit(dv.DualView(C=0.02), dv.Task(problem.model, class_names=NAMES), problem.train, progress=False)


def test_targets_may_be_class_names(named, problem):
    inputs = problem.test[0][:4]
    assert torch.equal(named.explain(inputs, "south").scores, named.explain(inputs, 2).scores)
    assert named.explain(inputs, NAMES[::-1]).targets.tolist() == [3, 2, 1, 0]
    with pytest.raises(ValueError, match=r"label 'sout' \(sample 0\) is no class name: did you mean 'south'"):
        named.explain(inputs, "sout")


@pytest.mark.parametrize(
    ("inputs_of", "hint"),
    [
        (lambda x: list(x[:3]), "a list of samples becomes a batch by torch.stack(inputs)"),
        (lambda x: [(x[0], 1), (x[1], 2), (x[2], 0)], f"a list of samples becomes a batch by {COLLATED_LIST}"),
        (lambda x: [{"x": x[0]}], f"a list of samples becomes a batch by {COLLATED_LIST}"),
        (lambda x: (x[0], 1), f"a sample of a data set becomes a batch by {COLLATED_SAMPLE}"),
        (lambda x: {"x": x[0].tolist()}, f"a sample of a data set becomes a batch by {COLLATED_SAMPLE}"),
        (
            lambda x: "some words",
            f"make a sample of the text, as your data set does, and a batch of it: {COLLATED_SAMPLE}",
        ),
    ],
    ids=["tensors", "pairs", "dicts", "sample", "lists", "words"],
)
def test_what_is_no_batch_is_told_how_to_become_one(named, problem, inputs_of, hint: str):
    with pytest.raises((TypeError, ValueError)) as caught:
        named.explain(inputs_of(problem.test[0]))
    assert str(caught.value).endswith(f"; {hint}")


def test_what_the_hints_say_works(named, problem):
    inputs = problem.test[0][:3]
    expected = named.explain(inputs).scores
    pairs = [(one, 0) for one in inputs]
    for batch in (torch.stack(list(inputs)), torch.utils.data.default_collate(pairs)):
        torch.testing.assert_close(named.explain(batch).scores, expected, rtol=1e-12, atol=1e-12)


def test_parts_that_are_tensors_get_no_such_hint(named, problem):
    with pytest.raises(ValueError, match=r"have the parts \['0', '1'\]; the training samples have \[''\]$"):
        named.explain((problem.test[0], problem.test[0]))


def test_pictures_that_are_no_tensors_ask_for_a_transform(problem):
    pictures = [(Image.new("L", (2, 3)), k % 4) for k in range(8)]
    with pytest.raises(TypeError, match=r"samples that hold <class 'PIL.Image.Image'> .*give transform= .*ToTensor"):
        dv.fit(dv.DualView(C=0.02), problem.model, pictures, progress=False)

    def numbers(picture: Image.Image) -> Tensor:
        return torch.tensor(list(picture.tobytes())).double()

    assert len(dv.fit(dv.DualView(C=0.02), problem.model, pictures, transform=numbers, progress=False).table) == 8


# ── what the model says of itself ────────────────────────────────────────────────────────────────


class Configured(nn.Sequential):
    """A network with the labels of its columns, as Hugging Face models carry them."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(*layers)
        self.config = SimpleNamespace(id2label={k: f"LABEL_{k}" for k in range(4)})


def test_names_in_the_config_serve_and_older_stores_stay_open(problem, tmp_path):
    model = Configured(*problem.model)
    fitted = dv.fit(dv.DualView(C=0.02), model, problem.train, store=tmp_path, progress=False)
    assert fitted.task.class_names is None
    model.config.id2label = dict(enumerate(NAMES))
    opened = dv.open(tmp_path, model)
    again = dv.fit(dv.DualView(C=0.02), model, problem.train, store=tmp_path, progress=False)
    expected = fitted.explain(problem.test[0][:2], 1)
    for one in (opened, again):
        found = one.explain(problem.test[0][:2], "east")
        assert found.class_names == tuple(NAMES) and torch.equal(found.scores, expected.scores)
    assert len(list(tmp_path.glob("*/fits/*.safetensors"))) == 1
    model.config.id2label = {0: "of", 1: "another", 2: "head"}
    assert dv.open(tmp_path, model).task.class_names is None


def test_a_model_that_ends_in_softmax_or_sigmoid_is_warned_of_once(problem):
    inputs, labels = problem.train
    ends = {"softmax": nn.Sequential(problem.model, nn.Softmax(1))}
    ends["sigmoid"] = nn.Sequential(nn.Linear(6, 1), nn.Sigmoid()).double()
    nn.init.constant_(ends["sigmoid"][0].weight, 5.0)  # sure of most samples
    for end, model in ends.items():
        for method in (dv.GradDot(), dv.GradCos()):
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                dv.fit(method, model, (inputs, labels % 2), progress=False)
            (found,) = [one for one in caught if issubclass(one.category, ProbabilityWarning)]
            assert f"leave the {end} out" in str(found.message)
