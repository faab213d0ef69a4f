"""The main job on real data, end to end: a network with planted flaws, and what finds them."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from dualview.data._explainer import Explainer
from dualview.data._fit import fit
from dualview.data.dualview import DualView
from dualview.engine.datasets import as_samples
from dualview.engine.task import Task
from dualview.evaluation.counterfactual import accuracy_and_loss
from dualview.evaluation.retrieval import by_highest, found_among, share_among
from dualview.evaluation.tasks import planted, recipes, sources
from dualview.evaluation.tasks.planted import Planted
from dualview.features.lrp import LRP
from dualview.plotting import plot
from dualview.relations import relate, render
from dualview.report import write_report

FLIPPED, MARKED, MARKED_CLASS = 0.05, 0.3, 2
TOP = 10
BROAD_C = 1e-5  # so small that every sample stands at its bound, and scores follow the features alone


class Steps:
    """Time of each step, in the order they were taken."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Time what happens inside, and say what it is."""
        print(f"{name} ...", flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def demo(folder: Path, *, C: float = 1e-3, epochs: int = 8) -> Path:
    """Run the demo and print what it found.

    A small network is trained on 4,000 MNIST digits; 5 % of the labels are flipped, and 30 % of the
    twos carry a small bright square in a corner. The page, two figures and the store are written into
    `folder`.

    Returns:
        The path of the page.
    """
    steps = Steps()
    with steps("read and spoil MNIST 5k"):
        train, test = sources.mnist_5k()
        train = planted.flip_labels(train, FLIPPED, num_classes=10, seed=1)
        train = planted.mark(train, planted.corner_square, of_class=MARKED_CLASS, share=MARKED, seed=2)
    with steps("train a small network"):
        model = dataclasses.replace(recipes.CNN_RECIPE, epochs=epochs).train(*train.pairs, 10)
    task = Task(model, class_names=tuple("0123456789"))
    with steps("fit DualView"):
        explainer = fit(
            DualView(C=C),
            task,
            train.pairs,
            held_out=test.pairs,
            store=folder / "store",
        )
    with steps("fit it once more, with nearly every sample in play"):
        broad = fit(DualView(C=BROAD_C), task, train.pairs, store=folder / "store", progress=False)
    with steps("explain and write the page"):
        page = write_report(explainer, test.pairs, folder / "demo.html", title="MNIST with planted flaws")
        _draw_errors(explainer, test, folder)
    accuracy, _ = accuracy_and_loss(task, test.pairs)
    _print_fit(explainer, accuracy)
    _print_flipped(explainer, train)
    _print_shortcut([explainer, broad], train, test)
    print("\nSeconds:  " + ",  ".join(f"{name} {seconds:.1f}" for name, seconds in steps.seconds.items()))
    print(f"\nThe page: {page.resolve()}")
    return page


def _draw_errors(explainer: Explainer, test: Planted, folder: Path) -> None:
    """Draw the two worst errors with their neighbours, and where the scores of the worst lie on both samples."""
    worst, data = explainer.errors().index[:2], test.pairs
    attribution = explainer.explain(test.inputs[worst])
    source = explainer.source_of(as_samples(data, name="test"))
    attribution = dataclasses.replace(attribution, test_index=worst, source=source)  # named by their positions there
    plot(attribution, test=[0, 1], true_targets=test.labels[worst]).savefig(folder / "neighbours.png")
    maps = render(relate(explainer, test.inputs), LRP("epsilon-plus-flat"), test=int(worst[0]))
    plot(maps, true_target=int(test.labels[worst[0]])).savefig(folder / "relation.png")


def _print_fit(explainer: Explainer, accuracy: float) -> None:
    facts, held_out = explainer.certificate, explainer.fidelity["held_out"]
    print(f"\nTest accuracy of the network          {accuracy:.1%}")
    agreement = f"{held_out['agreement']:.1%}  (cosine of logits {held_out['cosine']:.3f})"
    print(f"Surrogate agrees on held-out images   {agreement}")
    print(f"Relative duality gap                  {facts['gap']:.1e}  ({facts['status']})")
    print(f"Support share                         {facts['support_share']:.1%}  ({facts['support']} training samples)")


def _print_flipped(explainer: Explainer, train: Planted) -> None:
    number = int(train.flipped.sum())
    print(f"\n{number} training labels were flipped. Among the top {number} suspects of each ranking are")
    for name, ranking in _suspect_rankings(explainer).items():
        found = found_among(ranking, train.flipped, number)
        print(f"  {name:<34}{found:4d}  ({found / number:.0%})")
    print(f"  {'a random order, on average':<34}{number * FLIPPED:4.0f}  ({FLIPPED:.0%})")


def _suspect_rankings(explainer: Explainer) -> dict[str, Int[Tensor, " rank"]]:
    """Rank the training samples by the surrogate, by loss, and as cleanlab does where it is installed."""
    rankings = {
        "DualView, slack": explainer.suspects(by="slack").index,
        "DualView, self-influence": explainer.suspects(by="self_influence").index,
        "training loss": explainer.suspects(by="loss").index,
    }
    if importlib.util.find_spec("cleanlab") is not None:
        from cleanlab.rank import get_label_quality_scores  # pyright: ignore[reportMissingImports]

        probabilities = explainer.table.outputs.softmax(1).numpy()
        quality = get_label_quality_scores(explainer.table.targets.numpy(), probabilities)
        rankings["cleanlab, label quality"] = by_highest(-torch.from_numpy(quality))
    return rankings


def _print_shortcut(explainers: list[Explainer], train: Planted, test: Planted) -> None:
    """Count marked training images among the neighbours of test images that the mark leads astray."""
    others = planted.mark(test, planted.corner_square).inputs[test.labels != MARKED_CLASS]
    twos = test.inputs[test.labels == MARKED_CLASS]
    marked = int(train.marked.sum())
    print(f"\nThe shortcut: {marked} training images, all labelled {MARKED_CLASS}, carry a corner mark.")
    for number, explainer in enumerate(explainers):
        attribution = explainer.explain(others, top=TOP)
        fooled = (attribution.predicted == MARKED_CLASS).nonzero().squeeze(1)
        if number == 0:
            led = f"the network calls {len(fooled)} a {MARKED_CLASS}"
            print(f"  Of {len(others)} marked test images of other digits {led}.")
            print(f"  Marked training images among the top {TOP} proponents of these, and of unmarked {MARKED_CLASS}s:")
        found = share_among(attribution[fooled].top(TOP).proponents.train_index, train.marked)
        usual = share_among(explainer.explain(twos, top=TOP).top(TOP).proponents.train_index, train.marked)
        name = f"C={explainer.certificate['C']:.3g}"
        print(f"  {name:<12}{found:7.1%}{usual:9.1%}")
