"""
Choose data to keep
===================

You want to train on fewer samples: labelling costs, storage costs, or the data have to be read through by hand. Which
samples can go, and which are needed? This page orders the training samples by several scores, trains again on the first
10 to 50 % of each order, and compares with as many at random. The random line is the one that decides: it is closer to
the others than one expects, and with few samples left it is ahead of them here.

What it does not answer: what another network, or other test data, would need. An order is made for one network and one
set of test samples. It does not replace collecting data where there are none, either.

The data are the 1,797 digits of 8×8 pixels that come with scikit-learn.
"""

import dataclasses
from functools import cache

import torch
from matplotlib.figure import Figure

import dualview as dv
from dualview.evaluation.selection import AT_RANDOM, BY_SCORE, coreset_selection, data_pruning
from dualview.evaluation.tasks import planted, recipes, sources

torch.set_num_threads(1)

train, test = sources.digits()
choose = test.rows(torch.arange(0, 100))  # the samples that scores are made for
measure = test.rows(torch.arange(100, 360))  # the samples that retrained networks are measured on
recipe = recipes.MLP_RECIPE
num_train = len(train.labels)


def trainer(labels):
    """Return a function that trains on part of the samples, with as many steps whatever that part is."""

    @cache
    def trained(kept, seed):
        mask = torch.zeros(num_train, dtype=torch.bool)
        mask[list(kept)] = True
        longer = dataclasses.replace(recipe, epochs=round(recipe.epochs * num_train / len(kept)))
        return longer.train(train.inputs, labels, 10, mask=mask, seed=seed)

    return lambda mask, seed: trained(tuple(mask.nonzero().flatten().tolist()), seed)


retrain = trainer(train.labels)
model = retrain(torch.ones(num_train, dtype=torch.bool), 0)
with torch.inference_mode():
    right = (model(measure.inputs).argmax(1) == measure.labels).float().mean()
print(f"trained on all {num_train:,} samples: right on {right:.1%} of the {len(measure.labels)} that are measured")

# %%
# The number of steps is the same for all parts. With a fixed number of *epochs* a tenth of the samples gets a tenth of
# the steps, and a comparison of parts is partly one of training times.
#
# Orders
# ------
# Four scores, each of the training samples' total over the samples that we choose for, Σ over test samples of
# \|score\|:
#
# - DualView's shares: which samples the surrogate is made of. Most samples have none at all.
# - ForwardInfluence's effects: which samples move the predictions.
# - the same shares, but taken class by class, so that each class keeps the same part of its samples;
# - the network's loss of the training sample, which takes no attribution: hard samples first.

task = dv.Task(model, output=dv.margin)
explainer = dv.fit(dv.DualView(), task, train.pairs, held_out=choose.pairs, progress=False)
shares = explainer.explain(choose.inputs)
effects = dv.fit(dv.ForwardInfluence(), task, train.pairs, progress=False).explain(choose.inputs)
losses = dv.fit(dv.Loss(), task, train.pairs, progress=False).self_influence()
print(f"{explainer.certificate['support_share']:.0%} of the samples are support samples of the surrogate")

# %%
# Importance, a sample's weight in the surrogate, is another common order. It cannot tell samples at the bound ``C``
# apart:

importance = explainer.importance()
at_bound = importance > 0.999 * explainer.certificate["C"]
print(f"{int((importance > 0).sum())} samples have importance, {int(at_bound.sum())} of them the same, the largest")

# %%
# How even are the classes among the first fifth of each order?


def by_class(total):
    """Return scores that rank within each class first: the best of every class, then the second best, and so on."""
    place = torch.empty(num_train)
    for label in train.labels.unique():
        members = (train.labels == label).nonzero().flatten()
        place[members[total[members].argsort(descending=True)]] = torch.linspace(1, 0, len(members))
    return place


total = {
    "DualView": shares.dense().abs().sum(0),
    "ForwardInfluence": effects.dense().abs().sum(0),
    "DualView, class by class": by_class(shares.dense().abs().sum(0)),
    "loss": losses,
}
for name, score in total.items():
    first = score.argsort(descending=True)[: num_train // 5]
    print(f"{name:26}samples of each class: {torch.bincount(train.labels[first], minlength=10).tolist()}")

# %%
# Retrain
# -------
# :py:func:`~dualview.evaluation.selection.coreset_selection` keeps the samples of the largest totals,
# :py:func:`~dualview.evaluation.selection.data_pruning` those of the smallest: if scores mean anything, the second has
# to be worse than random. Both take a result of ``explain``, or a tensor with an order of your own, one row being
# enough.

kept = (0.1, 0.2, 0.3, 0.5)
settings = {"task": task, "test": measure.pairs, "shares": kept, "seeds": (0, 1)}
curves = {name: coreset_selection(score[None], retrain, **settings) for name, score in total.items()}
pruned = data_pruning(shares, retrain, **settings)

lines = {name: curve.accuracy[BY_SCORE].mean(0) for name, curve in curves.items()}
lines["DualView, smallest first"] = pruned.accuracy[BY_SCORE].mean(0)
lines["random"] = pruned.accuracy[AT_RANDOM].mean(0)
print("accuracy on the first      " + "".join(f"{share:8.0%}" for share in kept))
for name, line in lines.items():
    print(f"{name:27}" + "".join(f"{value:8.1%}" for value in line.tolist()))

# %%
# One test sample is 0.4 % of the accuracy, and differences of a point or two are chance. The loss says more: its mean
# over the shares kept, with a 95 % bootstrap interval over test samples.

for name, curve in {**curves, "DualView, smallest first": pruned}.items():
    print(f"{name:27}{curve.score.mean:.3f}  ({curve.score.low:.3f} to {curve.score.high:.3f})")
print(f"{'random':27}{pruned.random.mean:.3f}  ({pruned.random.low:.3f} to {pruned.random.high:.3f})")

# %%
# The accuracies as a figure; the grey line is the network that was trained on everything.

figure = Figure(figsize=(7.5, 4.2), layout="constrained")
axes = figure.add_subplot(xlabel="share of the training samples kept", ylabel="accuracy, mean of two seeds")
axes.axhline(float(right), color="0.75")
for name, line in lines.items():
    style = {"color": "black", "linewidth": 2.5} if name == "random" else {"linewidth": 1.5}
    axes.plot(kept, line, marker="o", markersize=4, label=name, linestyle="--" if "smallest" in name else "-", **style)
axes.xaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
axes.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
axes.legend(frameon=False, loc="lower right")
axes.spines[["top", "right"]].set_visible(False)

# %%
# Read it from the right. Half of the samples by any of the scores is as good as all of them; so is nearly a random
# half. Down to a fifth the scores are level with random or a point ahead. At a tenth, ForwardInfluence and the loss
# fall far behind: the first tenth is the hardest, odd and ambiguous samples without the ordinary ones beside them. The
# intervals of the mean loss overlap: over all shares, no order on this page is proven better than random. The plain
# loss does as well as the attribution that moves predictions.
#
# DualView's order holds out longer for a plain reason. Only support samples have a share; where more are kept than
# there are, the rest is tied at zero and drawn at random, as the note of the curve says:

for note in curves["DualView"].score.notes:
    print(note)

# %%
# That also means that its line depends on the C of the surrogate: with more support samples than are kept, it falls
# like the others.
#
# "Smallest first" keeps what no score needs. It is worse than random from a fifth on: what was left out was needed.
# That is the evidence that the scores mean something, more than the lines above.
#
# With wrong labels
# -----------------
# Scores that name influential samples name wrong labels too. The same with a tenth of the labels changed:

flipped = planted.flip_labels(train, 0.1, num_classes=10, seed=1)
retrain_flipped = trainer(flipped.labels)
model_flipped = retrain_flipped(torch.ones(num_train, dtype=torch.bool), 0)
task_flipped = dv.Task(model_flipped, output=dv.margin)
explainer_flipped = dv.fit(dv.DualView(), task_flipped, flipped.pairs, held_out=choose.pairs, progress=False)
shares_flipped = explainer_flipped.explain(choose.inputs)
settings = {"task": task_flipped, "test": measure.pairs, "seeds": (0, 1)}
largest = coreset_selection(shares_flipped, retrain_flipped, shares=(0.3,), **settings)
first = shares_flipped.dense().abs().sum(0).argsort(descending=True)[: round(0.3 * num_train)]
print(f"of the 30 % of largest shares, {flipped.flipped[first].float().mean():.0%} have a wrong label")

slack = torch.empty(num_train)
suspects = explainer_flipped.suspects()
slack[suspects.index] = suspects.columns["slack"]
cleaned = data_pruning(slack[None], retrain_flipped, shares=(0.9,), **settings)
for name, curve in {"30 %, largest shares": largest, "90 %, smallest slack": cleaned}.items():
    for arm in (BY_SCORE, AT_RANDOM):
        print(f"{name}, {arm:9}  accuracy {curve.accuracy[arm].mean():.1%}, loss {curve.loss[arm].mean():.3f}")

# %%
# The order that helped above gathers the wrong labels here. Dropping the tenth that contradicts its labels most is
# another question than keeping what is needed: first clean, then choose (:doc:`find_wrong_labels`).
#
# What to do with what you found
# ------------------------------
# *Keep a fifth to a half:* drop from the low end of a score, and check by retraining against as many at random. The
# loss is the score to try first, since it costs nothing. If the two lines are as close as here, draw at random and be
# done.
#
# *Keep a tenth:* draw at random, evenly over the classes.
#
# *Hold the training time fixed* when you compare, and ask for more than one seed.
#
# *Measure on samples that the scores have not seen*, as here: an order made for the samples that it is measured on
# flatters itself.
#
# The metrics that judge this are *coreset selection* and *data pruning* (:doc:`/docs/evaluation`); what methods reach
# stands in :doc:`the benchmark </docs/benchmark>`.
