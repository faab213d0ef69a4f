"""Heat maps of a page are those of `render`, in the order of the tiles, on the scale that is said."""

import dataclasses
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import dualview as dv
from dualview import LRP, DualView, Explainer
from dualview.engine.pictures import picture_of
from dualview.errors import DualViewWarning
from dualview.plotting.heatmap import coloured, heat, limit
from dualview.report import write_report

NUM_FEATURES = 9


def value(text: str) -> float:
    """Read a number as a page writes it."""
    return float(re.sub(r"[\s\u202f≤≥%]", "", text.replace("−", "-")))


def digit(text: str) -> float:
    """Return what one unit in the last place of a written number is worth."""
    mantissa, _, exponent = text.replace("−", "-").partition("e")
    return 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))


def position_of(article) -> int:
    return int(article.attributes["id"].removeprefix("sample-"))


def train_index_of(tile) -> int:
    return int(tile.all("span", "index")[0].text.removeprefix("train "))


def tiles_of(article) -> list:
    return article.all("li", "tile")


def panels_of(article) -> list:
    return [element for element in article.one("div", "pairs").children if "pair" in element.classes]


def caption(figure) -> dict[str, str]:
    """Return what stands below a map: the number behind each phrase."""
    lines = [line.text for line in figure.one("figcaption").all("span", "index")]
    pairs = [re.fullmatch(r"(sums to|absorbed on the way|most on) (.*)", line) for line in lines]
    return {found.group(1): found.group(2) for found in pairs if found}


def on_test_of(panel):
    return panel.all("figure")[0]


def on_train_of(panel):
    return panel.all("figure")[2]


def paint(relevance: Tensor, end: float, sample: Tensor) -> np.ndarray:
    return coloured(heat(relevance), end, picture_of(sample))


# ── which maps, and on which scale ───────────────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def maps(page, explainer: Explainer, data: tuple[Tensor, Tensor]) -> dict[int, dv.Maps]:
    """Render what the page shows, in one call: position of the sample → maps of its tiles, in their order."""
    articles = page.section("predictions").all("article")
    positions = [position_of(article) for article in articles]
    pairs = [(row, train_index_of(tile)) for row, article in enumerate(articles) for tile in tiles_of(article)]
    assert len(pairs) == 8 * 8
    test, train = map(list, zip(*pairs, strict=True))
    relation = dv.relate(explainer, data[0][positions])
    rendered = dv.render(relation, LRP("epsilon-plus-flat"), test=test, train=train)
    return {position: rendered.of_test(row) for row, position in enumerate(positions)}


def end_of_scale(maps: dv.Maps) -> float:
    return limit([heat(one) for side in (maps.test, maps.train) for one in side])


def test_each_tile_has_the_maps_of_its_own_pair(page, maps, explainer: Explainer, data, decode):
    for article in page.section("predictions").all("article"):
        position = position_of(article)
        of_sample, end = maps[position], end_of_scale(maps[position])
        panels = panels_of(article)
        assert len(panels) == len(tiles_of(article)) == 8
        for pair, (tile, panel) in enumerate(zip(tiles_of(article), panels, strict=True)):
            sample = explainer.samples.sample(train_index_of(tile))[0]
            on_test, on_train = decode(on_test_of(panel).one("img")), decode(on_train_of(panel).one("img"))
            np.testing.assert_array_equal(on_test, paint(of_sample.test[pair], end, data[0][position]))
            np.testing.assert_array_equal(on_train, paint(of_sample.train[pair], end, sample))
            picture = panel.all("figure")[1].one("img")
            assert picture.attributes == {**tile.one("img").attributes, "class": "test pixels"}
        drawn = {panel.all("img")[0].attributes["src"] for panel in panels}
        assert len(drawn) == len(panels)  # no two pairs have the same map, so none can stand for another


def test_a_panel_is_named_and_scored_like_its_tile(page):
    for article in page.section("predictions").all("article"):
        position = position_of(article)
        for tile, panel in zip(tiles_of(article), panels_of(article), strict=True):
            train, score = train_index_of(tile), tile.one("span", "score")
            heading = panel.one("h4")
            assert heading.text == f"Where {score.text} from train {train} lies, on both samples"
            assert heading.one("span").classes == [kind for kind in score.classes if kind != "score"]
            assert panel.attributes["aria-label"] == f"Pair of sample {position} and training sample {train}"
            alts = [image.attributes["alt"] for image in panel.all("img")]
            assert alts[0].startswith(f"heat map of sample {position}, paired with training sample {train}: sums to ")
            assert alts[1].startswith(f"training sample {train}, label ")
            assert alts[2].startswith(f"heat map of training sample {train}, paired with sample {position}: sums to ")


def test_the_samples_own_relevance_stands_beside_it(page, maps, data, decode):
    for article in page.section("predictions").all("article"):
        own = maps[position_of(article)].own
        end = limit([heat(own.values[0])])
        figure = article.one("figure", "own")
        np.testing.assert_array_equal(
            decode(figure.all("img")[0]), paint(own.values[0], end, data[0][position_of(article)])
        )
        said = caption(figure)["sums to"]
        assert value(said) == pytest.approx(float(own.account.seed[0]), abs=0.51 * digit(said))
        ends = [value(part.text) for part in figure.one("span", "scale").all("span")]
        assert ends == [pytest.approx(sign * end, rel=0.051) for sign in (-1, 1)]


def test_all_pairs_of_a_prediction_share_the_scale_that_is_said(page, maps):
    for article in page.section("predictions").all("article"):
        of_sample = maps[position_of(article)]
        end = end_of_scale(of_sample)
        low, high = article.one("div", "pairs").one("span", "scale").all("span")
        assert (value(low.text), value(high.text)) == (pytest.approx(-end, rel=0.051), pytest.approx(end, rel=0.051))
        beyond = max(heat(one).max() for one in of_sample.test) > end
        assert high.text.startswith("≥") or not beyond
        note = article.one("div", "pairs").one("p", "note").text
        assert "per pixel" in note and "one scale for all pairs of this prediction" in note


def test_sums_are_the_scores_and_little_that_was_absorbed_is_not_mentioned(page, maps):
    """Flat and z+ exclude biases, and this network's relevance meets no zero denominator."""
    for article in page.section("predictions").all("article"):
        of_sample = maps[position_of(article)]
        for pair, panel in enumerate(panels_of(article)):
            for figure, side in ((on_test_of(panel), of_sample.test), (on_train_of(panel), of_sample.train)):
                said = caption(figure)
                assert list(said) == ["sums to"]
                assert said["sums to"] == panel.one("h4").one("span").text
                assert value(said["sums to"]) == pytest.approx(
                    float(side[pair].sum()), abs=0.51 * digit(said["sums to"])
                )


# ── picking ──────────────────────────────────────────────────────────────────────────────────────


def test_every_tile_can_be_picked_by_its_label_and_the_first_is(page):
    identifiers = re.findall(r'\sid="([^"]*)"', page.html)
    assert len(identifiers) == len(set(identifiers))
    radios = page.root.all("input")
    assert len(radios) == 8 * 8
    targets = [label.attributes["for"] for label in page.root.all("label")]
    assert sorted(targets) == sorted(radio.attributes["id"] for radio in radios)
    groups = set()
    for article in page.section("predictions").all("article"):
        radios = [tile.one("label").one("input") for tile in tiles_of(article)]
        assert {radio.attributes["type"] for radio in radios} == {"radio"}
        assert [radio.attributes["value"] for radio in radios] == [str(place) for place in range(8)]
        assert ["checked" in radio.attributes for radio in radios] == [True] + [False] * 7
        (name,) = {radio.attributes["name"] for radio in radios}
        groups.add(name)
        assert all(
            tile.one("label").attributes["for"] == tile.one("input").attributes["id"] for tile in tiles_of(article)
        )
    assert len(groups) == 8  # picking in one prediction leaves the others as they are


def test_a_picked_tile_shows_its_panel_alone(page):
    """Browsers that cannot follow a picked tile to its panel (no :has) show every panel."""
    rules = re.search(r"@supports selector\(:has\(a\)\) \{(.*?)\n\}\n", page.html, re.DOTALL).group(1)
    assert re.search(r"\.pair \{ display: none; \}", rules)
    shown = re.findall(r'\.neighbours:has\(\.pick\[value="(\d+)"\]:checked\) \.pair-(\d+)', rules)
    assert shown == [(str(place), str(place)) for place in range(8)]
    for article in page.section("predictions").all("article"):
        kinds = [next(kind for kind in panel.classes if kind != "pair") for panel in panels_of(article)]
        assert kinds == [f"pair-{place}" for place in range(8)]
        (group,) = [part for part in article.all("div", "neighbours")]
        assert len(group.all("input")) == len(group.all("div", "pair")) == 8  # the rule looks inside one prediction


def test_how_to_read_them_is_said(page):
    text = page.section("reading").text
    assert "Blue speaks for the prediction, orange against it" in text
    assert "explain the surrogate’s score of that pair" in text
    assert "LRP('epsilon-plus-flat')" in text


def test_photographs_are_shrunk_to_the_size_they_are_drawn_at(tmp_path: Path, read, decode):
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 3, 200, 120, generator=generator), torch.arange(12) % 2
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 2, 9, 9), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32, 2))
    fitted = dv.fit(DualView(C=1.0), model, (images, labels), progress=False)
    path = write_report(fitted, (images, labels), tmp_path / "p.html", num_errors=0, num_correct=1, k=1, top_suspects=1)
    panel = read(path.read_text("utf-8")).section("predictions").one("article").all("div", "pair")[0]
    for figure in panel.all("figure"):
        assert decode(figure.one("img")).shape == (100, 60, 3)
        assert figure.one("img").attributes["src"].startswith("data:image/jpeg")


# ── rows of numbers, and what cannot be drawn ────────────────────────────────────────────────────


@pytest.fixture(scope="module")
def rows() -> tuple[Tensor, Tensor]:
    return torch.randn(12, NUM_FEATURES, generator=torch.Generator().manual_seed(3)), torch.arange(12) % 3


def heights(path: str) -> dict[int, float]:
    """Return the signed heights of bars, upward, by their place in the row."""
    found = re.findall(r"M(\S+) (\S+)h\S+?V(-?[\d.]+)h", path)
    return {int(float(left) // (100 / NUM_FEATURES)): float(zero) - float(top) for left, zero, top in found}


@pytest.mark.parametrize("output", [dv.logit, dv.loss])
def test_rows_of_numbers_are_signed_bars(output, table_explainer: Explainer, rows, tmp_path: Path, read):
    explainer = dataclasses.replace(table_explainer, task=dataclasses.replace(table_explainer.task, output=output))
    path = write_report(explainer, rows, tmp_path / "p.html", num_errors=1, num_correct=0, k=2, rule=LRP("z-plus"))
    article = read(path.read_text("utf-8")).section("predictions").one("article")
    train = [train_index_of(tile) for tile in tiles_of(article)]
    relation = dv.relate(explainer, rows[0][position_of(article)][None])
    maps = dv.render(relation, LRP("z-plus"), train=train)
    end = max(float(side.abs().max()) for side in (maps.test, maps.train))
    for pair, panel in enumerate(panels_of(article)):
        for figure, relevance in ((on_test_of(panel), maps.test[pair]), (on_train_of(panel), maps.train[pair])):
            favours, opposes = (heights(figure.one("path", kind).attributes["d"]) for kind in ("favours", "opposes"))
            bars = torch.zeros(NUM_FEATURES)
            for place, height in (favours | opposes).items():
                bars[place] = height
            # Half of the box is `end`; heights are written to a hundredth.
            torch.testing.assert_close(bars, relevance / end * 30, atol=0.011, rtol=0)
            for_it = relevance < 0 if output is dv.loss else relevance > 0  # a smaller loss speaks for the model
            assert set(favours) <= set(for_it.nonzero().flatten().tolist()) and not set(favours) & set(opposes)
            strongest = relevance.abs().argsort(descending=True)[:3].tolist()
            named = [int(place) for place in re.findall(r"value (\d+) \(", caption(figure)["most on"])]
            assert named == strongest
    assert {kind for panel in panels_of(article) for kind in panel.one("h4").one("span").classes} == {"for", "against"}


def test_what_was_absorbed_makes_up_for_what_the_map_lacks(table_explainer: Explainer, rows, tmp_path: Path, read):
    with pytest.warns(DualViewWarning, match="was absorbed on the way"):
        path = write_report(table_explainer, rows, tmp_path / "p.html", num_errors=2, num_correct=2)
    page = read(path.read_text("utf-8"))
    assert "LRP('epsilon')" in page.section("reading").text  # flat would spread it evenly over a dense layer's inputs
    checked = 0
    for article in page.section("predictions").all("article"):
        for panel in panels_of(article):
            score = panel.one("h4").one("span").text
            for figure in (on_test_of(panel), on_train_of(panel)):
                said = caption(figure)
                amount, share = re.fullmatch(
                    r"(\S+) \((\S+) %\)", said["absorbed on the way"].replace("\u202f", " ")
                ).groups()
                parts = (said["sums to"], amount)
                rounding = 0.51 * sum(digit(text) for text in (score, *parts))
                assert sum(map(value, parts)) == pytest.approx(value(score), abs=rounding)
                of_score = abs(value(amount) / value(score))
                near = 0.5 * (digit(amount) + of_score * digit(score)) / abs(value(score))
                assert value(share) == pytest.approx(100 * of_score, abs=100 * near + 0.06)
                checked += 1
    assert checked > 50


def test_every_input_of_a_network_has_a_map_and_volumes_have_words(tmp_path: Path, read, decode):
    class TwoInputs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolution, self.volume = nn.Conv2d(1, 2, 3), nn.Conv3d(1, 2, 2)
            self.readout = nn.Linear(2 * 16 + 2 * 8, 3)

        def forward(self, image: Tensor, volume: Tensor) -> Tensor:
            parts = self.convolution(image).relu().flatten(1), self.volume(volume).relu().flatten(1)
            return self.readout(torch.cat(parts, 1))

    generator = torch.Generator().manual_seed(0)
    images, volumes = torch.rand(30, 1, 6, 6, generator=generator), torch.rand(30, 1, 3, 3, 3, generator=generator)
    data = [({"image": images[k], "volume": volumes[k]}, k % 3) for k in range(30)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = TwoInputs().eval()
    fitted = dv.fit(DualView(C=1.0), model, data, progress=False)
    path = write_report(fitted, data, tmp_path / "p.html", num_errors=1, num_correct=0, k=1)
    article = read(path.read_text("utf-8")).section("predictions").one("article")
    position, train = position_of(article), [train_index_of(tile) for tile in tiles_of(article)]
    relation = dv.relate(fitted, {"image": images[[position]], "volume": volumes[[position]]})
    maps = dv.render(relation, LRP("epsilon-plus-flat"), train=train)
    end = limit([heat(one) for side in (maps.test, maps.train) for one in side["image"]])
    for pair, panel in enumerate(panels_of(article)):
        for figure, side in ((on_test_of(panel), maps.test), (on_train_of(panel), maps.train)):
            np.testing.assert_array_equal(decode(figure.one("img")), coloured(heat(side["image"][pair]), end))
            (words,) = figure.all("p", "words")
            assert words.text.startswith("No map: relevance of 1×3×3×3, which has no picture; it sums to ")
            assert value(words.text.split()[-1]) == pytest.approx(float(side["volume"][pair].sum()), rel=5.1e-3)
            whole = sum(float(part[pair].sum()) for part in side.values())
            said = caption(figure)["sums to"]
            assert value(said) == pytest.approx(whole, abs=0.51 * digit(said))
            names = [part.text for part in figure.children if part.tag == "span"]
            assert [name.split(":")[0] for name in names] == ["input image", "input volume"]
            for name, part in zip(names, side.values(), strict=True):
                written = name.split(": ")[1]
                assert value(written) == pytest.approx(float(part[pair].sum()), abs=0.51 * digit(written))


class ImageAndRow(nn.Module):
    """A convolution of an image beside a dense layer on a row of numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.dense = nn.Conv2d(1, 2, 3), nn.Linear(NUM_FEATURES, 6)
        self.readout = nn.Linear(2 * 16 + 6, 3)

    def forward(self, image: Tensor, row: Tensor) -> Tensor:
        return self.readout(torch.cat([self.convolution(image).relu().flatten(1), self.dense(row).relu()], 1))


def test_one_dense_input_among_several_is_enough_for_epsilon(tmp_path: Path, read):
    generator = torch.Generator().manual_seed(0)
    images, values = (torch.rand(30, *shape, generator=generator) for shape in ((1, 6, 6), (NUM_FEATURES,)))
    data = [({"image": images[k], "row": values[k]}, k % 3) for k in range(30)]
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = ImageAndRow().eval()
    fitted = dv.fit(DualView(C=1.0), model, data, progress=False)
    flat = LRP("epsilon-plus-flat").attribute(fitted.task, {"image": images[:1], "row": values[:1]}).values
    assert float(flat["row"].std()) < 1e-6 < float(flat["image"].std())  # what a reader would be shown
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DualViewWarning)  # epsilon absorbs at this network's biases
        path = write_report(fitted, data, tmp_path / "p.html", num_errors=1, num_correct=0, k=1)
    page = read(path.read_text("utf-8"))
    assert "Rule: LRP('epsilon') ." in page.section("reading").text
    panel = panels_of(page.section("predictions").one("article"))[0]
    bars = {**heights(on_test_of(panel).one("path", "favours").attributes["d"])}
    bars |= heights(on_test_of(panel).one("path", "opposes").attributes["d"])
    assert len(set(bars.values())) > 3


def test_a_composite_may_be_given_by_name(explainer: Explainer, data, tmp_path: Path):
    pages = [
        write_report(explainer, data, tmp_path / name, num_errors=1, num_correct=0, k=1, rule=rule).read_bytes()
        for name, rule in (("a.html", "z-plus"), ("b.html", LRP("z-plus")))
    ]
    assert pages[0] == pages[1] and b"LRP(&#39;z-plus&#39;)" in pages[0]
    with pytest.raises(ValueError, match="rule='zplus' is not known; known are 'epsilon'"):
        write_report(explainer, data, tmp_path / "c.html", rule="zplus")
    assert not (tmp_path / "c.html").exists()
