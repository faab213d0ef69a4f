"""Figures of columns, series, terms and allocations: every number on them is a result's own."""

from collections.abc import Callable

import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

import dualview as dv
from dualview.plotting.words import number, percent, signed

Faults = Callable[[Figure], list[str]]
NAMES = ["age", "height", "weight", "a column with a name that is much too long for its room", "pulse", "b", "c", "d"]


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def said(figure: Figure) -> str:
    return " ".join(words(figure))


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def smooth(*layers: nn.Module) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for layer in layers:
            for parameter in layer.parameters():
                nn.init.normal_(parameter, std=0.4)
        return nn.Sequential(*layers).eval()


@pytest.fixture(scope="module")
def table() -> dv.Task:
    return dv.Task(smooth(nn.Linear(8, 12), nn.Tanh(), nn.Linear(12, 3)), class_names=["low", "middle", "high"])


def segments(figure: Figure, colour: str) -> list[tuple[float, float]]:
    """Return left end and length in inches of every filled box of this colour."""
    from matplotlib.colors import to_hex

    width = figure.get_figwidth()
    boxes = [box for box in figure.artists if to_hex(box.get_facecolor()) == colour]
    return [(box.get_x() * width, box.get_width() * width) for box in boxes]


def test_columns_are_bars_with_names_values_and_sums(table: dv.Task, faults: Faults):
    inputs = draw(3, 8)
    scores = dv.IntegratedGradients(steps=64).attribute(table, inputs)
    figure = dv.plot(scores, 1, names=NAMES, k=5, true_targets=[0, 2, 1])
    values = scores.values[1]
    order = values.abs().argsort(descending=True)
    shown = words(figure)
    for place in order[:5].tolist():
        assert signed(float(values[place])) in shown and number(float(inputs[1, place])) in shown
    assert "3 others" in shown and signed(float(values[order[5:]].sum())) in shown
    assert f"The scores sum to {signed(float(values.sum()))}" in said(figure)
    assert f"change from the baseline is {signed(float(scores.change[1]))}" in said(figure)
    assert "true label high" in said(figure)
    assert faults(figure) == []


def test_bars_are_as_long_as_their_scores(table: dv.Task):
    from dualview.plotting.style import AGAINST, FOR

    scores = dv.IntegratedGradients(steps=64).attribute(table, draw(2, 8))
    figure = dv.plot(scores, 0)
    lengths = sorted(length for _, length in [*segments(figure, FOR), *segments(figure, AGAINST)])
    expected = scores.values[0].abs().double().sort().values
    ratio = torch.tensor(lengths, dtype=torch.float64) / expected
    torch.testing.assert_close(ratio, ratio.mean().expand(8), rtol=1e-5, atol=0)
    assert len(segments(figure, FOR)) == int((scores.values[0] > 0).sum())


def test_terms_of_columns_are_stacked(table: dv.Task, faults: Faults):
    from dualview.plotting.bars import PALETTE

    scores = dv.Taylor(steps=64).attribute(table, draw(2, 8))
    figure = dv.plot(scores, 0, names=NAMES)
    assert {"own, first order", "own, higher orders", "interactive"} <= set(words(figure))
    lengths = [sum(length for _, length in segments(figure, colour)) for colour in PALETTE[:3]]
    sizes = [float(part[0].abs().sum()) for part in scores.split.values()]
    chips = 0.11  # the legend's own boxes
    ratio = [(length - chips) / size for length, size in zip(lengths, sizes, strict=True)]
    assert max(ratio) == pytest.approx(min(ratio), rel=1e-4)
    assert faults(figure) == []


def test_series_are_lines_before_their_scores(faults: Faults):
    model = smooth(nn.Conv1d(2, 4, 5, padding=2), nn.Tanh(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 2))
    inputs = draw(2, 2, 60)
    scores = dv.IntegratedGradients(steps=64).attribute(model, inputs)
    figure = dv.plot(scores, 1, names=["left", "right"])
    lines = [axes.lines[0].get_ydata() for axes in figure.axes if axes.lines and len(axes.lines[0].get_ydata()) == 60]
    for line, own in zip(lines, inputs[1].double().numpy(), strict=True):
        scaled = 0.08 + 0.84 * (own - own.min()) / (own.max() - own.min())
        assert abs(line - scaled).max() < 1e-6
    heights = [[bar.get_height() for bar in axes.patches] for axes in figure.axes if len(axes.patches) == 60]
    torch.testing.assert_close(torch.tensor(heights), scores.values[1].double(), rtol=1e-6, atol=1e-9)
    assert {"left", "right", number(float(inputs[1, 0].max()))} <= set(words(figure))
    assert faults(figure) == []
    flat = dv.plot(dv.Gradient().attribute(smooth(nn.Linear(100, 2)), draw(1, 100)))
    assert any(len(axes.patches) == 100 for axes in flat.axes) and faults(flat) == []


def test_terms_of_images_are_maps_on_one_scale(faults: Faults):
    model = smooth(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 36, 2))
    scores = dv.Taylor(players=dv.Patches(2), steps=64).attribute(model, torch.rand(2, 1, 8, 8))
    figure = dv.plot(scores, [1, 0])
    for row in (0, 1):
        for part in (scores.values, *scores.split.values()):
            assert f"sums to {signed(float(part[row].sum()))}" in words(figure)
    assert {"all together", "own, first order", "own, higher orders", "interactive"} <= set(words(figure))
    assert faults(figure) == []


def test_allocations_show_where_scores_come_from(table: dv.Task, faults: Faults):
    found = dv.Taylor().allocation(dv.Occlusion(), table, draw(2, 8))
    figure = dv.plot(found, 1, names=NAMES, k=6)
    assert "2 others" in words(figure) and "interactions it takes part in" in words(figure)
    for one in found.principles(1):
        verdict = "kept to" if one.kept else "missed by"
        assert f"{one.name[0].upper()}{one.name[1:]}: {verdict} {percent(one.missed)}" in said(figure)
    for player in found.scores[1].abs().argsort(descending=True)[:6].tolist():
        assert signed(float(found.scores[1, player])) in words(figure)
    assert percent(float(found.fidelity[1, 1])) in said(figure)
    assert faults(figure) == [] and found._repr_png_().startswith(b"\x89PNG")


def test_what_cannot_be_drawn_is_refused(table: dv.Task):
    scores = dv.Gradient().attribute(table, draw(2, 8))
    with pytest.raises(ValueError, match="choose from 'auto'"):
        dv.plot(scores, form="pie")
    with pytest.raises(ValueError, match=r"^form='auto' draws a row of numbers as bars, .* names 2; form='maps' draws"):
        dv.plot(scores, [0, 1])
    with pytest.raises(ValueError, match=r"^form='bars' draws one sample, and `test` names 2$"):
        dv.plot(scores, [0, 1], form="bars")
    with pytest.raises(ValueError, match="names"):
        dv.plot(scores, names=["too", "few"])
    with pytest.raises(IndexError):
        dv.plot(scores, 2)
    both = dv.Gradient().attribute(dv.Task(table.model, output=(dv.logit, dv.margin)), draw(2, 8))
    with pytest.raises(ValueError, match="of_output"):
        dv.plot(both)
    assert dv.plot(scores, [0, 1], form="maps").axes


def test_many_terms_are_drawn_as_seven(table: dv.Task, faults: Faults):
    scores = dv.Taylor("exact").attribute(table, draw(1, 8))
    figure = dv.plot(scores)
    assert {"alone", "size 6", "further terms"} <= set(words(figure)) and "size 7" not in words(figure)
    assert faults(figure) == []
    maps = dv.plot(scores, form="maps")
    further = scores.split["size_7"] + scores.split["size_8"]
    assert f"sums to {signed(float(further.sum()))}" in words(maps) and faults(maps) == []


def test_effects_are_not_summed(table: dv.Task, faults: Faults):
    scores = dv.Occlusion().attribute(table, draw(1, 8))
    figure = dv.plot(scores, k=5)
    assert "Effects do not add up." in words(figure) and "3 smaller ones are not drawn." in words(figure)
    assert "sum to" not in said(figure) and "3 others" not in words(figure) and faults(figure) == []
    series = dv.plot(dv.Gradient().attribute(smooth(nn.Linear(100, 2)), draw(1, 100)))
    assert "Similarities do not add up." in words(series)


def test_one_of_several_inputs_is_drawn_term_by_term(faults: Faults):
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = smooth(nn.Linear(21, 6), nn.Tanh(), nn.Linear(6, 2))

        def forward(self, image: Tensor, row: Tensor) -> Tensor:
            return self.inner(torch.cat([image.flatten(1), row], dim=1))

    inputs = {"image": torch.rand(2, 1, 4, 4), "row": draw(2, 5)}
    scores = dv.Taylor(steps=64).attribute(Two().eval(), inputs)
    for name, form in (("image", "auto"), ("row", "auto"), ("row", "bars")):
        figure = dv.plot(scores, 1, input=name, form=form)
        total, change = signed(float(scores.values[name][1].sum())), signed(float(scores.change[1]))
        assert f"scores of this input sum to {total}, of a change from the baseline of {change}" in said(figure)
        assert {"own, first order", "own, higher orders", "interactive"} <= set(words(figure)) and faults(figure) == []


def test_what_cannot_be_told_is_not_called_missed(faults: Faults):
    from matplotlib.colors import to_hex

    from dualview.plotting.style import AGAINST

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Linear(6, 2, bias=False).eval()
    fitted = dv.plot(dv.Taylor().allocation(dv.LRP("epsilon"), model, draw(1, 6)))
    (line,) = [text for text in fitted.texts if text.get_text().startswith("No unrelated allocation: unknown")]
    assert to_hex(line.get_color()) != AGAINST and faults(fitted) == []
    same = draw(1, 6)
    nothing = dv.plot(dv.Taylor().allocation(dv.IntegratedGradients(same), model, same))
    assert "not expressed by them: 0.0\u202f%" in said(nothing) and "nan" not in said(nothing)
    assert faults(nothing) == []
