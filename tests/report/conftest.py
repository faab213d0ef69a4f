"""A small fitted explainer with errors to show, and a page read back into what a reader finds on it."""

import base64
import dataclasses
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import dualview
from dualview import DualView, Explainer, Task

CLASS_NAMES = ["cat", "<script>alert('dog')</script>", "cow & calf"]
NUM_TRAIN, NUM_TEST = 60, 40
VOID = {"meta", "img", "link", "br", "hr", "input"}


def samples(number: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw images whose mean colour leans to their label's channel, a little."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(number) % 3
    images = torch.rand(number, 3, 6, 6, generator=generator) * 0.8
    images[torch.arange(number), labels] += 0.2 * torch.rand(number, 6, 6, generator=generator)
    return images, labels


def build(task: Task, train: tuple[Tensor, Tensor], held_out: tuple[Tensor, Tensor] | None) -> Explainer:
    names = [f"<b>file{number}</b>" for number in range(len(train[1]))]
    return dualview.fit(DualView(C=1e-2), task, train, held_out=held_out, names=names, progress=False)


def dense() -> nn.Module:
    return nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 3))


def convolutional() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))


def network(build: Callable[[], nn.Module], inputs: Tensor, labels: Tensor, num_steps: int) -> nn.Module:
    """Train a little, so that the network is right about some samples and wrong about others."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(num_steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def data() -> tuple[Tensor, Tensor]:
    return samples(NUM_TEST, 1)


@pytest.fixture(scope="session")
def explainer(data: tuple[Tensor, Tensor]) -> Explainer:
    """Fit on a poor network: it errs often, and the surrogate does not always agree with it."""
    train = samples(NUM_TRAIN, 0)
    return build(Task(network(convolutional, *train, num_steps=14), class_names=CLASS_NAMES), train, data)


@pytest.fixture(scope="session")
def table_explainer() -> Explainer:
    values, labels = torch.randn(NUM_TRAIN, 9, generator=torch.Generator().manual_seed(2)), torch.arange(NUM_TRAIN) % 3
    return build(Task(network(dense, values, labels, num_steps=5)), (values, labels), None)


@dataclass
class Element:
    """A tag with its attributes, and all that stands in it."""

    tag: str
    attributes: dict[str, str]
    children: list["Element"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    @property
    def classes(self) -> list[str]:
        return self.attributes.get("class", "").split()

    def all(self, tag: str, kind: str | None = None) -> list["Element"]:
        """Return the elements below of this tag and class, in order."""
        found = []
        for child in self.children:
            if child.tag == tag and (kind is None or kind in child.classes):
                found.append(child)
            found += child.all(tag, kind)
        return found

    def one(self, tag: str, kind: str | None = None) -> "Element":
        (found,) = self.all(tag, kind)
        return found

    def rows(self) -> list[list[str]]:
        """Return a table's body, row by row."""
        body = self.one("tbody")
        return [[cell.text for cell in row.children] for row in body.all("tr")]


class Page(HTMLParser):
    """Parse a page strictly: every tag must be closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.html = html
        self.root = Element("root", {})
        self._open = [self.root]
        self.feed(html)
        self.close()
        assert self._open == [self.root], f"not closed: {[element.tag for element in self._open[1:]]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        element = Element(tag, {name: value or "" for name, value in attrs})
        self._open[-1].children.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._open[-1].children.append(Element(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open[-1].tag == tag, f"</{tag}> closes <{self._open[-1].tag}>"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def section(self, name: str) -> Element:
        (found,) = [element for element in self.root.all("section") if element.attributes["id"] == name]
        return found


def picture(element: Element) -> np.ndarray:
    """Decode an embedded image."""
    head, _, code = element.attributes["src"].partition(",")
    assert head in ("data:image/png;base64", "data:image/jpeg;base64")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(code, validate=True))))


@pytest.fixture(scope="session")
def page(explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Page:
    path = dualview.write_report(
        explainer, data, tmp_path_factory.mktemp("page") / "new" / "page.html",
        num_errors=5, num_correct=3, k=4, top_suspects=7, title="<i>Animals</i> & co",
    )  # fmt: skip
    return Page(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def read():
    return Page


@pytest.fixture(scope="session")
def decode():
    return picture


@pytest.fixture(scope="session")
def without_pictures(explainer: Explainer) -> Explainer:
    """Stand for an explainer that was opened without its training set: one thumbnail is left."""
    first = int(explainer.suspects(1).index[0])
    return dataclasses.replace(explainer, samples=None, thumbnails={first: np.full((3, 3), 77, np.uint8)})
