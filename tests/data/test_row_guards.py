"""What is checked of every fit and explanation unasked; each guard has a case that fires and one that does not."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import dualview as dv
from dualview.data._gradients import Scored
from dualview.data._guards import BelowNoise, outliers
from dualview.data._method import Prepared
from dualview.data._newton import newton, prepared
from dualview.data.tracin import Rates
from dualview.engine.tables import Rows, Table
from dualview.errors import DualViewWarning, NonFiniteError
from dualview.ops.layout import Layout, plain
from dualview.ops.projection import project


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(90) % 3
    return torch.randn(3, 6, generator=generator)[labels] + torch.randn(90, 6, generator=generator), labels


@pytest.fixture
def model() -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def fit(method, model, data):
    return dv.fit(method, model, data, progress=False)


def table_of(values: Tensor, layout: Layout = ()) -> Table:
    index = torch.arange(len(values))
    return Table([Rows(values, values.new_zeros(len(values), 3), index % 3, index)], layout)


# ── outliers ─────────────────────────────────────────────────────────────────────────────────────


def test_rows_of_outlying_norm_are_counted_and_named():
    """Logarithms of norms with deviation 1: the limit is e⁵ ≈ 150 medians, give or take what 1,000 say of it."""
    logs = torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    logs[[7, 17, 20]] = torch.tensor([300.0, 500.0, 60.0], dtype=torch.float64).log()
    logs[30] = -torch.inf  # a row of zeros
    found = outliers(table_of(logs.exp()[:, None] * torch.tensor([[0.6, 0.8]], dtype=torch.float64)), "features")
    assert (found["count"], found["index"]) == (2, [17, 7])
    median = float(logs[logs > -torch.inf].median().exp())
    assert found["times_median"] == pytest.approx([500 / median, 300 / median])


def test_an_outlier_is_ten_times_the_median_at_least():
    values = torch.ones(200, 1)
    values[:2] = torch.tensor([[9.9], [-10.1]])
    found = outliers(table_of(values), "features")
    assert (found["count"], found["index"]) == (1, [1])


def test_members_are_judged_by_themselves_and_outputs_not_at_all():
    values = torch.ones(60, 4)
    values[:, 2] = 1e-4
    values[3, 2], values[5, 1], values[9, 3] = 0.05, 1e9, 1e9
    layout = plain("a", 1), plain("outputs", 1), plain("a", 1), plain("outputs", 1)
    found = outliers(table_of(values, layout), "gradients")
    assert found["index"] == [3] and found["times_median"] == pytest.approx([500])


@pytest.mark.parametrize("method", [dv.GradDot(), dv.DualView(C=0.02)])
def test_a_sample_that_outweighs_all_others_is_warned_of(method, model, data):
    inputs, labels = data
    inputs[41] *= 1e6
    labels[41] = int((model(inputs[41:42]).argmax() + 1) % 3)  # or its loss had no gradient
    noun = "gradients" if method == dv.GradDot() else "features"
    with pytest.warns(DualViewWarning, match=f"{noun} of training sample 41 are .* times the median in size, and lar"):
        explainer = fit(method, model, (inputs, labels))
    assert explainer.certificate["outliers"]["index"] == [41]


def test_one_large_sample_of_many_is_in_the_certificate_alone(model, data):
    inputs, labels = data
    inputs[41] *= 100
    assert fit(dv.DualView(C=0.02), model, data).certificate["outliers"]["index"] == [41]
    assert "outliers" not in fit(dv.Confidence(), model, data).certificate  # nothing but outputs


# ── what is not finite ───────────────────────────────────────────────────────────────────────────


class Lengths(nn.Module):
    """Multiply by the norm, whose gradient at zero is NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return x * x.square().sum(1, keepdim=True).sqrt()


def root_of_loss(logits: Tensor, targets: Tensor) -> Tensor:
    return cross_entropy(logits, targets, reduction="none").sqrt()


@pytest.mark.parametrize("method", [dv.GradDot(), dv.TRAK(), dv.DualView(C=0.02)])
def test_a_sample_with_nan_is_named(method, model, data):
    data[0][50, 2] = torch.nan
    with pytest.raises(NonFiniteError, match="^`train`: sample 50 has NaN or infinite .*1 of the 90 samples") as caught:
        fit(method, model, data)
    assert caught.value.index == (50,)


def test_a_sample_with_a_nan_gradient_is_named(model, data):
    inputs, labels = data
    inputs[33] = 0
    bent = nn.Sequential(nn.Linear(6, 8, bias=False), Lengths(), nn.Linear(8, 3))
    with pytest.raises(NonFiniteError, match="^`train`: sample 33 has NaN or infinite gradients"):
        fit(dv.GradDot(), bent, data)
    with torch.no_grad():
        inputs[33] = 1e4 * inputs[34]
        labels[33] = model(inputs[33:34]).argmax()
        assert model(inputs[33:34]).softmax(1).amax() == 1
    with pytest.raises(NonFiniteError, match="^`train`: sample 33 has NaN or infinite outputs, or gradients"):
        fit(dv.GradDot(), dv.Task(model, loss=root_of_loss), data)


# ── batches ──────────────────────────────────────────────────────────────────────────────────────


class BesideTheMean(nn.Module):
    """Put the mean of the batch beside each sample, where the readout does not look at it."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(12, 3)
        self.fc.weight.data[:, 6:] = 0

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.cat([x, x.mean(0).expand_as(x)], dim=1))


class Unsteady(torch.autograd.Function):
    """Give inputs on as they are, and ever larger multiples of gradients."""

    calls = itertools.count(1)

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * next(Unsteady.calls)


class UnsteadyGradients(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return self[1](Unsteady.apply(self[0](x)))


def test_features_that_depend_on_the_batch_are_warned_of(data):
    message = "BesideTheMean gives a sample other features alone than among others, at 'fc'"
    with pytest.warns(DualViewWarning, match=message):
        fit(dv.DualView(C=0.02), BesideTheMean(), data)
    fit(dv.GradDot(), BesideTheMean(), data)  # gradients of such layers are taken sample by sample


def test_gradients_that_are_another_each_time_are_warned_of(data):
    model = UnsteadyGradients(nn.Linear(6, 8), nn.Linear(8, 3))
    with pytest.warns(
        DualViewWarning, match="UnsteadyGradients gives a sample other gradients alone than among others"
    ):
        fit(dv.GradDot(), model, data)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_rounding_in_gradients_is_no_dependence_on_the_batch(scale, model, data):
    """At 1,000 the network is so sure of its labels that their gradients are rounding alone."""
    model[2].weight.data *= scale
    with torch.no_grad():
        labels = model(data[0]).argmax(1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(dv.GradDot(), model, (data[0], labels))
    assert not caught


# ── precision ────────────────────────────────────────────────────────────────────────────────────


def test_a_model_in_half_precision_is_compared_with_float32(model, data):
    inputs, labels = data
    assert "half_precision" not in fit(dv.GradDot(), model, data).certificate
    facts = fit(dv.GradDot(), model.bfloat16(), (inputs.bfloat16(), labels)).certificate["half_precision"]
    assert facts["dtype"] == "bfloat16" and 0.98 < facts["rank_correlation"][0] < 1  # 8 bits: 0.4 % of each number


@pytest.mark.parametrize("checkpoints", [1, 2])
def test_gradients_that_half_precision_cannot_tell_apart_are_refused(checkpoints, model, data):
    """Losses below 6e-8, float16's least number, have the gradient 0 there."""
    inputs, _ = data
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    sure = nn.Sequential(*model[:2], nn.Linear(8, 3))
    sure[2].weight.data, sure[2].bias.data = 300 * model[2].weight.data, 300 * model[2].bias.data
    task = dv.Task(sure.half(), checkpoints=[model.half(), sure][2 - checkpoints :])
    with pytest.raises(ValueError, match=r"float16 the inner products of the gradients of 32 .*Fit model\.float\(\)"):
        fit(dv.TracIn(), task, (inputs.half(), labels))


class Casts(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.bfloat16())


def test_a_model_that_cannot_be_run_in_float32_is_warned_of(data):
    with pytest.warns(DualViewWarning, match=r"what bfloat16 does to the ranks of scores is not known: a float32 copy"):
        explainer = fit(dv.DualView(C=0.02), Casts(6, 3).bfloat16(), data)
    assert explainer.certificate["half_precision"] == {"dtype": "bfloat16", "rank_correlation": None}


# ── noise of projections ─────────────────────────────────────────────────────────────────────────


NUMBERS, WIDTH, SEEDS = 400, 64, 60
LAYOUT = plain("projection", WIDTH), plain("outputs", 3)


def gradients(rows: int, seed: int) -> Tensor:
    """Gradients with a decaying spectrum and norms that differ."""
    generator = torch.Generator().manual_seed(seed)
    decay = torch.arange(1, NUMBERS + 1, dtype=torch.float64) ** -0.5
    whole = torch.randn(rows, NUMBERS, generator=generator, dtype=torch.float64) * decay
    return whole * (1 + torch.rand(rows, 1, generator=generator, dtype=torch.float64))


def projected(whole: Tensor, seed: int) -> Table:
    small = project((plain("", NUMBERS),), whole, width=WIDTH, kind="gaussian", seed=seed)
    return table_of(torch.cat([small, small.new_zeros(len(small), 3)], dim=1), LAYOUT)


def root_mean_square(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


@pytest.mark.parametrize("name", ["GradDot", "GradCos", "TRAK", "TRAK, little ridge"])
def test_the_noise_is_the_standard_deviation_over_seeds(name):
    """Of 60 seeds it is known to 1/√120, or 9 %, for one pair, and much better for 600; the formula is exact to first
    order in 1/width. The cosine's is taken at its estimate, TRAK's to 12 % by 32 random vectors."""
    train, test = gradients(50, 0), gradients(12, 1)
    method: Any = {
        "GradDot": dv.GradDot(projection=WIDTH, kind_of_projection="gaussian"),
        "GradCos": dv.GradCos(projection=WIDTH, kind_of_projection="gaussian"),
    }.get(name, dv.TRAK(projection=WIDTH, kind_of_projection="gaussian"))
    scores, noise = [], []
    for seed in range(SEEDS):
        table, tested = projected(train, seed), projected(test, seed).parts[0]
        state: Any = Scored(torch.arange(50))
        block = Prepared(tested.values, tested.outputs, LAYOUT)
        if isinstance(method, dv.TRAK):
            ridge = 1.0 if name == "TRAK" else 0.01
            state, _ = newton(table, torch.arange(50), ridge, absolute=False, sloped=False)
            block = prepared(state, tested, table)
        scores.append(method.score(state, block, table.parts[0]))
        noise.append(method.noise(state, block, table.parts[0], scores[-1]))
    over_seeds = torch.stack(scores).std(0)
    expected = torch.stack(noise).square().mean(0).sqrt()
    assert root_mean_square(expected) == pytest.approx(root_mean_square(over_seeds), rel=0.15)
    assert ((expected / over_seeds) < 2).all() and ((expected / over_seeds) > 0.5).all()


def test_noise_of_checkpoints_adds_in_squares():
    """Rates 3 and 4 of two checkpoints with the same rows make 5 times the noise of one, products apart."""
    table, tested = projected(gradients(20, 0), 0), projected(gradients(4, 1), 0).parts[0]
    rows, zeros = table.parts[0], torch.zeros(4, 20, dtype=torch.float64)
    block, state = Prepared(tested.values, tested.outputs, LAYOUT), Scored(torch.arange(20))
    one = dv.GradDot(projection=WIDTH).noise(state, block, rows, zeros)
    twice = Prepared(tested.values.repeat(1, 2), tested.outputs, LAYOUT * 2)
    rates = Rates(torch.arange(20), torch.tensor([3.0, 4.0], dtype=torch.float64))
    both = dv.TracIn(projection=WIDTH).noise(rates, twice, rows._replace(values=rows.values.repeat(1, 2)), zeros)
    assert one is not None
    torch.testing.assert_close(both, 5 * one, rtol=1e-12, atol=0)


def test_nothing_but_noise_is_below_it_in_two_scores_of_three_and_warned_of():
    """Gradients that are orthogonal: P(|N(0, 1)| < 1) = 0.683, known to 0.023 from 399 scores."""
    table, state = projected(torch.eye(NUMBERS, dtype=torch.float64), 3), Scored(torch.arange(NUMBERS))
    method = dv.GradDot(projection=WIDTH, kind_of_projection="gaussian")
    tested, rows = table.rows(torch.tensor([0])), table.rows(torch.arange(1, NUMBERS))
    block = Prepared(tested.values, tested.outputs, LAYOUT)
    scores = method.score(state, block, rows)
    tally = BelowNoise(1, lower_is_better=False)
    tally.add(slice(0, 1), scores, method.noise(state, block, rows, scores))
    with pytest.warns(DualViewWarning, match=r"1 of 1 test samples may be noise .* test sample 0 are below it: raise "):
        (share,) = tally.checks()["below_noise"]
    assert share == pytest.approx(math.erf(0.5**0.5), abs=0.07)


def test_scores_are_counted_block_by_block():
    """Row 0: 1 of 3 below, the strongest above; row 1: proponents are negative, and no larger than √(2 ln 4) noises."""
    scores = torch.tensor([[9.0, 0.5, 0.0, -2.0], [1.5, -1.2, 0.7, -0.1]])
    noise = torch.tensor([[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 0.01]])
    for size in (1, 3, 4):
        upper, lower = BelowNoise(2, lower_is_better=False), BelowNoise(2, lower_is_better=True)
        for start in range(0, 4, size):
            columns = slice(start, start + size)
            upper.add(slice(0, 1), scores[:1, columns], noise[:1, columns])
            lower.add(slice(1, 2), scores[1:, columns], noise[1:, columns])
        found = upper.checks()
        assert found == {"below_noise": pytest.approx([1 / 3, 0]), "noise": [0.5, 0.0]}
        with pytest.warns(DualViewWarning, match="1 of 2 test samples may be noise .* 25% .* test sample 1"):
            found = lower.checks()
        assert found["below_noise"] == [0, 0.25] and found["noise"] == pytest.approx([0, 0.7])


@pytest.mark.filterwarnings("ignore:the strongest proponents")
def test_an_explanation_tells_the_noise_of_its_projection(model, data):
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(6, 60), nn.ReLU(), nn.Linear(60, 3))
    explainer = fit(dv.GradDot(projection=256), wide, data)
    result = explainer.explain(data[0][:7])
    checks = {name: result.checks[name] for name in ("below_noise", "noise")}
    rows = explainer.rows(data[0][:7])
    block = explainer.method.prepare(explainer.state, explainer.task, rows, explainer.table)
    noise = explainer.method.noise(explainer.state, block, explainer.table.parts[0], result.scores)
    below = result.scores.abs() < noise
    assert 0.05 < below.float().mean() < 0.6  # or the following would say little
    assert checks["below_noise"] == pytest.approx(below.double().mean(1).tolist())
    assert checks["noise"] == pytest.approx((result.scores.abs() * below).amax(1).tolist())
    assert {name: explainer.explain(data[0][:7], top=3).checks[name] for name in checks} == checks


@pytest.mark.parametrize("method", [dv.GradDot(), dv.GradDot(projection=1000), dv.TRAK(projection=1000)])
def test_rows_that_were_not_projected_have_no_noise(method, model, data):
    assert "noise" not in fit(method, model, data).explain(data[0][:3]).checks
