"""ForwardInfluence against the exact influence of linear softmax models, and the formula written out."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

import dualview as dv
from dualview.data.forward_influence import ForwardInfluence, matched_temperature, residuals
from dualview.engine.record import Activations
from dualview.engine.site import Site
from dualview.ops.layout import plain
from dualview.ops.projection import project

NUM, UNITS, CLASSES, L2 = 40, 5, 3, 0.05


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labelled() -> tuple[Tensor, Tensor]:
    labels = torch.arange(NUM) % CLASSES
    return draw(NUM, UNITS) + one_hot(labels, UNITS), labels


def network(*widths: int) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [part for pair in pairwise(widths) for part in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def explained(method: ForwardInfluence, model: nn.Module, train: tuple[Tensor, Tensor], test: Tensor, **fit: object):
    task = dv.Task(model, output=dv.margin)
    return dv.fit(method, task, train, progress=False, **fit).explain(test).dense()


def trained_linear(inputs: Tensor, targets: Tensor, weights: Tensor) -> nn.Linear:
    """Minimise (1/n) Σ_i w_i CE_i + L2/2 ‖[W, b]‖² by Newton's method, to a gradient of rounding."""
    ones = torch.cat([inputs, torch.ones(len(inputs), 1, dtype=torch.float64)], dim=1)

    def loss(flat: Tensor) -> Tensor:
        logits = ones @ flat.view(CLASSES, -1).T
        each = cross_entropy(logits, targets, reduction="none")
        return (weights * each).sum() / len(targets) + L2 / 2 * flat.square().sum()

    flat = torch.zeros(CLASSES * ones.shape[1], dtype=torch.float64)
    derivatives = torch.autograd.functional
    for _ in range(30):
        flat = flat - torch.linalg.solve(derivatives.hessian(loss, flat), derivatives.jacobian(loss, flat))
    assert float(derivatives.jacobian(loss, flat).norm()) < 1e-14
    model = nn.Linear(inputs.shape[1], CLASSES).double()
    with torch.no_grad():
        model.weight.copy_(flat.view(CLASSES, -1)[:, :-1])
        model.bias.copy_(flat.view(CLASSES, -1)[:, -1])
    return model


def test_it_is_the_exact_influence_on_a_linear_softmax_model():
    """The score is the derivative of the margin in a sample's weight in the training, which is retrained here."""
    (inputs, targets), test = labelled(), draw(4, UNITS, seed=1)
    whole = torch.ones(NUM, dtype=torch.float64)
    model = trained_linear(inputs, targets, whole)
    method = ForwardInfluence(
        sites=1, damping=L2, temperature=1.0, curvature="full", absolute=True, scaled=False, constant=1.0
    )
    found = explained(method, nn.Sequential(model), (inputs, targets), test)
    predicted, step = model(test).argmax(1), 1e-4
    for i in range(0, NUM, 7):
        nudge = step * one_hot(torch.tensor(i), NUM)
        up, down = (dv.margin(trained_linear(inputs, targets, whole + s * nudge)(test), predicted) for s in (1, -1))
        # the central difference is off by step² times the third derivative, about 1e-8
        torch.testing.assert_close(found[:, i], ((up - down) / (2 * step)).detach(), rtol=1e-5, atol=1e-8)


def slow_scores(
    model: nn.Sequential, train: tuple[Tensor, Tensor], test: Tensor, change: Callable[[Tensor], Tensor] = lambda x: x
) -> Tensor:
    """Write out the sum over classes v_c phi(x)ᵀ (H_c + λI)⁻¹ phi_i r_ic/n for the inputs of both Linear layers."""
    inputs, targets = train
    parts = [(rows, model[:2](rows)) for rows in (inputs, test)]
    norms = [math.sqrt(float(part.square().sum(1).mean())) for part in parts[0]]
    phi, mine = (
        torch.cat([a / norms[0], b / norms[1], torch.full((len(a), 1), 0.3, dtype=torch.float64)], dim=1)
        for a, b in parts
    )
    phi, mine = change(phi), change(mine)
    p = (model(inputs) / 1.5).softmax(1)
    apart = CLASSES / (CLASSES - 1)
    blocks = [apart * (phi * (p[:, c] * (1 - p[:, c]))[:, None]).T @ phi / len(phi) for c in range(CLASSES)]
    damping = 5.0 * sum(float(block.trace()) for block in blocks) / CLASSES / len(phi)
    logits = model(test)
    v = one_hot(logits.argmax(1), CLASSES) - logits.masked_fill(
        one_hot(logits.argmax(1), CLASSES).bool(), -torch.inf
    ).softmax(1)
    alpha = (one_hot(targets, CLASSES) - p) / len(phi)
    return sum(
        v[:, [c]] * (mine @ (blocks[c] + damping * torch.eye(phi.shape[1]).double()).inverse() @ phi.T) * alpha[:, c]
        for c in range(CLASSES)
    )  # pyright: ignore[reportReturnType]


@pytest.mark.parametrize("hidden", [8, 60])
@torch.no_grad()
def test_scores_are_the_formula_over_all_layers(hidden: int):
    """With 60 hidden units there are fewer samples than units: then the fit is in the space of samples."""
    model, train, test = network(UNITS, hidden, CLASSES), labelled(), draw(4, UNITS, seed=1)
    found = explained(ForwardInfluence(), model, train, test)
    expected = slow_scores(model, train, test)
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))


@torch.no_grad()
def test_a_cut_keeps_the_scores_of_the_largest_residuals():
    model, train, test = network(UNITS, 8, CLASSES), labelled(), draw(4, UNITS, seed=1)
    whole, cut = (explained(ForwardInfluence(cut=share), model, train, test) for share in (None, 0.45))
    sizes = residuals(model(train[0]), train[1], temperature=1.5).norm(dim=1)
    kept = sizes >= sizes.sort(descending=True).values[17]
    assert int(kept.sum()) == 18
    torch.testing.assert_close(cut, whole * kept, rtol=1e-12, atol=1e-15)


@torch.no_grad()
def test_an_entmax_gives_sure_samples_no_score():
    model, (inputs, targets) = network(UNITS, 8, CLASSES), labelled()
    model[2].get_parameter("weight").mul_(30)
    targets = model(inputs).argmax(1)
    explainer = dv.fit(ForwardInfluence(order=2.0), model, (inputs, targets), progress=False)
    ordered = model(inputs).sort(1, descending=True).values
    sure = ordered[:, 0] - ordered[:, 1] >= 1.5 * 10 / 3  # sparsemax at T: a gap of T
    assert 0 < int(sure.sum()) < NUM
    found = explainer.explain(inputs)
    assert torch.equal(found.train_index, (~sure).nonzero().squeeze(1))
    assert explainer.certificate["support_share"] == pytest.approx(float((~sure).double().mean()))


def test_the_matched_temperature_makes_training_as_doubtful_as_held_out():
    logits, targets = 6 * draw(200, CLASSES), torch.arange(200) % CLASSES
    logits = logits + 8 * one_hot(targets, CLASSES)
    held = logits[:100] / 2.5
    found = matched_temperature(logits[:100], targets[:100], held, targets[:100])
    assert found == pytest.approx(2.5, rel=1e-6)
    assert matched_temperature(held, targets[:100], logits[:100], targets[:100]) == pytest.approx(1.0, rel=1e-9)


@torch.no_grad()
def test_the_temperature_is_matched_on_what_is_held_out():
    model, (inputs, targets) = network(UNITS, 8, CLASSES), labelled()
    model[2].get_parameter("weight").mul_(20)
    targets = model(inputs).argmax(1)
    others = draw(30, UNITS, seed=2), torch.arange(30) % CLASSES
    fitted = dv.fit(ForwardInfluence(temperature="matched"), model, (inputs, targets), held_out=others, progress=False)
    wanted = matched_temperature(model(inputs), targets, model(others[0]), others[1])
    assert 1 < wanted and fitted.certificate["temperature"] == wanted
    alone = dv.fit(ForwardInfluence(temperature="matched"), model, (inputs, targets), progress=False)
    assert alone.certificate["temperature"] == 1.5


class Branches(nn.Module):
    """Two convolutions that share an input, norms between, a wide early layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.main, self.side = nn.Conv2d(4, 6, 3, 2, 1), nn.Conv2d(4, 6, 1, 2)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x)).relu()
        return self.head((self.main(x) + self.side(x)).relu().mean((2, 3)))


@pytest.mark.parametrize(
    ("side", "sites", "expected"),
    [
        (8, "auto", ("stem", "main", "head")),
        (22, "auto", ("stem", "main", "head")),
        (32, "auto", ("main", "head")),
        (32, 3, ("stem", "main", "head")),
        (8, 1, ("head",)),
        (8, 9, ("stem", "main", "head")),
        (8, ("side", "head"), ("side", "head")),
    ],
)
def test_sites_are_inputs_of_the_last_layers_and_shared_ones_count_once(side: int, sites, expected: tuple[str, ...]):
    """At 22×22, main's 1,936 units are under the limit and stem's 484 above it."""
    model = Branches().eval()
    task = dv.Task(model, readout=Site("head", "input"))
    found = ForwardInfluence(sites=sites).representations(task, torch.zeros(3, 1, side, side)).train
    expected = expected[1:] if side == 22 else expected
    assert isinstance(found, Activations) and found.sites == tuple(Site(name, "input") for name in expected)
    assert not model.stem._forward_pre_hooks


@torch.no_grad()
def test_a_projection_gives_the_scores_of_projected_rows():
    model, train, test = network(UNITS, 60, CLASSES), labelled(), draw(4, UNITS, seed=1)
    found = explained(ForwardInfluence(projection=20, seed=3), model, train, test)
    expected = slow_scores(model, train, test, lambda rows: project((plain("", 66),), rows, width=20, seed=3))
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10 * float(expected.abs().max()))
    exact = explained(ForwardInfluence(), model, train, test)
    assert torch.equal(explained(ForwardInfluence(projection=50), model, train, test), exact)  # 40 samples span less


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sites": 0}, "`sites` must be"),
        ({"sites": "fc"}, "`sites` must be"),
        ({"temperature": 0.0}, "`temperature` must be a positive number"),
        ({"damping": math.inf}, "`damping` must be a positive number"),
        ({"curvature": "block"}, "`curvature` is 'block'"),
        ({"order": 3.0}, "`order` is 3.0"),
        ({"cut": 0.0}, "`cut` must be a share"),
        ({"projection": 0}, "`projection` must be"),
    ],
)
def test_settings_are_checked(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        ForwardInfluence(**settings)


def test_another_loss_is_refused():
    task = dv.Task(network(UNITS, 8, CLASSES), loss=nn.CrossEntropyLoss(label_smoothing=0.2))
    with pytest.raises(ValueError, match="derived for the cross-entropy"):
        dv.fit(ForwardInfluence(), task, labelled(), progress=False)


def test_a_readout_that_shares_its_input_with_another_head():
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.aux, self.fc = nn.Linear(4, 5), nn.Linear(5, 2), nn.Linear(5, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            h = self.body(x).relu()
            auxiliary = self.aux(h)
            return self.fc(h), auxiliary

    explainer = dv.fit(
        dv.ForwardInfluence(), dv.Task(Heads(), readout="fc"), (torch.randn(9, 4), torch.arange(9) % 3), progress=False
    )
    assert explainer.certificate["sites"] == ["body", "fc"]


def test_sites_that_are_none_are_refused():
    for sites in ((), 2.5, 0, None, [1, 2], True):
        with pytest.raises(ValueError, match='`sites` must be "auto", a number of layers, or the names of some'):
            dv.ForwardInfluence(sites)
    with pytest.raises(ValueError, match="`sites` names 'nope', which is no module of Linear"):
        dv.fit(
            dv.ForwardInfluence(("nope",)), nn.Linear(4, 3), (torch.randn(9, 4), torch.arange(9) % 3), progress=False
        )
    for wrong in ({"seed": -1}, {"constant": float("nan")}, {"order": 3.0}):
        with pytest.raises(ValueError, match=f"`{next(iter(wrong))}`"):
            dv.ForwardInfluence(**wrong)
