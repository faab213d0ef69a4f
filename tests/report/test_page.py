"""A page shows the explainer's own numbers, in order, safely, and holds everything it needs."""

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dualview import Explainer, loss, margin
from dualview.engine.task import class_logits
from dualview.report import write_report

CLASS_NAMES = ["cat", "<script>alert('dog')</script>", "cow & calf"]
CSS = Path(__file__).parents[2] / "src" / "dualview" / "report" / "templates" / "page.css"


def value(text: str) -> float:
    """Read a number as a page writes it."""
    return float(re.sub(r"[\s\u202f%≠]", "", text.replace("−", "-")))


def close(expected: float) -> object:
    """Accept the expected number as written with three significant digits."""
    return pytest.approx(expected, rel=5.1e-3, abs=1e-12)


def position_of(article) -> int:
    return int(article.attributes["id"].removeprefix("sample-"))


def tiles_of(article) -> list[list[tuple[float, int]]]:
    """Return (score, training position) of the proponents and of the opponents."""
    return [
        [
            (value(tile.one("span", "score").text), int(tile.all("span", "index")[0].text.removeprefix("train ")))
            for tile in group.all("li", "tile")
        ]
        for group in article.all("ul", "tiles")
    ]


# ── the numbers ──────────────────────────────────────────────────────────────────────────────────


def test_errors_come_first_and_worst_first(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    articles = page.section("predictions").all("article")
    errors = explainer.errors(data)
    assert len(errors) > 5
    assert [position_of(article) for article in articles[:5]] == errors.index[:5].tolist()
    verdicts = [article.one("span", "verdict").text for article in articles]
    assert verdicts == ["Wrong"] * 5 + ["Right"] * 3
    right = sorted(set(range(len(data[1]))) - set(errors.index.tolist()))
    shown = [position_of(article) for article in articles[5:]]
    assert set(shown) <= set(right) and shown == sorted(set(shown))
    for article, row in zip(articles[:5], errors.rows(), strict=False):
        facts = [value(entry.text) for entry in article.one("dl", "line").all("dd")]
        assert facts == [pytest.approx(100 * row["confidence"], abs=0.051), close(row["loss"])]
        predicted, true = CLASS_NAMES[row["predicted"]], CLASS_NAMES[row["target"]]
        assert f"Predicted {predicted}, labelled {true}" in article.one("h3").text


def test_scores_are_those_of_the_explainer(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    for article in page.section("predictions").all("article"):
        position = position_of(article)
        result = explainer.explain(data[0][position : position + 1])
        top = result.top(4)
        for shown, ranked in zip(tiles_of(article), top, strict=True):
            assert [train for _, train in shown] == ranked.train_index[0].tolist()
            assert [score for score, _ in shown] == [close(score) for score in ranked.scores[0].tolist()]


def test_headings_say_how_much_the_tiles_carry(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    for article in page.section("predictions").all("article"):
        position = position_of(article)
        scores = explainer.explain(data[0][position : position + 1]).scores[0].double()
        said = [heading.text for heading in article.all("h4")]
        for sign, heading in zip((1, -1), said[:2], strict=True):
            side = (sign * scores)[sign * scores > 0].sort(descending=True).values
            share = 100 * float(side[:4].sum() / side.sum())
            assert f"{min(4, len(side))} of {len(side)}, which carry {share:.1f} % of their sum" in heading


def test_the_split_adds_up_to_the_surrogate(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    for article in page.section("predictions").all("article"):
        position = position_of(article)
        result = explainer.explain(data[0][position : position + 1])
        scores, predicted = result.scores[0].double(), int(result.predicted[0])
        logit = float(explainer.surrogate_logits(data[0][position : position + 1])[0, predicted])
        rows = article.one("table", "split").rows()
        assert [row[0] for row in rows] == [
            "bias", f"{int((scores > 0).sum())} proponents", f"{int((scores < 0).sum())} opponents", "together",
        ]  # fmt: skip
        places = len(rows[3][1].partition(".")[2])
        expected = [float(result.bias[0]), float(scores[scores > 0].sum()), float(scores[scores < 0].sum()), logit]
        assert [value(row[1]) for row in rows] == [pytest.approx(part, abs=0.51 * 10.0**-places) for part in expected]


def test_says_where_the_surrogate_disagrees(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    surrogate = explainer.surrogate_logits(data[0]).argmax(1)
    network = class_logits(explainer.record(data).outputs).argmax(1)
    said = []
    for article in page.section("predictions").all("article"):
        position = position_of(article)
        agrees = bool(surrogate[position] == network[position])
        assert bool(article.all("p", "caution")) != agrees
        assert f"The surrogate predicts {CLASS_NAMES[int(surrogate[position])]}" in article.text
        said.append(agrees)
    assert set(said) == {True, False}


def test_training_samples_the_network_gets_wrong_are_marked(page, explainer: Explainer):
    network = class_logits(explainer.table.outputs).argmax(1)
    tiles = page.section("predictions").all("li", "tile")
    for tile in tiles:
        position = int(tile.all("span", "index")[0].text.removeprefix("train "))
        says, label = int(network[position]), int(explainer.table.targets[position])
        notes = [note.text for note in tile.all("span", "network")]
        assert notes == ([] if says == label else [f"network: {CLASS_NAMES[says]}"])
        assert tile.one("span", "label").text == CLASS_NAMES[label]
    assert {bool(tile.all("span", "network")) for tile in tiles} == {True, False}


def test_suspects_are_those_of_the_explainer(page, explainer: Explainer):
    rows = page.section("suspects").one("table").rows()
    ranking = explainer.suspects(7).rows()
    assert len(rows) == 7
    for rank, (cells, row) in enumerate(zip(rows, ranking, strict=True), start=1):
        number, _, index, label, predicted, slack, loss_text = cells
        assert (number, index.split()[0]) == (str(rank), str(row["index"]))
        assert row["name"] in index
        assert label == CLASS_NAMES[row["target"]]
        assert predicted.removeprefix("≠ ") == CLASS_NAMES[row["predicted"]]
        assert predicted.startswith("≠") == (row["target"] != row["predicted"])
        assert (value(slack), value(loss_text)) == (close(row["slack"]), close(row["loss"]))


def test_certificate_and_fidelity_are_those_of_the_explainer(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    summary = page.section("summary")
    facts = {row.one("dt").text: row.one("dd").text for facts in summary.all("dl", "facts") for row in facts.children}
    known = explainer.certificate
    assert value(facts["Relative duality gap"].split(" ")[0]) == pytest.approx(known["gap"], rel=0.05)
    assert facts["Status"].startswith(known["status"])
    assert facts["C"].startswith("0.01 ")
    assert f"({known['support']} samples)" in facts["Support"]
    assert facts["Training samples"] == "60"
    num_errors = len(explainer.errors(data))
    assert facts["Network’s accuracy on them"].endswith(f"({num_errors} errors)")
    parameters = (27 * 4 + 4) + (64 * 8 + 8) + (8 * 3 + 3)
    assert facts["Model"] == f"Sequential, {parameters} parameters"
    rows = summary.one("table", "fidelity").rows()
    keys = ["agreement", "matthews", "cosine", "kendall"]
    for key, (_, train, held_out) in zip(keys, rows, strict=True):
        scale = 100 if key == "agreement" else 1
        for text, name in ((train, "train"), (held_out, "held_out")):
            assert value(text) == pytest.approx(scale * explainer.fidelity[name][key], rel=5.1e-3)


def test_classes_are_counted(page, explainer: Explainer, data: tuple[Tensor, Tensor]):
    rows = page.section("classes").one("table").rows()
    errors = explainer.errors(data)
    support = explainer.table.targets[explainer.method.scored(explainer.state)]
    for column, (name, *counts, taken_for) in enumerate(rows):
        wrong = errors.columns["predicted"][errors.columns["target"] == column].tolist()
        expected = [20, int((support == column).sum()), int((data[1] == column).sum()), len(wrong)]
        assert (name, [int(count) for count in counts]) == (CLASS_NAMES[column], expected)
        times = sorted((-wrong.count(other), other) for other in set(wrong))
        assert taken_for == (", ".join(f"{CLASS_NAMES[other]} ({-count})" for count, other in times) or "–")


# ── the pictures ─────────────────────────────────────────────────────────────────────────────────


def test_pictures_are_the_samples_themselves(page, explainer: Explainer, data: tuple[Tensor, Tensor], decode):
    def drawn(image: Tensor) -> np.ndarray:
        return (image.double() * 255).round().byte().permute(1, 2, 0).numpy()

    for article in page.section("predictions").all("article"):
        test = article.one("div", "seen").all("img", "test")[0]
        np.testing.assert_array_equal(decode(test), drawn(data[0][position_of(article)]))
        for tile in article.all("li", "tile"):
            position = int(tile.all("span", "index")[0].text.removeprefix("train "))
            np.testing.assert_array_equal(decode(tile.one("img")), drawn(explainer.samples.sample(position)[0]))


def test_every_picture_has_words_for_those_who_do_not_see_it(page):
    images = page.root.all("img")
    of_maps = 2 + 1 + 8 * 3 + 1  # its own with a scale; beside it, of each pair a training sample and two maps; a scale
    assert len(images) == 8 * (1 + 8 + of_maps) + 7
    assert all(image.attributes["alt"] for image in images)


def test_thumbnails_stand_in_for_the_training_set(without_pictures: Explainer, data, tmp_path: Path, read, decode):
    path = write_report(without_pictures, data, tmp_path / "page.html", num_errors=2, num_correct=0, rule=None)
    rows = read(path.read_text(encoding="utf-8")).section("suspects").one("tbody").all("tr")
    np.testing.assert_array_equal(decode(rows[0].one("img")), np.full((3, 3), 77))
    assert "give train= to see it" in rows[1].text


def test_tables_become_bars(table_explainer: Explainer, tmp_path: Path, read):
    values = torch.randn(12, 9, generator=torch.Generator().manual_seed(3))
    data = (values, torch.arange(12) % 3)
    path = write_report(table_explainer, data, tmp_path / "page.html", num_errors=1, num_correct=0, k=2, rule=None)
    article = read(path.read_text(encoding="utf-8")).section("predictions").one("article")
    position = position_of(article)
    strip = article.one("svg", "test").one("path").attributes["d"]
    bars = [tuple(map(float, bar)) for bar in re.findall(r"M(\S+) (\S+)h\S+?V(-?[\d.]+)h", strip)]
    assert len(bars) == 9
    heights = torch.tensor([zero - top for _, zero, top in bars])
    # One scale: heights are proportional to the values, to the two decimals they are written with.
    factor = float(heights[0] / values[position, 0])
    assert factor > 0
    torch.testing.assert_close(heights, values[position] * factor, atol=0.05, rtol=0.02)
    behind = [tile.all("path", "behind")[0].attributes["d"] for tile in article.all("li", "tile")]
    assert set(behind) == {strip}


def test_text_is_shown_and_escaped(table_explainer: Explainer, tmp_path: Path, read):
    task = dataclasses.replace(table_explainer.task, display=lambda row: f"<em>{float(row[0]):.4f}</em>")
    shown = dataclasses.replace(table_explainer, task=task)
    values = torch.randn(6, 9, generator=torch.Generator().manual_seed(3))
    data = (values, torch.arange(6) % 3)
    path = write_report(shown, data, tmp_path / "page.html", num_errors=1, num_correct=0, rule=None)
    page = read(path.read_text(encoding="utf-8"))
    article = page.section("predictions").one("article")
    assert article.one("p", "test").text == f"<em>{float(values[position_of(article), 0]):.4f}</em>"
    assert page.root.all("em") == []


# ── the file ─────────────────────────────────────────────────────────────────────────────────────


def test_nothing_is_loaded_from_elsewhere(page):
    assert "http://" not in page.html and "https://" not in page.html and "@import" not in page.html
    for tag in ("script", "link", "iframe", "object", "embed"):
        assert page.root.all(tag) == []
    assert all(element.attributes["src"].startswith("data:image/") for element in page.root.all("img"))
    assert "url(" not in page.html


def test_names_of_users_are_text_and_never_markup(page):
    assert "<script" not in page.html.lower() and "<b>file" not in page.html
    assert "<script>alert('dog')</script>" in page.section("classes").text
    assert page.root.one("h1").text == "<i>Animals</i> & co"
    assert page.root.all("i") == [] and page.root.all("b") == []


def test_links_and_labels_lead_somewhere(page):
    everything = page.root.all("section") + page.root.all("article") + page.root.all("h2") + page.root.all("h3")
    anchors = [element.attributes["id"] for element in everything if "id" in element.attributes]
    assert len(anchors) == len(set(anchors))
    targets = [link.attributes["href"] for link in page.root.all("a")]
    assert targets and all(target.removeprefix("#") in anchors for target in targets)
    labelled = [e.attributes["aria-labelledby"] for e in everything if "aria-labelledby" in e.attributes]
    assert set(labelled) <= set(anchors)


def test_headings_go_down_one_level_at_a_time(page):
    levels = [int(level) for level in re.findall(r"<h([1-6])", page.html)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_equal_input_makes_equal_bytes(explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path: Path):
    first, second = (write_report(explainer, data, tmp_path / name, num_errors=2) for name in ("a.html", "b.html"))
    assert first == tmp_path / "a.html"
    assert first.read_bytes() == second.read_bytes()


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_have_contrast(scheme: str):
    """WCAG 2.1, level AA: at least 4.5 to 1 for text, in both colour schemes."""
    blocks = re.findall(r":root \{(.*?)\}", CSS.read_text(encoding="utf-8"), re.DOTALL)
    tokens = dict(re.findall(r"--([a-z]+): (#[0-9a-f]{6})", blocks[["light", "dark"].index(scheme)]))
    for ground in ("paper", "faint"):
        for ink in ("ink", "quiet", "for", "against"):
            dark, light = sorted((luminance(tokens[ground]), luminance(tokens[ink])))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (ground, ink)


# ── other outputs, little data, bad input ────────────────────────────────────────────────────────


def test_a_loss_has_negative_proponents_and_says_so(
    explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path: Path, read
):
    task = dataclasses.replace(explainer.task, output=loss)
    path = write_report(
        dataclasses.replace(explainer, task=task), data, tmp_path / "p.html", num_errors=2, num_correct=0
    )
    page = read(path.read_text(encoding="utf-8"))
    assert "less loss is better, so they are the negative scores" in page.section("reading").text
    for article in page.section("predictions").all("article"):
        proponents, opponents = tiles_of(article)
        assert proponents and all(score < 0 for score, _ in proponents)
        assert opponents and all(score > 0 for score, _ in opponents)
        rows = article.one("table", "split").rows()
        assert value(rows[1][1]) < 0 < value(rows[2][1])


def test_a_linearised_output_is_named(explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path: Path, read):
    task = dataclasses.replace(explainer.task, output=margin)
    path = write_report(
        dataclasses.replace(explainer, task=task), data, tmp_path / "p.html", num_errors=1, num_correct=0
    )
    page = read(path.read_text(encoding="utf-8"))
    assert "The margin is not linear in the logits" in page.section("reading").text
    assert "Proponents raise this margin" in page.section("predictions").text


def test_data_without_errors(explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path: Path, read):
    network = class_logits(explainer.record(data).outputs).argmax(1)
    path = write_report(explainer, (data[0], network), tmp_path / "p.html", num_correct=2, top_suspects=0)
    page = read(path.read_text(encoding="utf-8"))
    assert "The network makes no error on this data set: 2 correct ones" in page.section("predictions").text
    assert all(element.attributes["id"] != "suspects" for element in page.root.all("section"))
    assert [row[4] for row in page.section("classes").one("table").rows()] == ["0", "0", "0"]


def test_nothing_asked_for(explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path: Path, read):
    path = write_report(explainer, data, tmp_path / "p.html", num_errors=0, num_correct=0)
    assert "No predictions were asked for" in read(path.read_text(encoding="utf-8")).section("predictions").text


def test_without_held_out_data_the_page_says_so(table_explainer: Explainer, tmp_path: Path, read):
    data = (torch.zeros(2, 9), torch.tensor([0, 1]))
    page = read(write_report(table_explainer, data, tmp_path / "p.html", rule=None).read_text("utf-8"))
    assert "no held-out data was given" in page.root.one("p", "lead").text


@pytest.mark.parametrize("name", ["num_errors", "num_correct", "top_suspects"])
def test_refuses_negative_numbers(name: str, explainer: Explainer, data: tuple[Tensor, Tensor], tmp_path: Path):
    with pytest.raises(ValueError, match=f"`{name}` is -1; expected 0 or more"):
        write_report(explainer, data, tmp_path / "p.html", **{name: -1})
    with pytest.raises(ValueError, match="`k` is 0; expected at least 1"):
        write_report(explainer, data, tmp_path / "p.html", k=0)
    assert list(tmp_path.iterdir()) == []
