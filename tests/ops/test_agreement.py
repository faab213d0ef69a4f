"""Agreement of two models, against scikit-learn, scipy and closed forms."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import matthews_corrcoef, r2_score

from dualview.ops import agreement
from dualview.ops.agreement import label_agreement, logit_agreement, matthews, number_agreement

labelings = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60)


@given(labelings)
def test_matthews_equals_scikit_learns_where_it_is_defined(pairs):
    first, second = torch.tensor(pairs).unbind(1)
    found = matthews(first, second, 5)
    if len(first.unique()) == 1 or len(second.unique()) == 1:
        assert math.isnan(found)
    else:  # whole numbers, exact in float64, and one square root
        assert found == pytest.approx(matthews_corrcoef(first.numpy(), second.numpy()), abs=1e-14)


def test_matthews_of_two_classes_is_the_phi_coefficient():
    """(TP·TN − FP·FN) / sqrt of the margins' product, for 40 / 10 / 5 / 45."""
    first = torch.tensor([1] * 50 + [0] * 50)
    second = torch.tensor([1] * 40 + [0] * 10 + [1] * 5 + [0] * 45)
    assert matthews(first, second, 2) == pytest.approx((40 * 45 - 10 * 5) / math.sqrt(50 * 50 * 45 * 55), abs=1e-15)
    assert matthews(first, first, 2) == 1.0
    assert matthews(first, 1 - first, 2) == -1.0


def test_matthews_does_not_overflow_for_many_samples():
    first = torch.arange(2).repeat(3_000_000)
    assert matthews(first, first, 2) == pytest.approx(1.0, abs=1e-15)


def logits(seed: int, rows: int = 40, num_classes: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    network, noise = torch.randn(2, rows, num_classes, generator=torch.Generator().manual_seed(seed))
    return (network + 0.7 * noise), network


def test_every_number_equals_its_own_reference():
    surrogate, network = logits(0)
    a, b = surrogate.double().numpy(), network.double().numpy()
    found = logit_agreement(surrogate, network)
    assert found["rows"] == found["kendall_rows"] == 40
    assert found["agreement"] == np.mean(a.argmax(1) == b.argmax(1))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(a.argmax(1), b.argmax(1)), abs=1e-14)
    cosines = (a * b).sum(1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    assert found["cosine"] == pytest.approx(cosines.mean(), abs=1e-14)
    taus = [stats.kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    assert found["kendall"] == pytest.approx(np.mean(taus), abs=1e-14)


def test_a_classifier_agrees_with_itself_and_scale_does_not_matter():
    _, network = logits(1)
    found = logit_agreement(3 * network.double(), network.double())
    expected = {"agreement": 1.0, "matthews": 1.0, "cosine": 1.0, "kendall": 1.0, "kendall_rows": 40, "rows": 40}
    assert found == pytest.approx(expected, abs=1e-14)


def test_rows_without_an_order_stand_apart_in_kendalls_mean():
    surrogate, network = logits(2)
    expected = logit_agreement(surrogate[5:], network[5:])["kendall"]
    surrogate[:5] = 1.0
    found = logit_agreement(surrogate, network)
    assert found["kendall_rows"] == 35 and found["rows"] == 40
    assert found["kendall"] == pytest.approx(expected, abs=1e-14)
    flat = logit_agreement(torch.ones(3, 4), torch.ones(3, 4))
    assert math.isnan(flat["kendall"]) and flat["kendall_rows"] == 0 and flat["agreement"] == 1.0


def test_beyond_the_budget_kendall_takes_evenly_spaced_rows(monkeypatch):
    surrogate, network = logits(3)
    monkeypatch.setattr(agreement, "KENDALL_BUDGET", 10 * 6**2)  # ten of the forty rows
    found = logit_agreement(surrogate, network)
    monkeypatch.undo()
    assert found["kendall_rows"] == 10 and found["rows"] == 40
    assert found["kendall"] == logit_agreement(surrogate[::4], network[::4])["kendall"]
    assert found["cosine"] == logit_agreement(surrogate, network)["cosine"]


# ── numbers and labels ───────────────────────────────────────────────────────────────────────────


def test_numbers_agree_as_scikit_learn_and_numpy_say():
    surrogate, network = logits(4)
    found = number_agreement(surrogate, network)
    a, b = surrogate.double().numpy(), network.double().numpy()
    assert found["r2"] == pytest.approx(r2_score(b, a, multioutput="variance_weighted"), abs=1e-14)
    assert found["correlation"] == pytest.approx(
        np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a.T, b.T, strict=True)]), abs=1e-14
    )
    assert found["rows"] == 40


def test_scale_and_offset_leave_the_correlation_alone_and_not_r2():
    _, network = logits(5)
    assert number_agreement(network, network) == pytest.approx({"r2": 1.0, "correlation": 1.0, "rows": 40}, abs=1e-14)
    moved = number_agreement(3 * network.double() - 1, network.double())
    assert moved["correlation"] == pytest.approx(1.0, abs=1e-14) and moved["r2"] < 0


def test_constant_outputs_stand_apart():
    surrogate, network = logits(6, num_classes=2)
    expected = number_agreement(surrogate[:, 1:], network[:, 1:])["correlation"]
    network[:, 0] = 2.0
    assert number_agreement(surrogate, network)["correlation"] == pytest.approx(expected, abs=1e-14)
    constant = number_agreement(surrogate, torch.ones_like(network))
    assert math.isnan(constant["r2"]) and math.isnan(constant["correlation"])


def test_labels_agree_by_their_sign():
    surrogate = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 1.0]])
    network = torch.tensor([[2.0, 1.0], [-0.5, 4.0], [-3.0, 2.0]])
    found = label_agreement(surrogate, network)
    assert found["agreement"] == 4 / 6 and found["rows"] == 3
    assert found["correlation"] == number_agreement(surrogate, network)["correlation"]
