"""Fits that differ by noise of known size: the report gives it back."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import dualview as dv

SEEDS = 5
SIGMA = 0.3


def slope(value: float) -> nn.Linear:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(value)
    return model


def fit(model: nn.Module, train: tuple[Tensor, Tensor], problem: str = "regression") -> dv.Explainer:
    return dv.fit(dv.GradDot(), dv.Task(model, problem=problem), train, progress=False)


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(n, 1, generator=generator, dtype=torch.float64) for n in (12, 12, 5))


@pytest.fixture(scope="module")
def noise() -> Tensor:
    return SIGMA * torch.randn(SEEDS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def test_seed_noise_of_known_size_is_recovered(data, noise):
    """Of y = w x under ½(y − t)², GradDot is −x x_i (w x_i − t_i): noise in w of size σ makes noise |x| x_i² σ."""
    inputs, labels, test = data
    over = [fit(slope(1 + float(e)), (inputs, labels)) for e in noise]
    found = dv.uncertainty(test, 0, over=over)
    mean = -test * (inputs * ((1 + noise.mean()) * inputs - labels)).T
    sd = test.abs() * inputs.square().T * noise.std()
    torch.testing.assert_close(found.mean, mean, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.sd, sd, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(found.signal_to_noise, mean / sd, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.noise_p, torch.erfc((mean / sd).abs() / math.sqrt(2)), rtol=1e-9, atol=1e-15)
    t = (mean / sd * math.sqrt(SEEDS)).numpy()
    torch.testing.assert_close(found.t_p, torch.from_numpy(2 * stats.t.sf(abs(t), SEEDS - 1)), rtol=1e-9, atol=2e-15)


def test_without_noise_every_score_that_is_not_zero_stands_out(data):
    inputs, labels, test = data
    found = dv.uncertainty(test, over=[fit(slope(1.0), (inputs, labels)) for _ in range(3)])
    assert not found.sd.any() and not found.t_p[found.mean != 0].any() and not found.noise_p[found.mean != 0].any()


def test_checkpoints_of_a_run_are_averaged_first(data, noise):
    inputs, labels, test = data
    first, second, third, fourth = (fit(slope(float(w)), (inputs, labels)) for w in noise[:4])
    found = dv.uncertainty(test, over=[[first, second], [third, fourth]])
    scores = [one.explain(test).dense() for one in (first, second, third, fourth)]
    torch.testing.assert_close(found.mean, torch.stack(scores).mean(0), rtol=1e-12, atol=1e-14)
    expected = ((scores[0] + scores[1]) - (scores[2] + scores[3])).abs() / 2 / math.sqrt(2)
    torch.testing.assert_close(found.sd, expected, rtol=1e-11, atol=1e-14)


def test_all_fits_explain_what_the_first_network_predicts(data):
    """The second network predicts the other class; both must speak of the first one's."""
    inputs = data[0]
    models = [nn.Linear(1, 2).double() for _ in range(2)]
    with torch.no_grad():
        for sign, model in zip((1.0, -1.0), models, strict=True):
            model.weight.copy_(torch.tensor([[sign], [-sign]]))
            model.bias.zero_()
    classes = {"no": 1, "yes": 0}
    labels = ["yes" if x > 0 else "no" for x in inputs]
    over = [
        dv.fit(dv.GradDot(), dv.Task(model, classes=classes), list(zip(inputs, labels, strict=True)), progress=False)
        for model in models
    ]
    found = dv.uncertainty(data[2], over=over)
    targets = ["yes" if x > 0 else "no" for x in data[2]]
    expected = torch.stack([one.explain(data[2], targets).dense() for one in over]).mean(0)
    torch.testing.assert_close(found.mean, expected, rtol=1e-12, atol=1e-14)


def test_the_table_names_each_number(data, noise):
    inputs, labels, test = data
    found = dv.uncertainty(test, over=[fit(slope(float(w)), (inputs, labels)) for w in noise])
    table = found.to_pandas()
    assert [*table.columns] == ["test", "train", "mean", "sd", "signal_to_noise", "noise_p", "t_p"]
    assert len(table) == 5 * 12
    line = table[(table["test"] == 3) & (table["train"] == 7)].iloc[0]
    assert line["signal_to_noise"] == float(found.signal_to_noise[3, 7]) and line["t_p"] == float(found.t_p[3, 7])
    assert all(group["signal_to_noise"].abs().is_monotonic_decreasing for _, group in table.groupby("test"))


def test_fits_that_cannot_be_compared_are_refused(data):
    inputs, labels, test = data
    one = fit(slope(1.0), (inputs, labels))
    for other, message in (
        (
            fit(slope(1.0), (inputs[:5], labels[:5])),
            "fits 0 and 1 of `over` differ in their training samples: 12 and 5",
        ),
        (fit(slope(1.0), (inputs, labels + 1)), "differ in their labels"),
        (
            dv.fit(
                dv.GradDot(), dv.Task(slope(1.0), problem="regression"), (inputs, labels), held_out=0.5, progress=False
            ),
            "differ in their fitted samples$",
        ),
        (
            dv.fit(dv.GradCos(), dv.Task(slope(1.0), problem="regression"), (inputs, labels), progress=False),
            "differ in their method: {'method': 'GradDot'",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            dv.uncertainty(test, over=[one, other])
    for too_few in ([], [one], [[one, one]]):
        with pytest.raises(ValueError, match="`over` must hold two or more"):
            dv.uncertainty(test, over=too_few)


def test_the_seed_of_a_projection_is_what_may_differ(data):
    inputs, labels, test = data
    task = dv.Task(slope(1.0), problem="regression")
    over = [dv.fit(dv.RelatIF(dv.EKFAC(seed=k)), task, (inputs, labels), progress=False) for k in range(2)]
    assert dv.uncertainty(test, over=over).num_runs == 2
