"""What can only be seen where annotations are not checked at run time: `python unchecked.py`.

In tests every call passes a check of its annotations, which draws from Python's random state, answers
wrong types before the library can, and adds frames between a warning and the line it points at. Run by
test_unchecked.py in a process of its own.
"""

import random
import warnings

import torch
from torch import Tensor, nn
from torch.utils.data import Subset

import dualview as dv
from dualview.errors import DualViewWarning


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
    for call in (
        lambda: explainer.explain(inputs),
        lambda: dv.relate(explainer, inputs),
        lambda: dv.fit(out_of_reach, MODEL, DATA, progress=False),
    ):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            call()
        (warning,) = caught
        assert warning.category is DualViewWarning and warning.filename == __file__, warning


if __name__ == "__main__":
    torch.set_num_threads(1)
    fitted = random_state_is_left()
    wrong_types_are_refused_in_words()
    warnings_point_at_the_callers_line(fitted)
