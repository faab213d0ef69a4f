"""What stands in the figure of a path, which samples are drawn of a long one, and what an empty one says."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, Rectangle
from torch import Tensor, nn

from dualview import Selection, Task
from dualview.data.support_spectrum import NO_SUPPORT, PATH
from dualview.engine.datasets import as_samples
from dualview.engine.source import Source
from dualview.plotting import plot, selection_figure
from dualview.plotting.style import FOR

LABELS = torch.arange(20) % 2
LENGTHS = (3, 0, 9, 1)
BETWEEN = "from globally important to locally similar"


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


def make(test: Any, train: Any, *, display: Callable[[Any], Any] | None = None, **settings: Any) -> Selection:
    """Return paths of 3, 0, 9 and 1 samples of class 1, which stands at odd positions."""
    entries = sum(LENGTHS)
    facts: dict[str, Any] = {
        "train_index": 2 * (torch.arange(entries) % 9) + 1,
        "row_start": torch.tensor([0, *LENGTHS]).cumsum(0),
        "columns": {"importance": -(torch.arange(entries).double() ** 2), "kernel": torch.arange(entries) * 1.5},
        "by": BETWEEN,
        "num_support": torch.tensor([12, 0, 40, 1]),
        "ended": (PATH, NO_SUPPORT, PATH, PATH),
        "num_train": 20,
        "test_index": torch.arange(4),
        "targets": torch.ones(4, dtype=torch.int64),
        "predicted": torch.tensor([1, 1, 0, 1]),
        "train_targets": LABELS,
        "method": "SupportSpectrum()",
        "source": Source(Task(nn.Linear(1, 2), display=display), test, as_samples((train, LABELS))),
    }
    return Selection(**{**facts, **settings})


@pytest.fixture
def digits() -> Selection:
    return make(noise(4, 1, 8, 8), noise(20, 1, 8, 8))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def positions(figure: Figure) -> list[str]:
    return [word for word in words(figure) if word.startswith("train ")]


def test_the_path_stands_in_its_order_with_its_numbers(digits: Selection):
    figure = plot(digits, true_target=0)
    texts = words(figure)
    assert {"Predicted 1, true label 0", "Test 0", "importance", "kernel", *BETWEEN[5:].split(" to ")} <= set(texts)
    assert f"Training samples of class 1, {BETWEEN}: a path of 3 from a support set of 12." in texts
    assert positions(figure) == ["train 1", "train 3", "train 5"]
    after = texts[texts.index("train 5") + 1 :]
    assert after[:8] == ["importance", "0", "−1.00", "−4.00", "kernel", "0", "1.50", "3.00"]
    assert len(figure.axes) == 4  # the test sample and three training samples
    assert len(figure.findobj(FancyArrowPatch)) == 1


def test_marks_stand_where_the_numbers_do(digits: Selection):
    figure = plot(digits)
    marks = [box.get_x() for box in figure.findobj(Rectangle) if to_hex(box.get_facecolor()) == FOR]
    left = [axes.get_position().x0 for axes in figure.axes[1:]]
    reach = max(mark - x for mark, x in zip(marks[:3], left, strict=True))
    shares = [(mark - x) / reach for mark, x in zip(marks, left * 2, strict=True)]
    assert shares == pytest.approx([1, 0.75, 0, 0, 0.5, 1], abs=1e-6)  # 0, −1, −4 and 0, 1.5, 3


def test_a_long_path_keeps_both_ends_and_says_so(digits: Selection):
    figure = plot(digits, test=2, k=5)
    assert positions(figure) == [f"train {2 * (place % 9) + 1}" for place in (3, 5, 7, 9, 11)]
    said = " ".join(words(figure))
    assert "a path of 9 from a support set of 40; 5 of the 9 are shown, evenly spaced, both ends among them." in said
    assert "Predicted 0, explained for 1" in words(figure)


def test_an_empty_path_says_why(digits: Selection):
    figure = plot(digits, test=1)
    assert "No support: the weakest of its class along this direction." in words(figure)
    assert "Explained for class 1: nothing was selected." in words(figure)
    assert len(figure.axes) == 1 and not figure.findobj(FancyArrowPatch)


def test_a_path_of_one_has_no_ends(digits: Selection):
    figure = plot(digits, test=3)
    assert positions(figure) == ["train 7"] and not figure.findobj(FancyArrowPatch)
    assert not any("Marks" in word for word in words(figure))


def test_a_loaded_selection_says_why_there_are_no_pictures(digits: Selection):
    figure = plot(dataclasses.replace(digits, source=None))
    assert positions(figure) == ["train 1", "train 3", "train 5"]
    assert any(word.startswith("no picture") for word in words(figure))


CASES = {
    "path": lambda: plot(make(noise(4, 1, 8, 8), noise(20, 1, 8, 8))),
    "two": lambda: plot(make(noise(4, 1, 8, 8), noise(20, 1, 8, 8)), test=0, k=2),
    "empty": lambda: plot(make(noise(4, 1, 8, 8), noise(20, 1, 8, 8)), test=1),
    "one": lambda: plot(make(noise(4, 1, 8, 8), noise(20, 1, 8, 8)), test=3),
    "long": lambda: plot(make(noise(4, 3, 8, 8), noise(20, 3, 8, 8)), test=2, k=9, names=["folder/" * 20] * 20),
    "words": lambda: plot(make(noise(4, 3), noise(20, 3), display=lambda row: "many words in a row " * 50), test=2),
    "table": lambda: plot(make(noise(4, 30), noise(20, 30)), test=2),
    "long class names": lambda: plot(
        make(noise(4, 3, 8, 8), noise(20, 3, 8, 8), class_names=["cat", "Unbreakable" * 9]), true_target=0
    ),
    "no pictures": lambda: plot(make(noise(4, 3), noise(20, 3), source=None)),
}


@pytest.mark.parametrize("case", CASES)
def test_nothing_is_cut_off_or_overlaps(case: str, faults: Callable[[Figure], list[str]]):
    assert faults(CASES[case]()) == []


def test_a_notebook_shows_it(digits: Selection):
    shown = digits._repr_png_()
    assert shown is not None and shown.startswith(b"\x89PNG")


def test_refuses_what_cannot_be_drawn(digits: Selection):
    with pytest.raises(IndexError, match="`test` is 4"):
        selection_figure(digits, 4)
    with pytest.raises(ValueError, match="`k` is 1; expected 2 or more: a path has two ends"):
        selection_figure(digits, k=1)
    with pytest.raises(ValueError, match="`names` holds 1 entries; there are 20 training samples"):
        selection_figure(digits, names=["a"])
