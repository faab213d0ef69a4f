"""How numbers and outputs are written."""

import dataclasses

import pytest
import torch

from dualview import DataAttribution
from dualview.plotting.words import (
    carried_phrase,
    explained_title,
    measured_phrase,
    number,
    percent,
    score_sentence,
    side_phrases,
    signed,
    signed_to,
    summand,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (1.0, "1.00"),
        (-0.012345, "−0.0123"),
        (9.999, "10.00"),
        (1234.5, "1234"),
        (999999.0, "999999"),
        (1e6, "1.00e6"),
        (0.0001, "0.000100"),
        (-0.00002, "−2.00e−5"),
        (float("nan"), "undefined"),
        (float("-inf"), "−∞"),
    ],
)
def test_numbers(value: float, written: str):
    assert number(value) == written


def test_signs():
    assert [signed(value) for value in (0.5, -0.5, 0.0)] == ["+0.500", "−0.500", "0"]
    assert [signed_to(value, 2) for value in (72.888, -70.6, 0.001, -0.004)] == ["+72.89", "−70.60", "0.00", "0.00"]


def test_shares():
    shares = [percent(share) for share in (0.0, 1e-5, 0.00051, 0.125, 1.0, 6.807, -0.125)]
    assert shares == [f"{word}\u202f%" for word in ("0.0", "less than 0.1", "0.1", "12.5", "100.0", "680.7", "−12.5")]


def test_parts_of_a_sum_have_its_decimals():
    assert [summand(part, 0.690) for part in (223.8123, -223.31, 0.0)] == ["+223.812", "−223.310", "0.000"]
    assert [summand(part, 2489.0) for part in (0.4, -1300.6)] == ["0", "−1301"]
    assert summand(1.25, 0.0) == "+1.25" and summand(1.25, 1e7) == "+1.25"  # no decimals show such a sum


def test_what_is_carried():
    scores = torch.full((1234,), -0.5)
    carried = carried_phrase([-0.5] * 5, scores, "share")
    assert carried == "5 of 1\u202f234, which carry 0.4\u202f% of their sum"
    assert carried_phrase([-0.5] * 5, scores, "similarity") == "5 of 1\u202f234"
    assert carried_phrase([], scores[:0], "share") == "none: no score of that sign"


def test_titles():
    names = ["cat", "dog", "cow"]
    assert explained_title(0, 0, None, names) == "Predicted cat"
    assert explained_title(0, 2, 1, names) == "Predicted cat, true label dog, explained for cow"
    assert explained_title(0, 0, 1, None) == "Predicted 0, true label 1"


def test_outputs(grey: DataAttribution):
    names = ["cat", "dog", "cow"]
    assert measured_phrase(grey, 1, None) == "logit of class 1"
    assert measured_phrase(grey, 1, names) == "logit of “dog”"
    assert measured_phrase(dataclasses.replace(grey, measured="contrast(0, 2)"), 1, names) == "contrast(0, 2)"
    assert (
        measured_phrase(dataclasses.replace(grey, measured="log_probability"), 1, None) == "log probability of class 1"
    )


def test_kinds(grey: DataAttribution):
    effect = dataclasses.replace(grey, kind="effect")
    assert score_sentence(effect, 0, None) == "Each score estimates the sample’s effect on the logit of class 0."
    similarity = dataclasses.replace(grey, kind="similarity")
    assert score_sentence(similarity, 0, None) == "Each score is a similarity; sums of them mean nothing."
    assert side_phrases(similarity) == ("most alike", "least alike")
