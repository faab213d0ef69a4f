"""What suspects and errors say of themselves, and which samples their positions lead to."""

import dataclasses
import pickle

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dualview as dv
from dualview.engine.source import Source


@pytest.fixture(scope="module")
def wide() -> tuple[nn.Module, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """A network of two classes that is often wrong, with 40 training and 12 other samples that tell who they are."""
    generator = torch.Generator().manual_seed(0)
    train, other = (torch.randn(rows, 3, generator=generator) for rows in (40, 12))
    model = nn.Linear(3, 2)
    model.weight.data, model.bias.data = torch.eye(3)[:2], torch.zeros(2)
    return model, (train, torch.arange(40) % 2), (other, torch.arange(12) % 2)


def fitted(wide: tuple, **settings: object) -> dv.Explainer:
    task = dv.Task(wide[0], class_names=["cat", "dog"])
    return dv.fit(dv.DualView(C=0.1), task, wide[1], progress=False, **settings)


def values(source: Source | None, of: str, position: int) -> list[float]:
    assert source is not None
    picture = (source.train_picture if of == "train" else source.test_picture)(position)
    assert picture.values is not None
    return picture.values.tolist()


def test_suspects_lead_to_the_training_samples(wide):
    suspects = fitted(wide).suspects(5)
    assert (suspects.what, suspects.of) == ("Training samples under suspicion", "train")
    assert suspects.class_names == ["cat", "dog"]
    for position in suspects.index.tolist():
        assert values(suspects.source, suspects.of, position) == wide[1][0][position].double().tolist()


def test_errors_lead_to_the_samples_that_were_given(wide):
    for explainer in (fitted(wide), fitted(wide, held_out=0.25), fitted(wide, held_out=wide[2])):
        errors = explainer.errors(wide[2])
        assert (errors.what, errors.of, errors.class_names) == ("Wrong predictions", "data", ["cat", "dog"])
        assert len(errors)
        for position in errors.index.tolist():
            assert values(errors.source, errors.of, position) == wide[2][0][position].double().tolist()


def test_errors_without_data_say_of_which_they_are(wide):
    for settings, where in (({}, "training set"), ({"held_out": 0.25}, "held-out share of the training set")):
        errors = fitted(wide, **settings).errors()
        assert (errors.what, errors.of) == (f"Wrong predictions on the {where}", "train")
        assert len(errors)
        for position in errors.index.tolist():
            assert values(errors.source, errors.of, position) == wide[1][0][position].double().tolist()


def test_errors_on_held_out_data_lead_to_them(wide):
    errors = fitted(wide, held_out=wide[2]).errors()
    assert (errors.what, errors.of, errors.num_samples) == ("Wrong predictions on the held-out data", "data", 12)
    assert errors.rows() == fitted(wide).errors(wide[2]).rows() and len(errors)
    for position in errors.index.tolist():
        assert values(errors.source, errors.of, position) == wide[2][0][position].double().tolist()


def test_errors_among_training_samples_have_their_names(wide):
    names = [f"sample-{position}" for position in range(40)]
    errors = fitted(wide, names=names).errors()
    assert errors.names == [names[position] for position in errors.index.tolist()] and len(errors)
    assert fitted(wide, names=names).errors(wide[2]).names is None


def test_a_pickled_explainer_leaves_held_out_samples_behind(wide):
    class Unpicklable(TensorDataset):
        def __init__(self, *tensors: Tensor) -> None:
            super().__init__(*tensors)
            self.function = lambda: None

    explainer = fitted(wide, held_out=Unpicklable(*wide[2]))
    again = pickle.loads(pickle.dumps(explainer))
    errors = again.errors()
    assert errors.rows() == explainer.errors().rows()
    assert errors.source is not None and errors.source.test is None


def test_an_opened_fit_leads_to_what_it_is_given(wide, tmp_path):
    explainer = fitted(wide, store=tmp_path)
    model, train, _ = wide
    alone, whole = (dv.open(tmp_path, model, train=given).suspects(3) for given in (None, train))
    assert alone.rows() == whole.rows() == explainer.suspects(3).rows()
    assert alone.source is not None and alone.source.train_picture(int(alone.index[0])).values is None
    first = int(whole.index[0])
    assert values(whole.source, whole.of, first) == train[0][first].double().tolist()


def test_a_selections_ranking_leads_to_the_training_samples(wide):
    model, train, (inputs, _) = wide
    task = dv.Task(model, class_names=["cat", "dog"])
    selection = dv.fit(dv.SupportSpectrum(), task, train, progress=False).select(inputs)
    test = int(selection.counts.argmax())
    ranking = selection.ranking(test)
    assert (ranking.what, ranking.of) == (f"Training samples selected for test {test}", "train")
    assert ranking.class_names == ["cat", "dog"] and len(ranking)
    for position in ranking.index.tolist():
        assert values(ranking.source, ranking.of, position) == train[0][position].double().tolist()


def test_what_a_ranking_leads_to_is_not_part_of_its_rows(wide):
    suspects = fitted(wide).suspects(4)
    bare = dataclasses.replace(suspects, source=None, what="", of="data", class_names=None)
    assert bare.rows() == suspects.rows() and repr(bare) == repr(suspects)
    assert list(suspects.to_pandas().columns) == ["index", *suspects.columns]
