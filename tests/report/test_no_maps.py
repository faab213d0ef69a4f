"""A page without heat maps: by wish, or because there can be none, and then it says why."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview import LRP, DualView, Explainer
from dualview.data._method import DataMethod
from dualview.errors import DualViewWarning
from dualview.report import write_report


def test_without_a_rule_there_are_no_maps_and_nothing_is_said_of_them(explainer, data, tmp_path: Path, read):
    path = write_report(explainer, data, tmp_path / "p.html", num_errors=2, num_correct=0, rule=None)
    page = read(path.read_text("utf-8"))
    assert page.root.all("input") == page.root.all("label") == page.root.all("figure") == []
    assert "heat map" not in page.root.text.lower() and ".pair-0" not in page.html
    assert len(page.section("predictions").all("li", "tile")) > 0


class Embedded(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.readout = nn.Embedding(5, 4), nn.Linear(4, 3)

    def forward(self, words: Tensor) -> Tensor:
        return self.readout(self.table(words).mean(1).relu())


def _pixels() -> Tensor:
    return torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


REFUSED = {
    "operation": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Softmax(1), nn.Linear(8, 3)),
        _pixels,
        NotImplementedError,
        "no relevance rule for operation 'softmax' in module '2' (Softmax)",
    ),
    "integers": (
        Embedded,
        lambda: torch.arange(36).reshape(12, 3) % 5,
        TypeError,
        "relevance needs at least one floating-point input",
    ),
    "half": (
        lambda: nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16(),
        lambda: _pixels().bfloat16(),
        TypeError,
        "relevance needs float32 or float64; inputs is bfloat16: convert with .float().",
    ),
    "first": (
        lambda: nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(1, 8, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)),
        _pixels,
        ValueError,
        "no linear layer or convolution sees the input directly",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_where_relevance_cannot_pass_the_page_says_why(kind: str, tmp_path: Path, read):
    build, inputs_of, error, reason = REFUSED[kind]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build().eval()
    data = (inputs_of(), torch.arange(12) % 3)
    fitted = dv.fit(DualView(C=1.0), model, data, progress=False)
    with pytest.warns(DualViewWarning, match=re.escape(reason)):
        path = write_report(fitted, data, tmp_path / "auto.html", num_errors=1, num_correct=1)
    page = read(path.read_text("utf-8"))
    (note,) = [note.text for note in page.section("predictions").all("p", "note") if "heat maps" in note.text]
    assert note.startswith("There are no heat maps: ") and reason in note and note.endswith(".")
    assert page.root.all("input") == page.root.all("figure") == [] and page.section("predictions").all("li", "tile")
    assert "heat maps" not in page.section("reading").text
    with pytest.raises(error, match=re.escape(reason.rstrip("."))):
        write_report(fitted, data, tmp_path / "given.html", rule=LRP("epsilon-plus-flat"))
    assert not (tmp_path / "given.html").exists()


def test_without_the_training_set_the_page_says_so(without_pictures: Explainer, data, tmp_path: Path, read):
    reason = "they need the training samples themselves: give train= to dualview.open."
    with pytest.warns(DualViewWarning, match=re.escape(reason)):
        path = write_report(without_pictures, data, tmp_path / "p.html", num_errors=1, num_correct=0)
    page = read(path.read_text("utf-8"))
    assert f"There are no heat maps: {reason}" in page.section("predictions").text
    assert page.root.all("input") == []
    with pytest.raises(ValueError, match="give train= to dualview.open"):
        write_report(without_pictures, data, tmp_path / "q.html", num_errors=1, rule=LRP("epsilon-plus-flat"))


def test_another_method_has_no_relation_to_draw(explainer: Explainer, data, tmp_path: Path, read):
    parts = {name: part for name, part in vars(DualView).items() if name not in ("__dict__", "__weakref__")}
    method = type("Another", (DataMethod,), parts)(C=1e-2)
    other = dataclasses.replace(explainer, method=method)
    with pytest.warns(DualViewWarning, match=r"they need a fitted DualView; this page is about .*C=0.01"):
        path = write_report(other, data, tmp_path / "p.html", num_errors=1, num_correct=0)
    assert "There are no heat maps: they need a fitted DualView" in read(path.read_text("utf-8")).root.text
    with pytest.raises(TypeError, match="a relation needs a fitted DualView"):
        write_report(other, data, tmp_path / "q.html", num_errors=1, rule=LRP("epsilon-plus-flat"))


def test_changed_training_samples_are_an_error_and_no_note(explainer: Explainer, data, tmp_path: Path):
    """Only what is about the network is excused; maps of other samples than were recorded would be wrong."""
    samples = explainer.samples
    changed = [(1 - samples.sample(k)[0], samples.sample(k)[1]) for k in range(len(samples))]
    other = dataclasses.replace(explainer, samples=dataclasses.replace(samples, dataset=changed))
    with pytest.raises(ValueError, match="has other features now than when it was recorded"):
        write_report(other, data, tmp_path / "p.html", num_errors=1, num_correct=0)


def test_nothing_is_drawn_of_nothing(explainer: Explainer, data, tmp_path: Path, read):
    for rule in ("auto", LRP("epsilon-plus-flat")):
        path = write_report(explainer, data, tmp_path / "p.html", num_errors=0, num_correct=0, rule=rule)
        assert "heat maps" not in read(path.read_text("utf-8")).section("reading").text
