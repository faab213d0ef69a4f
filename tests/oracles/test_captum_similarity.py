"""Feature similarities against Captum 0.9's SimilarityInfluence."""

import pytest
import torch
from captum.influence import SimilarityInfluence
from captum.influence._core.similarity_influence import cosine_similarity, euclidean_distance
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import dualview as dv

ROWS, TESTS = 24, 5
ROUNDING = {"rtol": 1e-11, "atol": 1e-12}
"""float64; on up to 25 rows `torch.cdist` takes differences, beyond these it would lose half the digits."""


@pytest.fixture
def problem() -> tuple[nn.Sequential, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double().eval()
    return model, torch.randn(ROWS, 6, dtype=torch.float64), torch.randn(TESTS, 6, dtype=torch.float64)


def captum(problem, metric, direction: str, layer: str, folder) -> tuple[Tensor, Tensor]:
    """Return all training samples in Captum's order, and their values, "test train"."""
    model, train, test = problem
    rival = SimilarityInfluence(
        model, ["1", "3"], TensorDataset(train), str(folder), "one",  # of a single layer it takes a list for a tensor
        similarity_metric=metric, similarity_direction=direction, batch_size=ROWS,
    )  # fmt: skip
    return rival.influence(test, top_k=ROWS)[layer]


@pytest.mark.parametrize(("site", "layer"), [("2", "1"), ("4", "3")])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_the_same_values_and_order(problem, tmp_path, metric, site, layer):
    """Captum watches what leaves a layer; it gives distances d, the smallest first, where ours are 1/(1 + d/s)."""
    model, train, test = problem
    of_captum = {"cosine": (cosine_similarity, "max"), "euclidean": (euclidean_distance, "min")}
    theirs, direction = of_captum[metric]
    index, values = captum(problem, theirs, direction, layer, tmp_path)
    labels = torch.arange(ROWS) % 3
    features = model[: int(site)](train).detach()
    spread = (features[:, None] - features).square().sum(2).mean().sqrt()
    ours = dv.fit(dv.FeatureSimilarity(metric, site), model, (train, labels), progress=False).explain(test).dense()
    torch.testing.assert_close(
        ours.gather(1, index.long()), values if metric == "cosine" else 1 / (1 + values / spread), **ROUNDING
    )
    assert torch.equal(ours.argsort(1, descending=True), index.long())


def test_on_many_rows_captum_loses_the_distance_of_duplicates(problem, tmp_path):
    """`torch.cdist` expands the square on more than 25 rows; ours takes differences, for a similarity of exactly 1."""
    rows = 1000 + torch.randn(40, 6)
    assert euclidean_distance(rows, rows).diagonal().max() > 0.1
    model = nn.Linear(6, 3)
    ours = dv.fit(dv.InputSimilarity("euclidean"), model, (rows, torch.arange(40) % 3), progress=False).explain(rows)
    assert (ours.dense().diagonal() == 1).all()
