"""Heat maps of one pair against XDA by its authors' package: grey images, since it fails on colour."""

from contextlib import contextmanager

import pytest
import torch
from dualxda import DualDA
from torch import nn
from torch.utils.data import TensorDataset
from zennit.composites import EpsilonAlpha2Beta1Flat, EpsilonPlus, EpsilonPlusFlat

import dualview as dv

# How much is absorbed is compared, not judged; the fork that it solves with warns of its own age.
pytestmark = pytest.mark.filterwarnings("ignore")


@contextmanager
def float64_by_default():
    """Let XDA begin with zeros of the network's type."""
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("side", ["test", "train"])
@pytest.mark.parametrize(
    ("name", "composite"),
    [
        ("epsilon-plus", EpsilonPlus),
        ("epsilon-plus-flat", EpsilonPlusFlat),
        ("epsilon-alpha2-beta1-flat", EpsilonAlpha2Beta1Flat),
    ],
)
def test_maps_of_a_pair_agree(tmp_path, name, composite, side):
    """Given the same score, which is alpha · ⟨f, f'⟩; XDA divides by the inner product that we never form."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3),
    ).double().eval()  # fmt: skip
    images, labels = torch.rand(30, 1, 8, 8, dtype=torch.float64), torch.arange(30) % 3
    train, test = TensorDataset(images[:25], labels[:25]), images[25:]
    explainer = dv.fit(dv.DualView(C=0.1), model, train, progress=False)
    relation = dv.relate(explainer, test)
    maps = dv.render(relation, dv.LRP(name, epsilon=1e-12), test=1)
    with DualDA(model, train, "8", "cpu", str(tmp_path), C=0.1) as theirs, float64_by_default():
        for pair, score in enumerate(maps.scores):
            rule = composite(1e-100, 1e-100, zero_params="bias")
            found = theirs.xda_heatmap(test[1], int(maps.train_index[pair]), score, side, rule)
            ours = (maps.test if side == "test" else maps.train)[pair].sum(0)
            assert ours.abs().max() > 0
            assert torch.allclose(ours, found, rtol=0, atol=1e-9 * float(found.abs().max()))
