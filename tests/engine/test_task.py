"""What a task measures, and what kind of loss it was trained with."""

import copy
import dataclasses
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualview.engine import outputs
from dualview.engine.task import Task, as_task, class_logits, per_sample, reduction_of
from dualview.errors import NonFiniteError

WEIGHTS = torch.tensor([1.0, 5.0, 0.25])
NET = nn.Linear(4, 3)
# Float32 sums and means of fewer than ten losses of order one.
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def batch(rows: int = 6, num_classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randn(rows, num_classes, generator=generator), torch.arange(rows) % num_classes


def cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    return torch.stack([row.logsumexp(0) - row[target] for row, target in zip(logits, targets, strict=True)])


class Focal(nn.Module):
    """A user's own loss module, which reduces as torch's do."""

    def __init__(self, reduction: str) -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, logits, targets):
        cross_entropy = F.cross_entropy(logits, targets, reduction="none")
        values = (1 - (-cross_entropy).exp()) ** 2 * cross_entropy
        return {"none": values, "sum": values.sum(), "mean": values.mean()}[self.reduction]


class Deaf(nn.CrossEntropyLoss):
    """It has a `reduction` that it does not heed."""

    def forward(self, logits, targets):
        return F.cross_entropy(logits, targets, reduction="mean")


# ── losses ───────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("loss", [F.cross_entropy, nn.CrossEntropyLoss, Focal], ids=["function", "torch", "own"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_the_reduction_is_detected_and_undone(loss, reduction):
    logits, targets = batch()
    if loss is F.cross_entropy:
        given = lambda z, y: F.cross_entropy(z, y, reduction=reduction)  # noqa: E731
    else:
        given = loss(reduction=reduction)
    expected = cross_entropies(logits, targets)
    if loss is Focal:
        expected = (1 - (-expected).exp()) ** 2 * expected
    task = Task(NET, loss=given)
    assert task.loss_reduction(logits, targets) == reduction
    torch.testing.assert_close(task.losses(logits, targets), expected, **CLOSE)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_class_weights_of_a_torch_module_stay(reduction):
    logits, targets = batch()
    module = nn.CrossEntropyLoss(weight=WEIGHTS, reduction=reduction)
    task = Task(NET, loss=module)
    assert task.loss_reduction(logits, targets) == reduction
    torch.testing.assert_close(
        task.losses(logits, targets), WEIGHTS[targets] * cross_entropies(logits, targets), **CLOSE
    )
    assert module.reduction == reduction


def test_a_module_that_does_not_heed_its_reduction_is_found_out():
    logits, targets = batch()
    task = Task(NET, loss=Deaf(reduction="sum"))
    assert task.loss_reduction(logits, targets) == "mean"
    torch.testing.assert_close(task.losses(logits, targets), cross_entropies(logits, targets), **CLOSE)


def test_the_default_is_cross_entropy_per_sample():
    logits, targets = batch()
    assert Task(NET).loss_reduction(logits, targets) == "none"
    torch.testing.assert_close(Task(NET).losses(logits, targets), cross_entropies(logits, targets), **CLOSE)


def weighted(logits: Tensor, targets: Tensor) -> Tensor:
    """A mean of which each sample alone does not show the weight of its class."""
    return F.cross_entropy(logits, targets, weight=WEIGHTS)


def test_losses_that_couple_samples_are_refused():
    logits, targets = batch()
    for coupled in (weighted, lambda z, y: F.cross_entropy(z, y) ** 2, lambda z, y: F.cross_entropy(z - z.mean(0), y)):
        for ask in (Task(NET, loss=coupled).loss_reduction, Task(NET, loss=coupled).losses):
            with pytest.raises(ValueError, match="neither the sum nor the mean .* give a loss with reduction='none'"):
                ask(logits, targets)


def test_class_weights_show_even_where_the_samples_at_hand_are_of_one_class():
    logits, _ = batch(4)
    with pytest.raises(ValueError, match="class weights"):
        Task(NET, loss=weighted).loss_reduction(logits, torch.zeros(4, dtype=torch.int64))


def test_the_tolerance_does_not_grow_with_the_batch():
    """A mean that is off by one per cent is none, however many rows there are."""
    logits, targets = batch(400)
    with pytest.raises(ValueError, match="neither the sum nor the mean"):
        reduction_of(lambda z, y: F.cross_entropy(z, y) * (1.01 if len(z) > 1 else 1.0), logits, targets)
    assert reduction_of(F.cross_entropy, logits, targets) == "mean"
    assert reduction_of(lambda z, y: F.cross_entropy(z, y, reduction="sum"), logits, targets) == "sum"


def test_confident_logits_do_not_disturb_the_detection():
    """−log p of a softmax in float32 is infinite for a class whose p rounds to zero; it is not asked for that."""
    logits, targets = 300 * torch.eye(3), torch.arange(3)
    assert Task(NET, loss=lambda z, y: F.nll_loss(z.softmax(1).log(), y)).loss_reduction(logits, targets) == "mean"


def test_other_shapes_and_infinite_losses_are_refused():
    logits, targets = batch(4)
    with pytest.raises(ValueError, match=r"returned shape \(4, 3\) for 4 samples; expected \(4,\) or one number"):
        Task(NET, loss=lambda z, y: z).losses(logits, targets)
    with pytest.raises(NonFiniteError, match=r"`loss` is NaN or infinite at rows \[1, 3\]") as caught:
        per_sample(lambda z, y: (1 / (y % 2 - 1)).mean(), logits, torch.tensor([0, 1, 2, 1]))
    assert caught.value.index == (1, 3)


def test_losses_of_a_column_are_one_per_row():
    logits, targets = batch()
    found = per_sample(lambda z, y: F.cross_entropy(z, y, reduction="none")[:, None], logits, targets)
    torch.testing.assert_close(found, cross_entropies(logits, targets), **CLOSE)


# ── directions ───────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("output", [outputs.logit, outputs.margin, outputs.log_probability, outputs.contrast(0, 2)])
def test_directions_are_those_of_the_output(output):
    logits, targets = batch()
    assert torch.equal(
        Task(NET, output=output).directions(logits, targets), outputs.directions(output, logits, targets)
    )


def test_the_loss_is_the_tasks_own_in_copies_too():
    logits, targets = batch()
    task = Task(NET, output=outputs.loss, loss=nn.CrossEntropyLoss(weight=WEIGHTS))
    expected = WEIGHTS[targets, None] * (logits.softmax(1) - torch.eye(3)[targets])
    for one in (task, copy.deepcopy(task), dataclasses.replace(task, readout="fc")):
        torch.testing.assert_close(one.directions(logits, targets), expected, **CLOSE)
        torch.testing.assert_close(one.measure(logits, targets), one.losses(logits, targets), rtol=0, atol=0)
    torch.testing.assert_close(
        Task(NET, output=outputs.loss).directions(logits, targets), expected / WEIGHTS[targets, None], **CLOSE
    )


def test_a_mean_loss_is_differentiated_sample_by_sample():
    logits, targets = batch()
    task = Task(NET, output=outputs.loss, loss=F.cross_entropy)
    torch.testing.assert_close(
        task.directions(logits, targets), logits.softmax(1) - torch.eye(3)[targets], rtol=1e-5, atol=1e-6
    )


def test_several_outputs_at_once_are_refused_and_one_in_a_tuple_is_that_one():
    def entropy(logits, targets):
        return torch.distributions.Categorical(logits=logits).entropy()

    assert Task(NET, output=(entropy,)).measured == "entropy"
    assert Task(NET, output=outputs.margin).measured == "margin"
    assert Task(NET, output=outputs.contrast(2, 0)).measured == "contrast(2, 0)"
    with pytest.raises(ValueError, match="`output` is a tuple of 2"):
        _ = Task(NET, output=(outputs.logit, outputs.margin)).measured


# ── one logit for two classes ────────────────────────────────────────────────────────────────────


def one_logit_batch() -> tuple[Tensor, Tensor]:
    return torch.tensor([[-3.0], [0.0], [0.5], [4.0]], dtype=torch.float64), torch.tensor([0, 1, 0, 1])


def test_one_logit_becomes_two_columns_with_the_same_probabilities():
    z, _ = one_logit_batch()
    two = class_logits(z)
    assert torch.equal(two[:, 1] - two[:, 0], z[:, 0])
    torch.testing.assert_close(two.softmax(1)[:, 1], z.sigmoid()[:, 0], rtol=0, atol=1e-15)
    assert class_logits(two) is two


@pytest.mark.parametrize(
    "loss",
    [outputs.loss, nn.BCEWithLogitsLoss(), F.binary_cross_entropy_with_logits, nn.BCEWithLogitsLoss(reduction="sum")],
    ids=["default", "module", "function", "sum"],
)
def test_the_binary_loss_and_its_gradient_pass_through_the_two_columns(loss):
    """With L(z) = −log σ(±z) and z = column 1 − column 0: ∂L/∂columns = (−1, 1) · (σ(z) − y)."""
    z, y = one_logit_batch()
    task = Task(nn.Linear(4, 1), output=outputs.loss, loss=loss)
    slope = z.sigmoid()[:, 0] - y
    torch.testing.assert_close(task.directions(z, y), torch.stack([-slope, slope], 1), rtol=0, atol=1e-14)
    expected = -(torch.where(y.bool(), 1.0, -1.0) * z[:, 0]).sigmoid().log()
    torch.testing.assert_close(task.losses(class_logits(z), y, one_logit=True), expected, rtol=0, atol=1e-14)
    reduction = "none" if loss is outputs.loss else getattr(loss, "reduction", "mean")
    assert task.loss_reduction(class_logits(z), y, one_logit=True) == reduction


def test_the_weight_of_the_positive_class_stays():
    z, y = one_logit_batch()
    task = Task(nn.Linear(4, 1), output=outputs.loss, loss=nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0).double()))
    slope = torch.where(y.bool(), 3 * (z.sigmoid()[:, 0] - 1), z.sigmoid()[:, 0])
    torch.testing.assert_close(task.directions(z, y)[:, 1], slope, rtol=0, atol=1e-14)


# ── the door ─────────────────────────────────────────────────────────────────────────────────────


def test_a_bare_model_is_a_task_and_a_task_stays_itself():
    task = as_task(NET)
    assert task.model is NET and task.readout is None and task.output is outputs.logit
    assert as_task(task) is task


def test_wrong_arguments_are_named_at_the_door():
    for arguments, message in (
        ({"model": "resnet"}, "`model` must be a torch.nn.Module; it is str"),
        ({"output": "margin"}, "`output` must be a function; it is 'margin'"),
        ({"output": (outputs.logit, 3)}, "`output` must be a function; it is 3"),
        ({"loss": "cross_entropy"}, "`loss` must be a function"),
        ({"split": 1}, "`split` must be a function"),
        ({"classes": ["cat", "dog"]}, "`classes` must map each label to its output column; it is a list"),
    ):
        with pytest.raises(TypeError, match=message) as caught:
            Task.__post_init__(_unchecked(**{"model": NET, **arguments}))
        assert type(caught.value) is TypeError


def _unchecked(**arguments) -> Task:
    """A task whose __init__, where the tests' type checks stand, did not run."""
    task = object.__new__(Task)
    for field in dataclasses.fields(Task):
        object.__setattr__(task, field.name, arguments.get(field.name, field.default))
    return task


def test_forward_runs_every_kind_of_inputs():
    class Sum(nn.Module):
        def forward(self, x, y=None, *, scale=1.0):
            return scale * (x if y is None else x + y)

    task, x = Task(Sum()), torch.randn(5, 3)
    assert torch.equal(task.forward(x), x)
    assert torch.equal(task.forward((x, x)), 2 * x)
    assert torch.equal(task.forward({"x": x, "y": x, "scale": 0.5}), x)


# ── numbers to be met, and several labels a sample ───────────────────────────────────────────────


def columns_batch(problem: str) -> tuple[Tensor, Tensor]:
    raw, _ = batch()
    labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(1))
    return raw, labels if problem == "regression" else (labels > 0).long()


@pytest.mark.parametrize("problem", ["regression", "multi-label"])
def test_default_losses_of_other_problems_and_their_gradients(problem):
    """½ Σ (z − y)² has the gradient z − y; the sum of binary cross-entropies has σ(z) − y."""
    raw, labels = columns_batch(problem)
    task = Task(NET, problem=problem)
    if problem == "regression":
        expected, slopes = 0.5 * (raw - labels).square().sum(1), raw - labels
    else:
        expected, slopes = -((2 * labels - 1) * raw).sigmoid().log().sum(1), raw.sigmoid() - labels
    torch.testing.assert_close(task.losses(raw, labels), expected, **CLOSE)
    torch.testing.assert_close(task.loss_directions(raw, labels), slopes, **CLOSE)
    assert task.loss_reduction(raw, labels) == "none"
    assert task.logits(raw) is raw and task.logits(raw[:, :1]).shape == (6, 1)  # no second column is added


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_losses_of_ones_own_see_labels_in_the_precision_of_the_outputs(dtype):
    """As in training: torch's own losses refuse a mixture."""
    raw, labels = columns_batch("regression")
    for loss, expected in (
        (nn.MSELoss(), (raw - labels).square().mean(1)),
        (nn.MSELoss(reduction="sum"), (raw - labels).square().sum(1)),
        (lambda z, y: (z - y).abs().sum(1), (raw - labels).abs().sum(1)),
        (nn.HuberLoss(delta=1e9), 0.5 * (raw - labels).square().mean(1)),
    ):
        task = Task(NET, problem="regression", loss=loss)
        torch.testing.assert_close(task.losses(raw, labels.to(dtype)), expected, **CLOSE)
    assert Task(NET, problem="regression", loss=nn.HuberLoss()).loss_reduction(raw, labels.to(dtype)) == "mean"


def test_the_default_loss_of_a_sample_that_is_fitted_well_keeps_its_gradient_in_single_precision():
    """1 − p is 2e-9 at a margin of 20, and p itself rounds to 1."""
    logits = torch.tensor([[20.0, 0.0, -1.0]])
    expected = logits.double().softmax(1) - torch.eye(3).double()[:1]
    found = Task(NET).loss_directions(logits, torch.tensor([0]))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-6, atol=0)
    tagged = Task(NET, problem="multi-label").loss_directions(logits, torch.tensor([[1.0, 0, 0]]))
    torch.testing.assert_close(tagged[0, 0].double(), -torch.tensor(-20.0).double().sigmoid(), rtol=1e-6, atol=0)


def test_the_training_loss_goes_with_the_problem():
    losses = [Task(NET, problem=problem).training_loss for problem in ("classification", "regression", "multi-label")]
    assert losses[0] is outputs.loss and len({*losses}) == 3
    own = nn.MSELoss()
    assert Task(NET, problem="regression", loss=own).training_loss is own


def test_predictions_of_other_problems():
    raw, _ = batch()
    assert torch.equal(Task(NET, problem="multi-label").predicted(raw), raw.argmax(1))
    assert Task(NET, problem="regression").predicted(raw[:, :1]).tolist() == [0] * 6
    assert Task(NET, problem="regression", output=outputs.mean_square).predicted(raw).tolist() == [0] * 6
    with pytest.raises(ValueError, match="give targets=: which of the 3 output columns is to be explained"):
        Task(NET, problem="regression").predicted(raw)


def test_outputs_and_mappings_that_a_problem_does_not_have_are_refused():
    for problem in ("regression", "multi-label"):
        for output in (outputs.margin, outputs.log_probability, outputs.loss):
            message = f"output='{output.name}' measures a class .*; a {problem} task measures an output column"
            with pytest.raises(ValueError, match=message):
                Task(NET, problem=problem, output=output)
        with pytest.raises(ValueError, match=f"`classes` map labels of a classification; .* is '{problem}'"):
            Task(NET, problem=problem, classes={"a": 0})
    with pytest.raises(ValueError, match="`problem` is 'ranking'; choose from 'classification', 'regression' and"):
        Task.__post_init__(_unchecked(model=NET, problem="ranking"))


def test_checkpoints_that_are_no_list_are_refused():
    for checkpoints, kind in (("a.safetensors", "str"), (NET.state_dict(), "OrderedDict"), (NET, "Linear")):
        with pytest.raises(TypeError, match=f"`checkpoints` must be a list of states or models; it is a {kind}"):
            Task.__post_init__(_unchecked(model=NET, checkpoints=checkpoints))


def test_a_task_prints_on_one_line():
    shown = repr(Task(nn.Sequential(NET, nn.Linear(3, 3))))
    assert shown == (
        "Task(Sequential of 27 parameters, readout=None, problem='classification', output=logit, no class names)"
    )
    task = Task(NET, "fc", (outputs.logit, outputs.margin), problem="classification", class_names=("a", "b", "c"))
    assert repr(task).endswith("readout='fc', problem='classification', output=logit and margin, 3 class names)")
    assert repr(Task(nn.LazyLinear(3))).startswith("Task(LazyLinear of 0 parameters")


def _configured(labels: object) -> nn.Module:
    model = copy.copy(NET)
    model.config = SimpleNamespace(id2label=labels)
    return model


def test_names_in_a_models_config_are_class_names_where_they_fit():
    for labels in ({2: "c", 0: "a", 1: "b"}, {"0": "a", "1": "b", "2": "c"}):
        task = Task(_configured(labels))
        assert task.named(3).class_names == ("a", "b", "c") and task.class_names is None
        assert task.named(4).class_names is None  # the head was replaced
    assert Task(_configured({0: "a"}), class_names=["own"]).named(1).class_names == ["own"]


@pytest.mark.parametrize(
    "labels",
    [{0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}, {1: "a", 2: "b", 3: "c"}, {}, None, ["a", "b", "c"]],
    ids=["placeholders", "from one", "empty", "none", "list"],
)
def test_what_is_no_name_for_each_column_is_left(labels):
    assert Task(_configured(labels)).named(3).class_names is None
