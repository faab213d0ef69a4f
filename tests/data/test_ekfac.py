"""EKFAC against dense curvature: built sample by sample, inverted, multiplied; in float64."""

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import dualview as dv
from dualview.errors import DualViewWarning
from dualview.ops.gradients import dense
from tests.engine.gradients.one_by_one import one_by_one
from tests.engine.gradients.test_factored import Twice

CLASSES = 3


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(found: Tensor, expected: Tensor, rounding: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=rounding * float(expected.abs().max()))


NETWORKS = {
    "linear": lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, CLASSES, bias=False)),
    "convolution": lambda: nn.Sequential(
        nn.Conv2d(2, 3, 2, stride=2, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(27, CLASSES)
    ),
    "one position": lambda: nn.Sequential(nn.Conv2d(2, 8, 4), nn.Tanh(), nn.Flatten(), nn.Linear(8, CLASSES)),
    "two positions": lambda: nn.Sequential(nn.Conv2d(2, 20, (3, 4)), nn.Tanh(), nn.Flatten(), nn.Linear(40, CLASSES)),
    "tokens": Twice,
    "norms": lambda: nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(4, CLASSES)
    ),
}
OTHERS = {"norms": ["1.weight", "1.bias", "2.weight", "2.bias"]}


def made(name: str, rows: int = 12) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = NETWORKS[name]().double().eval()
    inputs = {"linear": draw(rows, 5), "tokens": torch.randint(7, (rows, 5))}.get(name, draw(rows, 2, 4, 4))
    return model, inputs, torch.arange(rows) % CLASSES


def fit(method: dv.EKFAC, model, inputs, labels, **settings) -> dv.Explainer:
    return dv.fit(method, model, (inputs, labels), progress=False, **settings)


def pseudo_gradients(model: nn.Module, inputs: Tensor) -> list[dict[str, Tensor]]:
    """Return the gradients "row param" whose outer products add up to the Gauss-Newton matrix, one backward each."""

    def along(c: int):
        def measure(logits: Tensor, target: Tensor) -> Tensor:
            p = logits[0].detach().softmax(0)
            return p[c].sqrt() * (logits[0, c] - (p * logits[0]).sum())

        return measure

    rows = torch.arange(len(inputs))
    return [one_by_one(model, inputs, rows, along(c)) for c in range(CLASSES)]


def matrices(weight: Tensor, bias: Tensor | None, block) -> Tensor:
    """Return gradients "row out in" of a layer, the bias as the last input."""
    shape = block.shape
    whole = (
        weight.reshape(len(weight), -1, shape.outputs).mT
        if shape.transposed
        else weight.reshape(len(weight), shape.outputs, -1)
    )
    return whole if bias is None else torch.cat([whole, bias[:, :, None]], dim=2)


def bases(block) -> tuple[Tensor, Tensor]:
    sizes = block.shape.outputs, block.shape.inputs
    return tuple(q if q.numel() else torch.eye(n).double() for q, n in zip(block.basis, sizes, strict=True))


# ── the curvature ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("curvature", ["ekfac", "diagonal"])
@pytest.mark.parametrize("name", NETWORKS)
def test_eigenvalues_are_second_moments_in_the_basis(name: str, curvature: str):
    model, inputs, labels = made(name)
    explainer = fit(dv.EKFAC(0.2, curvature, fisher="exact"), model, inputs, labels, batch_size=5)
    gradients, blocks = pseudo_gradients(model, inputs), explainer.state.blocks
    names = list(explainer.certificate["damping"])
    assert explainer.certificate["diagonal"] == OTHERS.get(name, [])
    traces = 0.0
    for layer, block in zip(names, blocks, strict=True):
        left, right = bases(block)
        close(left @ left.T, torch.eye(len(left)).double())
        close(right @ right.T, torch.eye(len(right)).double())
        alone = layer in OTHERS.get(name, [])
        pairs = [
            (one[layer], None) if alone else (one[f"{layer}.weight"], one.get(f"{layer}.bias")) for one in gradients
        ]
        turned = [left.T @ matrices(*pair, block) @ right for pair in pairs]
        expected = sum(one.square().sum(0) for one in turned) / len(inputs)
        close(block.eigenvalues, expected)
        assert block.damping == pytest.approx(0.2 * float(expected.mean()))
        assert explainer.certificate["damping"][layer] == block.damping
        traces += float(block.eigenvalues.sum())
    whole = sum(float(part.square().sum()) for one in gradients for part in one.values()) / len(inputs)
    assert traces == pytest.approx(whole, rel=1e-10)


def test_bases_and_kfac_are_those_of_the_papers_covariances():
    """Of a convolution by Grosse and Martens 2016, position by position: Ω is a sum over these, Γ a mean."""
    model, inputs, labels = made("convolution")
    block, last = fit(dv.EKFAC(curvature="kfac", fisher="empirical"), model, inputs, labels).state.blocks
    omega, gamma = torch.zeros(9, 9).double(), torch.zeros(3, 3).double()
    for x, y in zip(inputs, labels, strict=True):
        out = model[0](x[None])
        loss = F.cross_entropy(model[1:](out), y[None])
        (delta,) = torch.autograd.grad(loss, out)
        padded = F.pad(x, (1, 1, 1, 1))
        for i in range(3):
            for j in range(3):
                a = torch.cat([padded[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(), torch.ones(1).double()])
                omega += torch.outer(a, a) / len(inputs)
                gamma += torch.outer(delta[0, :, i, j], delta[0, :, i, j]) / len(inputs) / 9
    left, right = bases(block)
    whole = torch.kron(left.contiguous(), right.contiguous())
    close(whole * block.eigenvalues.flatten() @ whole.T, torch.kron(gamma, omega))
    assert last.eigenvalues.shape == (3, 28)


def test_kfac_of_tokens_counts_them():
    model, inputs, labels = made("tokens")
    (block, *_) = fit(dv.EKFAC(curvature="kfac", fisher="empirical"), model, inputs, labels).state.blocks
    counts = torch.bincount(inputs.flatten(), minlength=7).double()
    counts[0] = 0  # padding
    out = model.embedding(inputs)
    losses = F.cross_entropy(model.out(model.shared(model.shared(out).tanh()).mean(1)), labels, reduction="sum")
    (delta,) = torch.autograd.grad(losses, out)
    delta = delta[inputs != 0]
    left, _ = bases(block)
    close(left * block.eigenvalues.sum(1) @ left.T, delta.T @ delta / 12)
    close(block.eigenvalues / block.eigenvalues.sum(1, keepdim=True), (counts / counts.sum()).expand(4, 7))


class FirstToken(nn.Module):
    """Reads the first of several tokens; the others have no gradient."""

    def __init__(self):
        super().__init__()
        self.embedding, self.out = nn.Embedding(7, 4), nn.Linear(4, CLASSES)

    def forward(self, tokens):
        return self.out(self.embedding(tokens)[:, 0])


def test_kfac_counts_tokens_without_gradients_too():
    torch.manual_seed(0)
    model, inputs = FirstToken().double(), torch.randint(7, (12, 5))
    labels = torch.arange(12) % CLASSES
    (block, _) = fit(dv.EKFAC(curvature="kfac", fisher="empirical"), model, inputs, labels).state.blocks
    counts = torch.bincount(inputs.flatten(), minlength=7).double()
    close(block.eigenvalues, torch.outer(block.eigenvalues.sum(1), counts / 60))


# ── scores ───────────────────────────────────────────────────────────────────────────────────────


def gauss_newton_scores(model, train: Tensor, labels: Tensor, test: Tensor, damping: float) -> Tensor:
    """Return −∇φᵀ (F + λ)⁻¹ ∇ℓ_i / n of a network with one layer of outputs under half squared errors, F whole."""

    def output(logits, target):
        return logits[0, target[0]]

    def half_square(logits, target):
        return 0.5 * (logits - labels[target]).square().sum()

    jacobians = [one_by_one(model, train, torch.full((len(train),), c), output) for c in range(labels.shape[1])]
    whole = [torch.cat(list(one.values()), dim=1) for one in jacobians]
    matrix = sum(one.T @ one for one in whole) / len(train)
    matrix += damping * torch.eye(len(matrix)).double()
    mine = torch.cat(list(one_by_one(model, test, torch.ones(len(test), dtype=torch.int64), output).values()), dim=1)
    theirs = torch.cat(list(one_by_one(model, train, torch.arange(len(train)), half_square).values()), dim=1)
    return -mine @ torch.linalg.solve(matrix, theirs.T) / len(train)


@pytest.mark.parametrize("curvature", ["ekfac", "kfac"])
def test_of_a_linear_model_it_is_exact_influence(curvature: str):
    """The Gauss-Newton matrix of squared errors is E [a, 1] [a, 1]ᵀ ⊗ I, a Kronecker product."""
    torch.manual_seed(0)
    model, train, test, numbers = nn.Linear(5, 3).double(), draw(20, 5), draw(6, 5, seed=1), draw(20, 3, seed=2)
    task = dv.Task(model, problem="regression")
    method = dv.EKFAC(0.05, curvature, fisher="exact", absolute=True, tolerance=0.0)
    found = (
        dv.fit(method, task, (train, numbers), progress=False).explain(test, torch.ones(6, dtype=torch.int64)).dense()
    )
    close(found, gauss_newton_scores(model, train, numbers, test, 0.05))


def test_of_a_deep_linear_network_each_layer_is_exact_influence():
    """δ does not depend on the input, so that each layer's block is S ⊗ A; the blocks apart are left out."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 3)).double()
    train, test, numbers = draw(20, 5), draw(6, 5, seed=1), draw(20, 3, seed=2)
    task, columns = dv.Task(model, problem="regression"), torch.ones(6, dtype=torch.int64)
    for layer in range(2):
        method = dv.EKFAC(0.05, fisher="exact", absolute=True, parameters=str(layer))
        found = dv.fit(method, task, (train, numbers), progress=False).explain(test, columns).dense()
        model.requires_grad_(False)[layer].requires_grad_(True)
        alone = nn.Sequential(model[layer])
        features = train if layer == 0 else model[0](train).detach()
        others = test if layer == 0 else model[0](test).detach()
        if layer == 1:
            close(found, gauss_newton_scores(alone, features, numbers, others, 0.05))
            continue
        jacobian = model[1].weight.detach()  # of the outputs in the layer's outputs, for all samples
        a = torch.cat([features, torch.ones(20, 1).double()], dim=1)
        matrix = torch.kron(jacobian.T @ jacobian, a.T @ a / 20) + 0.05 * torch.eye(24).double()
        residuals = (model(train) - numbers).detach() @ jacobian
        theirs = (residuals[:, :, None] * a[:, None]).flatten(1)
        mine = (jacobian[1][None, :, None] * torch.cat([others, torch.ones(6, 1).double()], dim=1)[:, None]).flatten(1)
        close(found, -mine @ torch.linalg.solve(matrix, theirs.T) / 20)


@pytest.mark.parametrize("curvature", ["ekfac", "kfac", "diagonal", "identity"])
@pytest.mark.parametrize("name", NETWORKS)
def test_scores_self_influence_and_solve_are_one_inverse(name: str, curvature: str):
    model, inputs, labels = made(name)
    method = dv.EKFAC(0.2, curvature, fisher="exact", tolerance=0.0)
    explainer = fit(method, model, inputs, labels)
    own = one_by_one(model, inputs, labels)
    losses = torch.cat([own[name] for name, _ in model.named_parameters()], dim=1)
    by_column = one_by_one(model, inputs, labels, lambda logits, target: logits[0, target[0]])
    logits = torch.cat([by_column[name] for name, _ in model.named_parameters()], dim=1)
    layout = explainer.table.layout[:-1]
    close(dense(layout, explainer.table.values[:, :-CLASSES]), losses)
    solved = explainer.method.solve(explainer.state, losses, explainer.table)
    close(explainer.explain(inputs, labels).dense(), -logits @ solved.T / 12)
    close(explainer.self_influence(), (losses * solved).sum(1) / 12)
    assert not torch.allclose(solved, losses / 1.2) or curvature == "identity"


def test_terms_stay_within_the_error_that_they_report():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(60, 50), nn.Tanh(), nn.Linear(50, CLASSES)).double()
    scales = 10 ** -torch.linspace(0, 2, 60).double()
    inputs = draw(300, 60) * scales
    labels = torch.arange(300) % CLASSES
    exact, found = (
        fit(dv.EKFAC(fisher="exact", tolerance=tolerance), model, inputs, labels) for tolerance in (0.0, 0.01)
    )
    assert exact.certificate["terms"] == {} and "score_error" not in exact.certificate
    assert 0 < found.certificate["terms"]["0"] < 25
    truth, near = (one.explain(draw(100, 60, seed=1) * scales).dense() for one in (exact, found))
    error = float((near - truth).norm() / truth.norm())
    assert 0 < error < 0.02 and 0 < found.certificate["score_error"] < 0.02
    close(found.self_influence(), exact.self_influence())  # these are exact


# ── the Fisher matrix ────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", ["convolution", "norms"])
def test_sampled_labels_do_not_depend_on_batches_and_depend_on_the_seed(name: str):
    model, inputs, labels = made(name)
    with pytest.warns(DualViewWarning, match="labels that were drawn differ"):
        whole, again, other = (
            fit(dv.EKFAC(fisher="sampled", seed=seed), model, inputs, labels, batch_size=size).explain(inputs).dense()
            for seed, size in ((0, 12), (0, 5), (1, 12))
        )
    close(again, whole)
    assert not torch.allclose(other, whole, rtol=0.01)


@pytest.mark.parametrize("spread", [1.0, 30.0])
def test_drawn_labels_that_differ_from_the_prediction_are_counted_and_few_are_warned_of(spread: float):
    """Two classes with logits 0 and ±spread: 27 of 100 labels differ at 1, e⁻¹/(1 + e⁻¹), and none at 30."""
    torch.manual_seed(0)
    model = nn.Linear(1, 2, bias=False).double()
    model.weight.data = torch.tensor([[0.0], [spread]]).double()
    inputs, labels = torch.tensor([[-1.0], [1.0]]).double().repeat(200, 1), torch.arange(400) % 2
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", DualViewWarning)
        certificate = fit(dv.EKFAC(fisher="sampled"), model, inputs, labels).certificate
    differ = math.exp(-spread) / (1 + math.exp(-spread))
    assert certificate["fisher"] == "sampled"
    assert abs(certificate["surprising_labels"] - 400 * differ) <= 4 * math.sqrt(400 * differ)
    assert [str(one.message)[:18] for one in caught] == ([] if spread == 1 else ["only 0 of the 400 "])
    exact = fit(dv.EKFAC(fisher="exact"), model, inputs, labels).certificate
    assert exact["fisher"] == "exact" and "surprising_labels" not in exact


class Overwriting(nn.Module):
    """Scales its input in place, and has a parameter of no layer."""

    def __init__(self):
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.tensor(1.5)), nn.Linear(5, CLASSES)

    def forward(self, x):
        x *= 2
        return self.out(x).tanh() * self.scale


def test_a_model_in_training_mode_is_left_alone_and_scored_as_in_evaluation():
    torch.manual_seed(0)
    parts = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Overwriting()
    parts[3].out = nn.Linear(6, CLASSES)
    model, inputs, labels = nn.Sequential(*parts).double(), draw(12, 5) * 3 + 1, torch.arange(12) % CLASSES
    method = dv.EKFAC(fisher="exact")
    expected = fit(method, copy.deepcopy(model).eval(), inputs, labels).explain(inputs).dense()
    before, rng = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    close(fit(method, model.train(), inputs, labels).explain(inputs).dense(), expected)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


@pytest.mark.filterwarnings("ignore:Overwriting gives a sample another output alone")  # two runs of a probe
def test_inputs_that_the_model_overwrites_do_not_change_its_curvature():
    torch.manual_seed(0)
    model, inputs, labels = Overwriting().double(), draw(12, 5), torch.arange(12) % CLASSES
    given = inputs.clone()
    explainer = fit(dv.EKFAC(fisher="exact"), model, inputs, labels)
    assert torch.equal(inputs, given)

    def along(c: int):
        def measure(logits: Tensor, target: Tensor) -> Tensor:
            p = logits[0].detach().softmax(0)
            return p[c].sqrt() * (logits[0, c] - (p * logits[0]).sum())

        return measure

    by_class = [
        one_by_one(model, given.clone(), torch.arange(12), along(c))["scale"].square().sum() for c in range(CLASSES)
    ]
    close(explainer.state.blocks[-1].eigenvalues.flatten(), torch.stack(by_class).sum()[None] / 12)


# ── what a fit promises ──────────────────────────────────────────────────────────────────────────


def test_an_opened_fit_is_the_same(tmp_path):
    model, inputs, labels = made("norms")
    method = dv.EKFAC(fisher="exact")
    fitted = fit(method, model, inputs, labels, store=tmp_path)
    opened = dv.open(tmp_path, model)
    assert opened.method == method and opened.certificate == fitted.certificate
    close(opened.explain(inputs).dense(), fitted.explain(inputs).dense(), 1e-12)
    close(opened.self_influence(), fitted.self_influence(), 1e-12)


def test_other_layers_can_be_an_error():
    model, inputs, labels = made("norms")
    with pytest.raises(ValueError, match="1.weight, 1.bias, 2.weight, 2.bias belong to no .* KernelInfluence"):
        fit(dv.EKFAC(fallback="error"), model, inputs, labels)
    fit(dv.EKFAC(fallback="error", fisher="exact", parameters=("0", "4")), model, inputs, labels)


def test_a_singular_curvature_is_refused():
    model, inputs, labels = made("linear", rows=3)
    with pytest.raises(ValueError, match="'0' has eigenvalues of zero, and damping=0 leave"):
        fit(dv.EKFAC(0.0, "kfac", fisher="exact"), model, inputs, labels)
    flat = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, CLASSES)).double()
    nn.init.constant_(flat[0].bias, -100.0)
    with pytest.raises(ValueError, match="'0' .* gradients that are all zero .* absolute=True"):
        fit(dv.EKFAC(), flat, inputs, labels)


def test_a_loss_without_a_known_hessian_asks_for_the_empirical_fisher():
    model, inputs, labels = made("linear")
    task = dv.Task(model, loss=nn.CrossEntropyLoss(label_smoothing=0.3))
    with pytest.raises(ValueError, match="derived for the cross-entropy .* fisher='empirical' takes any loss"):
        fit(dv.EKFAC(), task, inputs, labels)
    assert fit(dv.EKFAC(fisher="empirical"), task, inputs, labels).explain(inputs).dense().isfinite().all()
    assert "fisher" not in fit(dv.EKFAC(curvature="identity"), task, inputs, labels).certificate  # takes any loss


def test_one_training_sample_has_no_error_of_scores():
    torch.manual_seed(0)
    model, inputs = nn.Linear(60, 50).double(), draw(1, 60)
    certificate = fit(dv.EKFAC(fisher="exact"), model, inputs, torch.tensor([1])).certificate
    assert certificate["terms"] and "score_error" not in certificate


@pytest.mark.parametrize(
    "fields",
    [{"damping": -0.1}, {"damping": float("nan")}, {"tolerance": -1.0}, {"seed": -1}],
)
def test_fields_that_mean_nothing_are_refused(fields: dict):
    with pytest.raises(ValueError, match=f"`{next(iter(fields))}` must be"):
        dv.EKFAC(**fields)
