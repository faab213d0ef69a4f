"""dualxda, traker, kronfluence and Captum's similarity: peers that keep files. Each function starts one of them.

The folder lives as long as what is returned, and no two fits share one: dualxda's cache knows C alone, and would hand
the first network's fit to the second.
"""

import itertools
import tempfile

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from benchmarks.peers.peer import BATCH, Started


def dualxda(model: nn.Module, train: TensorDataset, **settings: float) -> Started:
    """DualDA on what enters the last layer.

    Sign: α_ic ⟨f_i, f⟩, the sample's share of the surrogate's logit. As it comes; the intercept is left out. Its
    self-influence is α_iy ‖f_i‖².
    """
    from dualxda import DualDA

    folder = tempfile.TemporaryDirectory()
    last = list(model.named_children())[-1][0]
    rival = DualDA(model, train, last, "cpu", folder.name, **settings)

    return Started(rival.attribute, rival.self_influences, folder)


def traker(model: nn.Module, train: TensorDataset, **settings: float) -> Started:
    """TRAKer for image classification, in single precision, since half precision is for GPUs.

    Sign: positive where the sample raises the test sample's margin. As it comes; "train test" is transposed. It gives
    no self-influence.
    """
    from trak import TRAKer

    folder = tempfile.TemporaryDirectory()
    rival = TRAKer(
        model, "image_classification", len(train), save_dir=folder.name, device="cpu", use_half_precision=False,
        logging_level="ERROR", **settings,
    )  # fmt: skip
    weights = model.state_dict()
    rival.load_checkpoint(weights, model_id=0)
    for batch in _batches(*train.tensors):
        rival.featurize(batch, num_samples=len(batch[0]))
    rival.finalize_features()
    names = (f"test-{number}" for number in itertools.count())

    def scores(inputs: Tensor, labels: Tensor) -> Tensor:
        name = next(names)
        rival.start_scoring_checkpoint(name, weights, 0, len(inputs))
        for batch in _batches(inputs, labels):
            rival.score(batch, num_samples=len(batch[0]))
        return torch.tensor(rival.finalize_scores(name)).T

    return Started(scores, folder=folder)


def kronfluence(model: nn.Module, train: TensorDataset, **settings: float | None) -> Started:
    """EK-FAC with sampled labels. Its own search for a batch size would run the first batch twice.

    Sign: measured is −margin, as in its examples, so that ∇φᵀ (H + λ)⁻¹ ∇ℓ is positive where including the sample
    raises the margin. As it comes.
    """
    from kronfluence import Analyzer, ScoreArguments, Task, prepare_model

    class Classification(Task):
        def compute_train_loss(self, batch, model, sample=False):
            logits = model(batch[0])
            labels = torch.multinomial(logits.detach().softmax(1), 1)[:, 0] if sample else batch[1]
            return F.cross_entropy(logits, labels, reduction="sum")

        def compute_measurement(self, batch, model):
            logits, labels = model(batch[0]), batch[1][:, None]
            others = logits.scatter(1, labels, -torch.inf)
            return -(logits.gather(1, labels)[:, 0] - others.logsumexp(1)).sum()

    folder = tempfile.TemporaryDirectory()
    given = {"score_args": ScoreArguments(**settings), "factors_name": "factors"}  # type: ignore[arg-type]
    rival = Analyzer(
        "peers", prepare_model(model, Classification()), Classification(),
        cpu=True, disable_tqdm=True, output_dir=folder.name, disable_model_save=True,
    )  # fmt: skip
    some = min(500, len(train))
    rival.fit_all_factors("factors", train, per_device_batch_size=some)

    def scores(inputs: Tensor, labels: Tensor) -> Tensor:
        rival.compute_pairwise_scores(
            "scores", query_dataset=TensorDataset(inputs, labels), train_dataset=train,
            per_device_query_batch_size=min(250, len(inputs)), per_device_train_batch_size=some,
            overwrite_output_dir=True, **given,
        )  # fmt: skip
        return rival.load_pairwise_scores("scores")["all_modules"]

    def self_influence() -> Tensor:
        rival.compute_self_scores("own", train_dataset=train, per_device_train_batch_size=some, **given)
        return rival.load_self_scores("own")["all_modules"]

    return Started(scores, self_influence, folder)


def captum_similarity(model: nn.Module, train: TensorDataset) -> Started:
    """SimilarityInfluence, cosine by default, of what enters the last layer.

    Sign: a similarity, larger is closer. As it comes, from ranking back to places. Two layers are asked for, since it
    fails on one; all training samples are one batch, since it fails where the last batch is smaller.
    """
    from captum.influence import SimilarityInfluence

    folder = tempfile.TemporaryDirectory()
    layers = [name for name, _ in model.named_children()][-2:]
    rival = SimilarityInfluence(
        model, layers, TensorDataset(train.tensors[0]), folder.name, "peers", batch_size=len(train)
    )  # fmt: skip

    def scores(inputs: Tensor, labels: Tensor) -> Tensor:
        index, values = rival.influence(inputs, top_k=len(train))[layers[0]]
        return torch.empty_like(values).scatter_(1, index, values)

    return Started(scores, folder=folder)


def _batches(inputs: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
    return list(zip(inputs.split(BATCH), labels.split(BATCH), strict=True))
