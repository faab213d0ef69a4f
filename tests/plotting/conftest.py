"""Results whose numbers are known, and what every figure must be: complete and legible."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dualview as dv
from dualview import DataAttribution, Maps, Task
from dualview.engine.datasets import as_samples
from dualview.engine.source import Source

SCORES = torch.tensor([[0.5, -0.25, 0.125, -0.0625, 0.75, -2e-5, 0.0, 0.3, -0.4, 0.2], [0.1] * 10])
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 0])


def make(test: Any, train: Any, *, display: Callable[[Any], Any] | None = None, **settings: Any) -> DataAttribution:
    """Attribute two test samples, explained as classes 0 and 1, to ten training samples."""
    facts: dict[str, Any] = {
        "scores": SCORES,
        "train_index": torch.arange(10),
        "num_train": 10,
        "kind": "share",
        "measured": "logit",
        "linearised": False,
        "lower_is_better": False,
        "bias": torch.tensor([-0.5, 0.25]),
        "bias_shares": torch.zeros_like(SCORES),
        "test_index": torch.tensor([0, 1]),
        "targets": torch.tensor([0, 1]),
        "predicted": torch.tensor([0, 2]),
        "train_targets": LABELS,
        "method": "DualView(C=0.001)",
        "source": Source(Task(nn.Linear(1, 3), display=display), test, as_samples((train, LABELS))),
    }
    return DataAttribution(**{**facts, **settings})


def noise(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def attribution() -> Callable[..., DataAttribution]:
    return make


@pytest.fixture
def grey() -> DataAttribution:
    return make(noise(2, 1, 8, 8), noise(10, 1, 8, 8))


def rendered(model: nn.Module, train: Tensor, test: Tensor, rule: str = "epsilon", *, k: int = 3) -> Maps:
    """Render all test samples of a network with three classes; training labels run 0, 1, 2, 0, ..."""
    explainer = dv.fit(dv.DualView(C=0.1), model, (train, torch.arange(len(train)) % 3))
    relation = dv.relate(explainer, test)
    return dv.render(relation, dv.LRP(rule, bias="exclude"), test=range(len(relation)), k=k)


@pytest.fixture(scope="session")
def render() -> Callable[..., Maps]:
    return rendered


@pytest.fixture(scope="session")
def image_maps() -> Maps:
    """Six pairs of each of two 8×8 digits with twelve others, rendered by a convolutional net."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 8), nn.ReLU(), nn.Linear(8, 3)
    )
    return rendered(model, noise(12, 1, 8, 8), noise(14, 1, 8, 8)[12:], "epsilon-plus-flat")


class TwoInputs(nn.Module):
    """An image and a row of numbers, added before the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.seen, self.read, self.head = nn.Linear(48, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.head(torch.relu(self.seen(image.flatten(1)) + self.read(row)))


@pytest.fixture(scope="session")
def two_maps() -> Maps:
    torch.manual_seed(0)
    samples = [{"image": noise(12, 3, 4, 4)[i], "row": noise(12, 4)[i], "label": i % 3} for i in range(12)]
    explainer = dv.fit(dv.DualView(C=0.1), dv.Task(TwoInputs(), readout="head"), samples)
    relation = dv.relate(explainer, {"image": noise(1, 3, 4, 4), "row": noise(1, 4)})
    return dv.render(relation, dv.LRP("epsilon", bias="exclude"), k=2)


def faults_of(figure: Figure) -> list[str]:
    """Return what is cut off, overlaps, stands half on a panel, or is too small to be read."""
    sheet, found = figure.bbox, list[str]()
    texts = [text for text in figure.texts if text.get_text()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts]
    panels = [axes.get_window_extent() for axes in figure.axes]
    for word, box in boxes:
        if box.x0 < sheet.x0 or sheet.x1 < box.x1 or box.y0 < sheet.y0 or sheet.y1 < box.y1:
            found.append(f"{word!r} is cut off")
        for panel in panels:
            within = panel.x0 <= box.x0 and box.x1 <= panel.x1 and panel.y0 <= box.y0 and box.y1 <= panel.y1
            if box.overlaps(panel) and not within:
                found.append(f"{word!r} stands half on a panel")
    for (word, box), (other, beside) in itertools.combinations(boxes, 2):
        across = min(box.x1, beside.x1) - max(box.x0, beside.x0)
        down = min(box.y1, beside.y1) - max(box.y0, beside.y0)
        # Leading keeps lines apart, but a font's descenders may reach a pixel into the next line's box.
        if across > 0 and down > 1:
            found.append(f"{word!r} overlaps {other!r}")
    found += ["two panels overlap" for one, other in itertools.combinations(panels, 2) if one.overlaps(other)]
    found += [f"{text.get_text()!r} is too small" for text in texts if text.get_fontsize() * figure.dpi < 8 * 100]
    return found


@pytest.fixture(scope="session")
def faults() -> Callable[[Figure], list[str]]:
    return faults_of
