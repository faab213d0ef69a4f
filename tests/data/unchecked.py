"""What can only be seen where annotations are not checked at run time: `python unchecked.py`.

In tests every call passes a check of its annotations, which draws from Python's random state, answers
wrong types before the library can, and adds frames between a warning and the line it points at. Run by
test_unchecked.py in a process of its own.
"""

import dataclasses
import random
import tempfile
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import dualview as dv
from dualview.errors import DualViewWarning
from dualview.report import write_report


class Drawing(list):
    """Samples whose reading draws from Python's random state."""

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        random.random()
        return super().__getitem__(position)


DATA = Drawing((torch.eye(4)[i % 4] * (1 + i / 9), i % 3) for i in range(20))
MODEL = nn.Linear(4, 4)  # its last column has no samples
MODEL.weight.data, MODEL.bias.data = 5 * torch.eye(4), torch.zeros(4)


def message_of(kind: type[Exception], call) -> str:
    try:
        call()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__}")


def random_state_is_left() -> dv.Explainer:
    state = random.getstate()
    explainer = dv.fit(dv.DualView(C=0.1), MODEL, DATA, held_out=DATA, progress=False)
    explainer.explain(Subset(DATA, range(3)))
    explainer.errors(DATA)
    assert random.getstate() == state
    random.random()
    assert random.getstate() != state
    return explainer


def wrong_types_are_refused_in_words() -> None:
    for name in ("C", "gap"):
        for value in (0, True, "1", None):
            message = message_of(ValueError, lambda name=name, value=value: dv.DualView(**{"C": 1.0, name: value}))
            allowed = ', or "auto"' if name == "C" else ""
            assert message == f"`{name}` must be a positive number{allowed}; it is {value!r}", message
    for value in (0, True, "1", 1.5):
        message = message_of(ValueError, lambda value=value: dv.DualView(support=value))
        assert message == f"`support` must be a share above 0, up to 1; it is {value!r}", message
    assert dv.DualView(C=1) == dv.DualView(C=1.0)
    message = message_of(TypeError, lambda: dv.fit(dv.DualView, MODEL, DATA))
    assert message.startswith("`method` must be a data method such as DualView()"), message
    message = message_of(TypeError, lambda: dv.fit(dv.DualView(C=1), "resnet18", DATA))
    assert message == "`model` must be a torch.nn.Module; it is str", message


def warnings_point_at_the_callers_line(explainer: dv.Explainer) -> None:
    inputs = torch.eye(4)[3:]
    out_of_reach = dv.DualView(support=1e-3)
    probabilities = nn.Sequential(MODEL, nn.Softmax(1))
    rows = torch.stack([row for row, _ in DATA])
    for call in (
        lambda: explainer.explain(inputs),
        lambda: dv.relate(explainer, inputs),
        lambda: dv.fit(out_of_reach, MODEL, DATA, progress=False),
        lambda: dv.fit(dv.GradDot(), probabilities, DATA, progress=False),
        lambda: dv.Gradient().attribute(probabilities, rows),
        lambda: dv.render(dv.relate(absorbing(), rows), dv.LRP("epsilon")),
        lambda: dv.LRP("epsilon").attribute(absorbing().task, rows),
        lambda: report(absorbing()),
        lambda: report(dataclasses.replace(absorbing(), samples=None)),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        (warning,) = caught
        assert issubclass(warning.category, DualViewWarning) and warning.filename == __file__, warning


def absorbing() -> dv.Explainer:
    """Fit a network whose biases make most of its outputs, so that little relevance reaches the inputs."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    for layer in (model[0], model[2]):
        layer.weight.data, layer.bias.data = torch.eye(layer.out_features, 4), torch.full((layer.out_features,), 5.0)
    return dv.fit(dv.DualView(C=0.1), model, DATA, progress=False)


def report(explainer: dv.Explainer) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_report(explainer, DATA, Path(folder) / "page.html", num_errors=1, num_correct=1)


if __name__ == "__main__":
    torch.set_num_threads(1)
    fitted = random_state_is_left()
    wrong_types_are_refused_in_words()
    warnings_point_at_the_callers_line(fitted)
