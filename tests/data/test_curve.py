"""The curve as a value: it converts, and comes back from JSON."""

import json

import pytest

from dualview.data._curve import Curve

FIDELITY = Curve(
    C=(1e-4, 1e-3, 1e-2),
    support_share=(0.9, 0.5, 0.25),
    seconds=(0.1, 0.2, 0.4),
    chosen=1,
    by="fidelity",
    num_held_out=200,
    fidelity=(0.9, 0.96, 0.94),
    fidelity_error=(0.021, 0.014, 0.017),
    shortfall=(0.05, 0.0, 0.02),
    shortfall_error=(0.01, 0.0, 0.01),
)
SUPPORT = Curve((1e-4, 1e-3), (0.9, 0.5), (0.1, 0.2), 1, "support", asked_support=0.4)


@pytest.mark.parametrize("curve", [FIDELITY, SUPPORT], ids=["fidelity", "support"])
def test_it_comes_back_from_json(curve: Curve):
    assert Curve.of(json.loads(json.dumps(curve.describe()))) == curve
    assert hash(Curve.of(curve.describe())) == hash(curve)


def test_it_becomes_a_table():
    table = FIDELITY.to_pandas()
    assert table["C"].tolist() == [1e-4, 1e-3, 1e-2] and table["fidelity"].tolist() == [0.9, 0.96, 0.94]
    assert table["chosen"].tolist() == [False, True, False] and len(FIDELITY) == 3
    assert table.columns.tolist() == [
        "C", "support_share", "seconds", "fidelity", "fidelity_error", "shortfall", "shortfall_error", "chosen",
    ]  # fmt: skip
    assert SUPPORT.to_pandas().columns.tolist() == ["C", "support_share", "seconds", "chosen"]


def test_it_says_what_was_chosen():
    assert repr(FIDELITY) == (
        "Curve(3 values of C from 0.0001 to 0.01; chosen C=0.001 by fidelity, support 50.0%, fidelity 96.0%)"
    )
    assert repr(SUPPORT) == "Curve(2 values of C from 0.0001 to 0.001; chosen C=0.001 by support, support 50.0%)"
    assert FIDELITY.reachable_support == (0.25, 0.9)
