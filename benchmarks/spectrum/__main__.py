"""What support spectrums are worth: five tests that the paper leaves out, `python -m benchmarks.spectrum`.

Real digits and an MLP with 64 hidden units (`dualview.evaluation.tasks`), three networks each. "SupportSpectrum" is the
paper's: the network's own readout, W_c alone. Its path is read from its global or from its local end, or taken whole;
of the other methods the strongest proponents of the predicted class's margin count. "importance alone" ranks the class
by the spectrum's global importance, whatever the test sample. Numbers are means over networks and test samples with
95 % intervals over test samples; nothing is tuned.

- *(a) Support and confidence*: Spearman's correlation of the size of R with the probability of the predicted class.
- *(b) Wrong labels*: 5 % of the training labels are flipped. Share of flipped ones among the first sample and the first
  five. The share among all of them is 0.05.
- *(c) Overlap*: mean Jaccard index of the lists of five (or of whole paths) of two test samples, over all pairs and
  over those with the same prediction. 1: the answer is the same whatever is asked.
- *(d) Removal*: change of the margin of the predicted class when a network is trained without the samples: those of
  the path, or as many of another method or kind. 20 test samples, three seeds for each; the network with all samples
  has the same seeds. Below the random arms: the samples carried the prediction.
- *(e) Subclass*: classes 2k and 2k + 1 share a label; whether the first sample has the test sample's own class, where
  the label is predicted right. A random sample of the predicted label has it half of the time.
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

import dualview as dv
from benchmarks.__main__ import machine, table
from dualview.data._method import DataMethod
from dualview.evaluation._estimate import Estimate, estimate, interval
from dualview.evaluation.tasks import SOURCES, Problem
from dualview.ops.ranking import spearman

ROOT = Path(__file__).resolve().parents[2]
STORE = ROOT / "runs" / "evaluation"
RESULT = ROOT / "benchmarks" / "results" / "spectrum.md"
TASKS = ("digits-mlp", "mnist-mlp")
NETWORKS = (0, 1, 2)
RETRAININGS = (0, 1, 2)
REMOVED_FOR = 20  # test samples
ARMS = ("LastLayerInfluence", "DualView", "RepresenterPoints", "same class, at random", "at random")
K = 5

SPECTRA: dict[str, DataMethod] = {
    "SupportSpectrum": dv.SupportSpectrum(),
    "SupportSpectrum, cosine": dv.SupportSpectrum(similarity="cosine"),
    "SupportSpectrum, runner-up": dv.SupportSpectrum(rival="runner-up"),
    "SupportSpectrum of LastLayerInfluence": dv.SupportSpectrum(dv.LastLayerInfluence(curvature="blocks")),
    "SupportSpectrum of RepresenterPoints": dv.SupportSpectrum(dv.RepresenterPoints(fit_to="labels")),
}
RANKED: dict[str, DataMethod] = {
    "LastLayerInfluence": dv.LastLayerInfluence(),
    "GradDot": dv.GradDot(),
    "DualView": dv.DualView(),
    "RepresenterPoints": dv.RepresenterPoints(),
    "RepresenterPoints(fit_to='labels')": dv.RepresenterPoints(fit_to="labels"),
}

Lists = list[Tensor]
"""For each test sample the training samples that a method names, in order; some may be short or empty."""


class Network:
    """One of the networks of a problem, with what every test asks of it."""

    def __init__(self, problem: Problem, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.task = problem.task(problem.model(seed))
        with torch.no_grad():
            logits = self.task.model(problem.test.inputs)
            self.train_logits = self.task.model(problem.train.inputs)
        self.confidence, self.predicted = logits.softmax(1).max(1)

    def selection(self, name: str) -> dv.Selection:
        explainer = dv.fit(SPECTRA[name], self.task, self.problem.train.pairs, progress=False)
        return explainer.select(self.problem.test.inputs)

    def proponents(self, method: DataMethod, k: int) -> Lists:
        explainer = dv.fit(method, self.task, self.problem.train.pairs, progress=False)
        found = explainer.explain(self.problem.test.inputs, top=k).top(k).proponents.train_index
        return [row[row >= 0] for row in found]

    def by_class(self, order: Callable[[Tensor, int], Tensor]) -> Lists:
        """Return for each test sample the samples of its predicted class, in some order."""
        labels = self.problem.train.labels
        members = [(labels == column).nonzero().squeeze(1) for column in range(self.problem.num_classes)]
        return [order(members[c], row) for row, c in enumerate(self.predicted.tolist())]

    def at_random(self, members: Tensor, row: int) -> Tensor:
        generator = torch.Generator().manual_seed(1000 * self.seed + row)
        return members[torch.randperm(len(members), generator=generator)]

    def lists(self, k: int) -> Iterator[tuple[str, Lists]]:
        """Yield what each contender names first, k samples at most."""
        for name in SPECTRA:
            paths = [rows.train_index for rows in map(self.selection(name).__getitem__, range(len(self.predicted)))]
            yield f"{name}, global end", [path[:k] for path in paths]
            yield f"{name}, local end", [path.flip(0)[:k] for path in paths]
        for name, method in RANKED.items():
            yield name, self.proponents(method, k)
        weakest = self.by_class(lambda of, row: of[self.train_logits[of, self.predicted[row]].argsort(stable=True)])
        yield "importance alone", [row[:k] for row in weakest]
        yield "same class, at random", [row[:k] for row in self.by_class(self.at_random)]
        everything = torch.arange(len(self.problem.train.labels))
        yield "at random", [self.at_random(everything, row)[:k] for row in range(len(self.predicted))]


def over_networks(values: list[Tensor]) -> Estimate:
    """Return the mean over networks for each test sample, and its mean with an interval over these."""
    return estimate("", torch.stack(values).double().nanmean(0))


def said(found: Estimate) -> str:
    missing = len(found.values) - found.num_samples
    return f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})" + (f", {missing} without" if missing else "")


def gathered(networks: list[Network], k: int) -> dict[str, list[Lists]]:
    """Return the lists of each contender, one for each network."""
    found: dict[str, list[Lists]] = {}
    for network in networks:
        for name, lists in network.lists(k):
            found.setdefault(name, []).append(lists)
    return found


# ── the tests ────────────────────────────────────────────────────────────────────────────────────


def confidence(networks: list[Network]) -> Iterator[dict]:
    for name in SPECTRA:
        sizes = torch.stack([network.selection(name).num_support for network in networks]).double()
        sure = torch.stack([network.confidence for network in networks]).double()
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randint(sizes.shape[1], (sizes.shape[1],), generator=generator) for _ in range(1000)]
        low, high = interval(torch.stack([spearman(sizes[:, rows], sure[:, rows]).mean() for rows in drawn]))
        mean, empty = float(spearman(sizes, sure).mean()), float((sizes == 0).double().mean())
        yield {
            "": name,
            "Spearman": f"{mean:.3f} ({low:.3f} to {high:.3f})",
            "mean size of R": f"{sizes.mean():.0f}",
            "empty": f"{100 * empty:.1f} %",
        }


def share(wanted: Tensor, lists: Lists, k: int) -> Tensor:
    """Return the share of wanted samples among the first k of each list; NaN for an empty one."""
    return torch.stack([wanted[rows[:k]].double().mean() for rows in lists])


def wrong_labels(networks: list[Network]) -> Iterator[dict]:
    flipped = networks[0].problem.train.flipped
    for name, by_network in gathered(networks, K).items():
        first = {k: over_networks([share(flipped, lists, k) for lists in by_network]) for k in (1, K)}
        yield {"": name, "first": said(first[1]), f"first {K}": said(first[K])}


def overlap(networks: list[Network]) -> Iterator[dict]:
    lists = gathered(networks, K)
    lists["SupportSpectrum, whole path"] = [
        [network[row].train_index for row in range(len(network))]
        for network in (one.selection("SupportSpectrum") for one in networks)
    ]
    for name, by_network in lists.items():
        found = [jaccard(rows, network) for rows, network in zip(by_network, networks, strict=True)]
        everyone, alike = (over_networks(list(part)) for part in zip(*found, strict=True))
        yield {"": name, "all pairs": said(everyone), "same prediction": said(alike)}


def jaccard(lists: Lists, network: Network) -> tuple[Tensor, Tensor]:
    """Return each list's mean Jaccard index with all others that are not empty, and with those of its class."""
    member = torch.zeros(len(lists), len(network.problem.train.labels), dtype=torch.float64)
    for row, rows in enumerate(lists):
        member[row, rows] = 1
    sizes, shared = member.sum(1), member @ member.T
    index = shared / (sizes[:, None] + sizes - shared)
    held = (sizes > 0)[:, None] & (sizes > 0) & ~torch.eye(len(lists), dtype=torch.bool)
    alike = held & (network.predicted[:, None] == network.predicted)
    everyone, same = (torch.where(pairs, index.nan_to_num(), 0).sum(1) / pairs.sum(1) for pairs in (held, alike))
    return everyone, same


def removal(networks: list[Network]) -> Iterator[dict]:
    network, problem = networks[0], networks[0].problem
    paths = network.selection("SupportSpectrum")
    chosen = (paths.counts > 0).nonzero().squeeze(1)[:REMOVED_FOR].tolist()
    sizes = paths.counts.tolist()
    arms: dict[str, Lists] = {"SupportSpectrum, whole path": [paths[row].train_index for row in range(len(paths))]}
    arms |= {name: lists for name, lists in network.lists(max(sizes)) if name in ARMS}

    def margins(mask: Tensor, rows: list[int], seeds: Sequence[int] = RETRAININGS) -> Tensor:
        """Return the margin of each test sample under each retrained network, "seed row"."""
        models = [problem.retrain(mask, seed) for seed in seeds]
        with torch.no_grad():
            return torch.stack([dv.margin(one(problem.test.inputs[rows]), network.predicted[rows]) for one in models])

    everything = torch.ones(len(problem.train.labels), dtype=torch.bool)
    before = margins(everything, chosen)
    for name, lists in arms.items():
        changes, removed = [], 0
        for place, row in enumerate(chosen):
            dropped = lists[row][: sizes[row]]
            removed += len(dropped)
            without = margins(everything.index_fill(0, dropped, False), [row])[:, 0]
            changes.append((without - before[:, place]).mean())
        found = estimate("", torch.stack(changes))
        print(f"{name}: {said(found)}", flush=True)
        yield {"": name, "change of the margin": said(found), "samples removed": f"{removed / len(chosen):.1f}"}
    other = margins(everything, chosen, [seed + len(RETRAININGS) for seed in RETRAININGS])
    found = estimate("", (other - before).mean(0))
    yield {"": "nothing removed, other seeds", "change of the margin": said(found), "samples removed": "0"}


def subclass(networks: list[Network]) -> Iterator[dict]:
    train, test = networks[0].problem.train, networks[0].problem.test
    for name, by_network in gathered(networks, K).items():
        values = []
        for network, lists in zip(networks, by_network, strict=True):
            hits = [
                (train.subclasses[rows[:1]] == of).double().mean()
                for rows, of in zip(lists, test.subclasses, strict=True)
            ]
            values.append(torch.where(network.predicted == test.labels, torch.stack(hits), torch.nan))
        yield {"": name, "first sample of the same subclass": said(over_networks(values))}


TESTS: dict[str, tuple[str, Callable[[list[Network]], Iterator[dict]]]] = {
    "(a) Support and confidence": ("standard", confidence),
    "(b) Wrong labels": ("flipped", wrong_labels),
    "(c) Overlap": ("standard", overlap),
    "(d) Removal": ("standard", removal),
    "(e) Subclass": ("merged", subclass),
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.spectrum", description=__doc__)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"measure these alone, of {', '.join(TASKS)}")
    parser.add_argument("--store", type=Path, default=STORE, help="folder that keeps networks")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    parts = []
    for task in arguments.tasks or TASKS:
        for title, (variant, test) in TESTS.items():
            problem = Problem(SOURCES[task], variant, arguments.store)
            rows = list(test([Network(problem, seed) for seed in NETWORKS]))
            parts.append(f"## {title}: {task}\n\n{table(rows)}\n")
            print(parts[-1], flush=True)
            where = f"`make bench-spectrum` on {machine()}. {time.strftime('%Y-%m-%d')}."
            RESULT.write_text(f"# spectrum\n\n{__doc__}\n{where}\n\n" + "\n".join(parts))
    print(f"Written: {RESULT}")


if __name__ == "__main__":
    main()
