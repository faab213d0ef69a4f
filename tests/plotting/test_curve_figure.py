"""The figure of the choice of C: every value stands where it belongs, and the chosen one is marked."""

import numpy as np
import pytest
from matplotlib.figure import Figure

import dualview as dv
from dualview.plotting.style import INK

FIDELITY = dv.Curve(
    C=(1e-5, 1e-4, 1e-3, 1e-2),
    support_share=(1.0, 0.8, 0.5, 0.25),
    seconds=(0.1, 0.1, 0.2, 0.4),
    chosen=2,
    by="fidelity",
    num_held_out=1200,
    fidelity=(0.7, 0.9, 0.965, 0.95),
    fidelity_error=(0.013, 0.009, 0.006, 0.007),
    shortfall=(0.2, 0.05, 0.0, 0.02),
    shortfall_error=(0.02, 0.01, 0.0, 0.01),
)
SUPPORT = dv.Curve((1e-4, 2e-4, 1e-3), (0.9, 0.42, 0.3), (0.1, 0.2, 0.2), 1, "support", asked_support=0.4)
ONE = dv.Curve((0.5,), (1.0,), (0.1,), 0, "fidelity", num_held_out=1, fidelity=(1.0,), fidelity_error=(0.0,))


def words(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.texts]


def test_both_quantities_stand_against_C():
    figure = dv.plot(FIDELITY)
    assert len(figure.axes) == 2
    for axes, values in zip(figure.axes, (FIDELITY.fidelity, FIDELITY.support_share), strict=True):
        assert axes.get_xscale() == "log"
        line = axes.get_lines()[1]  # after the band at the chosen value
        assert line.get_xdata().tolist() == list(FIDELITY.C) and line.get_ydata().tolist() == list(values)
        low, high = axes.get_ylim()
        assert low <= min(values) and max(values) <= high


def test_bars_are_one_standard_error():
    (bars,) = dv.plot(FIDELITY).axes[0].collections
    ends = np.array([segment[:, 1] for segment in bars.get_segments()])
    expected = np.array(FIDELITY.fidelity)[:, None] + np.array(FIDELITY.fidelity_error)[:, None] * [-1, 1]
    assert ends == pytest.approx(expected)
    assert not dv.plot(FIDELITY).axes[1].collections


def test_the_chosen_value_is_marked_and_named():
    figure = dv.plot(FIDELITY)
    for axes, value, label in zip(figure.axes, (0.965, 0.5), ("96.5\u202f%", "50.0\u202f%"), strict=True):
        (marked,) = [line for line in axes.get_lines() if line.get_markeredgecolor() == INK]
        assert (marked.get_xdata().tolist(), marked.get_ydata().tolist()) == ([1e-3], [value])
        assert [text.get_text() for text in axes.texts] == [label]
    assert words(figure)[0] == "C = 0.001, chosen for its fidelity"
    assert any("1\u202f200 held\u2011out samples" in word for word in words(figure))


def test_without_held_out_samples_support_stands_alone_beside_what_was_asked_for():
    figure = dv.plot(SUPPORT)
    (axes,) = figure.axes
    assert any(line.get_ydata() == [0.4, 0.4] for line in axes.get_lines())
    assert any("40.0\u202f% asked for" in word for word in words(figure))
    assert not any("Bars" in word for word in words(figure))


@pytest.mark.parametrize("curve", [FIDELITY, SUPPORT, ONE], ids=["fidelity", "support", "one"])
def test_it_is_legible(curve: dv.Curve, faults):
    assert faults(dv.plot(curve)) == []
    assert curve._repr_png_().startswith(b"\x89PNG")
