"""Both maps of a pair against gradient × input written out, and their accounts against the pair's score."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import Dataset, TensorDataset

import dualview as dv
from dualview.features.lrp import NAMES

quiet = pytest.mark.filterwarnings("ignore:.*of the relevance was absorbed.*")


class Net(nn.Module):
    """A small residual net, with biases or without."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 5, 3, bias=bias)
        self.second = nn.Conv2d(5, 5, 3, padding=1, bias=bias)
        self.hidden, self.fc = nn.Linear(20, 9, bias=bias), nn.Linear(9, 3, bias=bias)

    def features(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(x + self.second(x))
        return F.relu(self.hidden(F.avg_pool2d(x, 2).flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x))


def samples(rows: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % 3
    images = 0.3 * torch.randn(rows, 2, 6, 6, generator=generator, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        images[row, 0, 2 * label : 2 * label + 2] += 1
    return images, labels


def fitted(
    bias: bool, output: object = dv.logit, dtype: torch.dtype = torch.float64, C: float = 0.05, **settings
) -> dv.Explainer:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = Net(bias)
        if bias:
            for parameter in model.parameters():
                parameter.data.add_(0.05 * torch.randn(parameter.shape))
    images, labels = samples(40, seed=0)
    settings = {"train": (images.to(dtype), labels), **settings}
    return dv.fit(dv.DualView(C=C), dv.Task(model.to(dtype), output=output), progress=False, **settings)


@pytest.fixture(scope="module")
def plain() -> dv.Explainer:
    return fitted(bias=False)


@pytest.fixture(scope="module")
def test() -> Tensor:
    return samples(5, seed=9)[0]


def gradient_times_input(model: Net, image: Tensor, gradients: Tensor) -> Tensor:
    x = image[None].clone().requires_grad_()
    return (torch.autograd.grad((model.features(x) * gradients).sum(), x)[0] * x).detach()[0]


@pytest.mark.parametrize("unit", [None, 4])
@pytest.mark.parametrize("output", [dv.logit, dv.contrast(2, 1), dv.margin], ids=lambda output: output.name)
def test_without_biases_both_maps_are_gradient_times_input(test, output, unit):
    """Of alpha ⟨f(x_i), f(x)⟩ with the other sample held fixed; of one unit's product where one was asked for."""
    explainer = fitted(bias=False, output=output)
    relation = dv.relate(explainer, test)
    pairs = [(0, 3), (0, 17), (4, 3), (2, 39)]
    maps = dv.render(relation, dv.LRP("epsilon", epsilon=0), *map(list, zip(*pairs, strict=True)), unit=unit)
    model, images = explainer.task.model, samples(40, seed=0)[0]
    scores = relation.by_train()
    assert len(maps) == 4 and maps.unit == unit
    for pair, (t, i) in enumerate(pairs):
        on_test, on_train = (model.features(x[None])[0].detach() for x in (test[t], images[i]))
        alpha = scores[t, i] / (on_test @ on_train)
        only = torch.ones(9).double() if unit is None else F.one_hot(torch.tensor(unit), 9).double()
        expected = gradient_times_input(model, test[t], alpha * on_train * only)
        torch.testing.assert_close(maps.test[pair], expected, rtol=1e-9, atol=1e-14)
        expected = gradient_times_input(model, images[i], alpha * on_test * only)
        torch.testing.assert_close(maps.train[pair], expected, rtol=1e-9, atol=1e-14)
        score = scores[t, i] if unit is None else relation.pair(t, i)[unit]
        for found in (maps.scores[pair], maps.test[pair].sum(), maps.train[pair].sum()):
            torch.testing.assert_close(found, score, rtol=1e-9, atol=1e-14)


@quiet  # of the network's own relevance; that of the pairs is asked for below
@pytest.mark.parametrize("name", ["epsilon", "epsilon-plus", "epsilon-plus-flat", "gamma", "z-plus"])
def test_without_biases_maps_sum_to_the_pairs_score(plain, test, name: str):
    relation = dv.relate(plain, test)
    maps = dv.render(relation, dv.LRP(name), test=[0, 1, 2, 3, 4], k=3)
    scores = relation.by_train()[maps.test_index, maps.train_index]
    assert scores.abs().min() > 0 and (scores < 0).any()
    for found in (maps.test, maps.train):
        assert ((found.flatten(1).sum(1) - scores).abs() <= 1e-5 * scores.abs()).all()


@quiet
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", NAMES)
def test_with_biases_map_and_account_sum_to_the_pairs_score(test, name: str, dtype):
    relation = dv.relate(fitted(bias=True, dtype=dtype), test.to(dtype))
    maps = dv.render(relation, dv.LRP(name), test=[0, 4], k=3, batch_size=5)
    scores = relation.by_train()[maps.test_index, maps.train_index]
    close = 1e-6 if dtype == torch.float64 else 1e-4
    some_absorbed = 0.0
    for found, account in ((maps.test, maps.test_account), (maps.train, maps.train_account)):
        absorbed = sum((entry.amount for entry in account.absorbed), torch.zeros(len(maps), dtype=dtype))
        size = scores.abs() + sum(entry.amount.abs() for entry in account.absorbed)
        assert ((found.flatten(1).sum(1) + absorbed - scores).abs() <= close * size).all()
        some_absorbed += account.absorbed_share
    assert some_absorbed > 1e-9


def test_the_strongest_pairs_are_those_of_explain(plain, test):
    maps = dv.render(dv.relate(plain, test), dv.LRP("epsilon-plus"), test=[3, 1], k=2)
    top = plain.explain(test).top(2)
    expected = [
        (t, i) for t in (3, 1) for side in (top.proponents, top.opponents) for i in side.train_index[t].tolist()
    ]
    assert list(zip(maps.test_index.tolist(), maps.train_index.tolist(), strict=True)) == expected
    assert maps.test_rows == [3, 1] and torch.equal(maps.own.targets, plain.explain(test).targets[[3, 1]])


def test_proponents_of_a_loss_are_its_negative_scores(test):
    explainer = fitted(bias=False, output=dv.loss)
    maps = dv.render(dv.relate(explainer, test), dv.LRP("epsilon-plus"), test=0, k=2)
    top = explainer.explain(test).top(2)
    expected = [*top.proponents.train_index[0].tolist(), *top.opponents.train_index[0].tolist()]
    assert maps.train_index.tolist() == expected and (maps.scores.sign().tolist() == [-1, -1, 1, 1])


def test_one_test_samples_pairs_stand_alone(plain, test):
    rule = dv.LRP("epsilon-plus-flat")
    relation = dv.relate(plain, test)
    maps = dv.render(relation, rule, test=[2, 0, 2], train=[5, 6, 7])
    part = maps.of_test(2)
    assert part.train_index.tolist() == [5, 7] and part.test_rows == [2] and len(part.own) == 1
    alone = dv.render(relation, rule, test=2, train=[5, 7])
    for found, expected in ((part.test, alone.test), (part.train, alone.train), (part.own.values, alone.own.values)):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-14)
    torch.testing.assert_close(part.test_account.seed, part.scores, rtol=1e-9, atol=1e-14)
    own = rule.attribute(plain.task, test[2:3], relation.targets[2:3])
    torch.testing.assert_close(part.own.values, own.values, rtol=1e-9, atol=1e-14)
    with pytest.raises(KeyError, match="test row 1 was not rendered; rendered are"):
        maps.of_test(1)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_batches_do_not_change_maps(plain, test, batch_size: int):
    relation, rule = dv.relate(plain, test), dv.LRP("epsilon-plus-flat")
    whole = dv.render(relation, rule, test=[0, 1], k=2)
    parts = dv.render(relation, rule, test=[0, 1], k=2, batch_size=batch_size)
    for name in ("test", "train", "scores"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-13)


def test_a_pair_without_weight_has_blank_maps(test):
    explainer = fitted(bias=False, C=1e4, held_out=0.5)
    none = next(i for i in range(40) if i not in explainer.state.support)
    maps = dv.render(dv.relate(explainer, test), dv.LRP("epsilon-plus"), test=0, train=none)
    assert maps.scores.item() == 0 and not maps.test.any() and not maps.train.any()


def test_data_sets_serve_on_both_sides(plain, test):
    explainer = fitted(bias=False, train=TensorDataset(*samples(40, seed=0)))
    data = TensorDataset(test, torch.zeros(5, dtype=torch.int64))
    found = dv.render(dv.relate(explainer, data), dv.LRP("epsilon-plus"), test=[4, 1], train=[8, 9])
    expected = dv.render(dv.relate(plain, test), dv.LRP("epsilon-plus"), test=[4, 1], train=[8, 9])
    torch.testing.assert_close(found.test, expected.test, rtol=1e-9, atol=1e-13)
    torch.testing.assert_close(found.train, expected.train, rtol=1e-9, atol=1e-13)


def test_after_open_it_asks_for_the_training_set(plain, test, tmp_path):
    stored = fitted(bias=False, store=tmp_path)
    opened = dv.open(tmp_path, stored.task.model)
    relation = dv.relate(opened, test)
    with pytest.raises(ValueError, match=r"give train= to dualview\.open"):
        dv.render(relation, dv.LRP("epsilon-plus"), test=0, train=1)
    opened = dv.open(tmp_path, stored.task.model, train=samples(40, seed=0))
    maps = dv.render(dv.relate(opened, test), dv.LRP("epsilon-plus"), test=0, train=1)
    expected = dv.render(dv.relate(plain, test), dv.LRP("epsilon-plus"), test=0, train=1)
    torch.testing.assert_close(maps.train, expected.train, rtol=1e-9, atol=1e-13)


class Changing(Dataset):
    """A data set that can be made to change."""

    def __init__(self) -> None:
        self.images, self.labels = samples(40, seed=0)

    def __len__(self) -> int:
        return 40

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        return self.images[position], self.labels[position]


def test_samples_that_are_others_now_are_refused(test):
    data = Changing()
    explainer = fitted(bias=False, train=data)
    relation = dv.relate(explainer, test)
    weighed = int(explainer.state.support[0])
    data.images[weighed] += 0.5
    with pytest.raises(ValueError, match=f"train sample {weighed} has other features now"):
        dv.render(relation, dv.LRP("epsilon-plus"), test=0, train=weighed)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"test": 5}, IndexError, "`test` holds 5; positions go from 0 to 4"),
        ({"test": [0, -1]}, IndexError, "`test` holds -1"),
        ({"train": 40}, IndexError, "`train` holds 40; positions go from 0 to 39"),
        ({"test": [0, 1], "train": [1, 2, 3]}, ValueError, "2 rows and `train` 3 positions"),
        ({"test": []}, ValueError, "`test` must be a position"),
        ({"test": torch.tensor(0.5)}, ValueError, "`test` must be a position"),
        ({"unit": 9}, IndexError, "`unit` is 9; units go from 0 to 8"),
        ({"k": 0}, ValueError, "`k` must be at least 1"),
        ({"batch_size": 0}, ValueError, "`batch_size` is 0"),
    ],
)
def test_what_cannot_be_rendered_is_refused(plain, test, arguments, error, message):
    with pytest.raises(error, match=message):
        dv.render(dv.relate(plain, test), dv.LRP("epsilon-plus"), **arguments)


def test_the_rule_is_an_lrp(plain, test):
    with pytest.raises(TypeError, match="LRP"):
        dv.render(dv.relate(plain, test), "epsilon-plus", test=0)


@quiet
def test_the_model_is_left_untouched(test):
    explainer = fitted(bias=True)
    model = explainer.task.model.train()
    before = copy.deepcopy(model.state_dict())
    relation = dv.relate(explainer, test)
    with torch.no_grad():
        dv.render(relation, dv.LRP("epsilon-plus", bias="absorb", epsilon=0), test=0, k=1)
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())
    assert all(m.training and not m._forward_hooks and not m._forward_pre_hooks for m in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_what_was_absorbed_is_warned_of_once_and_says_on_which_side(test):
    relation = dv.relate(fitted(bias=True), test)
    with pytest.warns(UserWarning) as caught:
        dv.render(relation, dv.LRP("epsilon"), test=[0, 1], k=3, batch_size=2)
    (warning,) = caught
    text = str(warning.message)
    for side in ("on the test side: ", "on the training side: ", "of the network's own output: "):
        assert side in text


def test_one_training_sample_serves_several_test_samples(plain, test):
    maps = dv.render(dv.relate(plain, test), dv.LRP("epsilon-plus"), test=[0, 1], train=5)
    assert maps.test_index.tolist() == [0, 1] and maps.train_index.tolist() == [5, 5]
    expected = dv.relate(plain, test).by_train()[[0, 1], [5, 5]]
    torch.testing.assert_close(maps.test.flatten(1).sum(1), expected, rtol=1e-6, atol=0)
