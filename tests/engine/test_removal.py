"""What stands in for absent features: constants, blur, samples of a data set, noise."""

import copy

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dualview as dv
from dualview.engine.measured import Measured
from dualview.engine.removal import Drawn, Pool, Reference, as_removal, blurred

torch.set_num_threads(1)


class Any_(nn.Module):
    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return torch.cat([part.flatten(1).double() for part in (*args, *kwargs.values())], 1)


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def measured(inputs, **options) -> Measured:
    return Measured(dv.Task(Any_()), inputs, [0] * 4, size=8, **options)


def only(baseline, inputs, **options) -> dict[str, Tensor]:
    one = measured(inputs, **options)
    return as_removal(baseline).reference(one).rows(one.samples, torch.zeros_like(one.samples))


def test_constants_are_numbers_samples_or_one_for_each():
    x = drawn(4, 2, 3)
    assert torch.equal(only(1.5, x)[""], torch.full_like(x, 1.5))
    assert (only(0.3, x)[""] == 0.3).all()  # not the nearest float32
    row, own = drawn(2, 3), drawn(9, 2, 3)
    assert torch.equal(only(row, x)[""], row.expand(4, 2, 3))
    assert torch.equal(only(row[0], x)[""], row[0].expand(4, 2, 3))
    assert torch.equal(only(own.numpy(), x, start=5, total=9)[""], own[5:9])
    assert torch.equal(only({"a": 1, "ids": 7}, {"a": x, "ids": torch.ones(4, 2).long()})["ids"], torch.full((4, 2), 7))
    with pytest.raises(ValueError, match=r"`baseline` has shape \(4,\); expected a number, \(2, 3\)"):
        only(torch.zeros(4), x)
    with pytest.raises(ValueError, match="`baseline` names 'b'; the inputs are 'a'"):
        only({"b": 0}, {"a": x})
    with pytest.raises(TypeError, match="`baseline` must be a number"):
        as_removal("black")


def test_constants_are_values():
    one, same, other = dv.Constant(drawn(2)), dv.Constant(drawn(2)), dv.Constant(drawn(2) + 1)
    assert one == same == copy.copy(one) and hash(one) == hash(same) and one != other
    assert repr(dv.Constant({"a": drawn(2, 3), "b": 1})) == "Constant({'a': <tensor 2×3>, 'b': 1})"


def test_blur_is_the_gaussian_filter_that_goes_on_beyond_the_border():
    images, sigma = drawn(3, 2, 9, 11), torch.tensor([0.0, 1.3, 4.0])
    found = blurred(images, sigma)
    for row, width in enumerate(sigma.tolist()):
        for channel in range(2):
            expected = gaussian_filter(images[row, channel].numpy(), width, mode="nearest", truncate=4.0)
            np.testing.assert_allclose(found[row, channel].numpy(), expected, rtol=0, atol=1e-14)
    assert torch.equal(found[0], images[0])
    series = blurred(drawn(2, 3, 12), torch.tensor([2.0, 2.0]))
    expected = gaussian_filter(drawn(2, 3, 12)[1, 2].numpy(), 2.0, mode="nearest", truncate=4.0)
    np.testing.assert_allclose(series[1, 2].numpy(), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(only(dv.Blur(1.3), images)[""], blurred(images, torch.full((3,), 1.3)))
    with pytest.raises(ValueError, match="`sigma` is 0"):
        dv.Blur(0)


def test_a_row_is_smoothed_the_same_in_any_company():
    images = drawn(2, 1, 20, 20)
    alone, beside = blurred(images[:1], torch.tensor([1.0])), blurred(images, torch.tensor([1.0, 6.0]))[:1]
    torch.testing.assert_close(alone, beside, rtol=0, atol=1e-15)


@pytest.mark.parametrize("form", ["tensor", "data set", "batch"])
def test_samples_are_drawn_once_and_for_all(form: str):
    pool, x = drawn(10, 3), drawn(4, 3)
    data = {"tensor": pool, "data set": TensorDataset(pool, torch.zeros(10)), "batch": (pool,)}[form]
    inputs = (x,) if form == "batch" else x
    place = "0" if form == "batch" else ""
    removal = dv.Samples(data, count=6, seed=3)
    reference = removal.reference(measured(inputs))
    found = reference.parts[place]
    assert found.shape == (1, 6, 3) and reference.shared and reference.draws == 6
    chosen = [(pool == row).all(1).nonzero().item() for row in found[0]]
    assert len(set(chosen)) == 6
    assert torch.equal(removal.reference(measured(inputs)).parts[place], found)
    assert torch.equal(dv.Samples(data, count=6, seed=3).reference(measured(inputs)).parts[place], found)
    assert dv.Samples(data).reference(measured(inputs)).draws == 10
    with pytest.raises(ValueError, match="`count` is 11; the baseline's data hold 10 samples"):
        dv.Samples(data, count=11).reference(measured(inputs))


def test_samples_must_be_like_the_inputs():
    with pytest.raises(ValueError, match=r"a sample of `baseline` has shape \(2,\)"):
        dv.Samples(drawn(5, 2)).reference(measured(drawn(4, 3)))
    with pytest.raises(ValueError, match="no part '1'; they have"):
        dv.Samples((drawn(5, 3),)).reference(measured((drawn(4, 3), drawn(4, 3))))
    with pytest.raises(TypeError, match="must be tensors or a data set; they are str"):
        dv.Samples("train").reference(measured(drawn(4, 3)))


def test_noise_is_the_same_for_every_sample_and_seeded():
    x = drawn(4, 3)
    reference = dv.Noise(-2, 3, count=1000, seed=1).reference(measured(x))
    noise = reference.parts[""]
    assert noise.shape == (1, 1000, 3) and -2 <= noise.min() < -1.98 and 2.98 < noise.max() <= 3
    assert torch.equal(noise, dv.Noise(-2, 3, count=1000, seed=1).reference(measured(x[:2])).parts[""])
    assert not torch.equal(noise, dv.Noise(-2, 3, count=1000, seed=2).reference(measured(x)).parts[""])


def test_rows_of_a_reference():
    own = Reference({"": torch.arange(12.0).reshape(2, 3, 2)})
    assert torch.equal(own.rows(torch.tensor([1, 0]), torch.tensor([2, 1]))[""], torch.tensor([[10.0, 11], [2, 3]]))
    assert not own.shared and own.draws == 3 and own.places == [""]
    shared = Reference({"a": torch.arange(6.0).reshape(1, 3, 2), "b": torch.ones(1, 1, 1)})
    rows = shared.rows(torch.tensor([7, 4]), torch.tensor([2, 0]))
    assert torch.equal(rows["a"], torch.tensor([[4.0, 5], [0, 1]])) and torch.equal(rows["b"], torch.ones(2, 1))


class Watched(TensorDataset):
    def __init__(self, *tensors: Tensor) -> None:
        super().__init__(*tensors)
        self.read: list[int] = []

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        self.read.append(index)
        return super().__getitem__(index)


def test_references_are_read_when_they_are_needed():
    data, x = Watched(drawn(10, 3), torch.zeros(10)), drawn(4, 3)
    pool = Pool(data)
    drawn_ = Drawn(pool, measured(x), torch.tensor([[3, 8, 3]]))
    assert len(pool) == 10 and drawn_.shared and drawn_.draws == 3 and data.read == []
    rows = drawn_.rows(torch.tensor([0, 2, 1]), torch.tensor([0, 0, 2]))[""]
    assert torch.equal(rows, drawn(10, 3)[[3, 3, 3]]) and data.read == [3]
    own = Drawn(Pool(drawn(10, 3)), measured(x), torch.tensor([[0], [1], [2], [9]]))
    assert (
        torch.equal(own.rows(torch.tensor([3, 0]), torch.tensor([0, 0]))[""], drawn(10, 3)[[9, 0]]) and not own.shared
    )
