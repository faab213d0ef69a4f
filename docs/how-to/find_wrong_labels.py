"""
Find wrong labels
=================

You have a classifier and its training data, and some labels are probably wrong. Which samples should a person look at
first? This page ranks the training samples by three suspicions, counts how many planted errors each of them finds, and
checks by retraining whether it helps to drop the suspects.

What it does not answer: whether a given label *is* wrong. A suspicion is high for wrong labels and for hard or odd
samples alike, so that somebody has to look. And where the same mistake was made often enough for the network to learn
it as a rule, none of these rankings sees it.

The data are the 1,797 digits of 8×8 pixels that come with scikit-learn. So that the answer is known, 5 % of the
training labels are changed to another class.
"""

import tempfile
from pathlib import Path

import torch
from matplotlib.figure import Figure

import dualview as dv
from dualview.evaluation.counterfactual import removal_effect
from dualview.evaluation.retrieval import found_among, mislabel_detection
from dualview.evaluation.tasks import planted, recipes, sources

torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())  # what this page writes; take a folder of yours

train, test = sources.digits()
train = planted.flip_labels(train, 0.05, num_classes=10, seed=1)
recipe = recipes.Recipe(
    recipes.mlp, epochs=15, learning_rate=0.05, batch_size=50, momentum=0.9, weight_decay=5e-4, falling=True
)
model = recipe.train(*train.pairs, 10)

num_flipped = int(train.flipped.sum())
with torch.inference_mode():
    right = [(model(data.inputs).argmax(1) == data.labels).float().mean() for data in (train, test)]
print(f"{num_flipped} of {len(train.labels):,} training labels are wrong")
print(f"the network is right on {right[0]:.1%} of the training labels and on {right[1]:.1%} of the test images")

# %%
# Rank
# ----
# The network is trained on the labels as they are, wrong ones included, and so is the surrogate that
# :py:class:`~dualview.DualView` fits to its features. :py:meth:`~dualview.Explainer.suspects` then ranks the training
# samples by one of three numbers:
#
# - *slack*: how far the surrogate contradicts the label. 0 where it keeps the margin, above 1 where it predicts another
#   class.
# - *self-influence*: the sample's score for its own label. High where a sample speaks mostly for itself.
# - *loss*: the network's own loss. It needs no attribution at all, and is the ranking to beat.

task = dv.Task(model, class_names=list("0123456789"))
explainer = dv.fit(dv.DualView(), task, train.pairs, held_out=test.pairs, progress=False)
by = {name: explainer.suspects(by=name) for name in ("slack", "self_influence", "loss")}

looked_at = (20, 50, num_flipped, 2 * num_flipped)


def print_found(rankings):
    """Print how many wrong labels are among the first of each ranking."""
    print("wrong labels among the first  " + "".join(f"{k:6}" for k in looked_at))
    for name, ranking in rankings.items():
        print(f"{name:30}" + "".join(f"{found_among(ranking.index, train.flipped, k):6}" for k in looked_at))
    print(
        f"{'random order, on average':30}" + "".join(f"{k * num_flipped / len(train.labels):6.0f}" for k in looked_at)
    )


print_found(by)

# %%
# Slack and the plain loss find about as many: for this network nobody needs an attribution method to rank its labels.
# Self-influence, the usual ranking of the literature, finds far fewer. It is the sample's weight in the surrogate times
# the squared length of its features, and the weight is bounded by ``C``. Wrong labels are at that bound, but so are
# others, and among these the length decides, which says nothing of labels:

at_bound = explainer.importance() > 0.999 * explainer.certificate["C"]
print(
    f"{int(at_bound.sum())} samples are at the bound, {int((at_bound & train.flipped).sum())} of them labelled wrongly"
)

# %%
# Over the whole ranking, 0.5 being a random order and 1 the best one, with 95 % bootstrap intervals:

for name, ranking in by.items():
    suspicion = torch.empty(len(train.labels))
    suspicion[ranking.index] = ranking.columns[name]
    found = mislabel_detection(suspicion, train.flipped)
    print(f"{name:15}{found.mean:.3f}  ({found.low:.3f} to {found.high:.3f})")

# %%
# When the network has learnt the labels by heart
# -----------------------------------------------
# Slack and loss lean on the network *not* having fitted the wrong labels. The same network again, trained without
# weight decay for so long that it fits nearly every label, in two ways that differ only in epochs, step and batch:

recipes_by_heart = {
    "150 epochs, batches of 50": recipes.Recipe(recipes.mlp, 150, 0.1, batch_size=50, momentum=0.9, falling=True),
    "100 epochs, batches of 20": recipes.Recipe(recipes.mlp, 100, 0.05, batch_size=20, momentum=0.9, falling=True),
}
for name, by_heart in recipes_by_heart.items():
    fitted = by_heart.train(*train.pairs, 10)
    with torch.inference_mode():
        learnt = (fitted(train.inputs).argmax(1) == train.labels).float().mean()
    print(f"\n{name}: right on {learnt:.1%} of the training labels")
    late = dv.fit(dv.DualView(), dv.Task(fitted), train.pairs, held_out=test.pairs, progress=False)
    print_found({name: late.suspects(by=name) for name in ("slack", "self_influence", "loss")})

# %%
# Slack and loss find fewer than before, self-influence more, and which of the three is ahead changes with the recipe
# and with the length of the list: nothing to build a rule on. Look at the training accuracy first. Where it is near 100
# %, rank by an earlier checkpoint, or by networks that did not see the sample (train on parts in turn), before you
# change the method.
#
# Methods without a surrogate answer in the same way. The loss alone is ``dv.fit(dv.Loss(), task, train)``; an influence
# function ranks by what including a sample takes from its own loss. On the network that has not learnt by heart:

for method in (dv.Loss(), dv.KernelInfluence()):
    other = dv.fit(method, task, train.pairs, progress=False)
    number = found_among(other.suspects().index, train.flipped, num_flipped)
    print(f"{type(method).__name__:16}{number} of {num_flipped} among the first {num_flipped}")

# %%
# Look
# ----
# ``plot`` draws a ranking: each suspect with its label, what the network predicts, and the number that made the order.
# In your data nobody knows which are wrong; here names tell what each digit is, and whether its label was changed.

truths = [
    f"is a {true}, {'label changed' if flipped else 'as labelled'}"
    for true, flipped in zip(train.true_labels.tolist(), train.flipped.tolist(), strict=True)
]
dv.plot(explainer.suspects(12), names=truths)

# %%
# Places 61 to 76 by slack are about where the ranking stops being right. A red frame marks the changed labels. The
# others are what a ranking costs: digits that are hard to read, and that somebody has to look at.


def sheet(ranking, places, columns=8):
    """Draw these places of a ranking, each sample with its label and the network's prediction."""
    rows = ranking.rows()
    figure = Figure(figsize=(1.3 * columns, 1.75 * len(places) / columns), layout="constrained")
    for cell, place in enumerate(places):
        sample = rows[place]
        axes = figure.add_subplot(-(-len(places) // columns), columns, cell + 1, xticks=[], yticks=[])
        axes.imshow(train.inputs[sample["index"], 0].numpy(), cmap="gray_r", interpolation="bilinear")
        axes.set_title(
            f"{place + 1}. no. {sample['index']}\nlabel {sample['target']}, not {sample['predicted']}?", fontsize=8
        )
        wrong = bool(train.flipped[sample["index"]])
        axes.spines[:].set(edgecolor="tab:red" if wrong else "0.8", linewidth=2.5 if wrong else 0.8)
    return figure


sheet(by["slack"], range(60, 76))

# %%
# Why is a label suspected? Explain the sample *for the label it has*. A sample is its own strongest proponent, as a
# rule, since the surrogate was fitted to its label. What counts is what all the others say.

first = by["slack"].index[:1]
scores = explainer.explain(train.inputs[first], train.labels[first])
own = float(scores.dense()[0, first[0]])
rest = float(scores.dense().sum() + scores.bias.sum()) - own
print(f"for its label: its own share {own:+.2f}, all other samples and the bias {rest:+.2f}")
dv.plot(scores, true_targets=train.true_labels[first])

# %%
# Verify
# ------
# On data with known flaws the ranking can be counted. On yours, retraining is the check that does not need the truth:
# does the network get better without the suspects, and more so than without as many random samples? The test labels
# must be good; suspects of your own test set distort this.

suspects = by["slack"].index[:num_flipped]
effect = removal_effect(
    lambda mask, seed: recipe.train(*train.pairs, 10, mask=mask, seed=seed),
    suspects,
    len(train.labels),
    task,
    test.pairs,
    seeds=(0, 1, 2),
)
for row in effect.rows():
    print(
        f"{row['trained on']:32} test accuracy {row['accuracy']:.1%} ± {row['accuracy_sd']:.1%}, loss {row['loss']:.3f}"
    )

# %%
# ``±`` is the standard deviation over the seeds, and three seeds are few: a difference of that size is none. Read the
# random arm first: what it loses against all samples is the price of fewer data, and the suspects' arm has to be better
# than it. The loss tells more than the accuracy, which counts whole images. Where nothing moves, the wrong labels did
# no harm that you can measure, and reviewing them is for the data's sake, not for this network's.
#
# What to do with what you found
# ------------------------------
# *Review, do not delete.* Write the list, look at it from the top, and stop where a page of suspects holds hardly any
# error: that place is your estimate of where the ranking ends being worth the time.

ranking = explainer.suspects(num_flipped)
ranking.to_csv(folder / "suspects.csv")
print((folder / "suspects.csv").read_text().splitlines()[0])
for row in ranking.head(3).rows():
    print({name: round(value, 3) if isinstance(value, float) else value for name, value in row.items()})

# %%
# The column ``predicted`` is a proposal for the right label, no more than that. How good a one, here:

wrong = ranking.index[train.flipped[ranking.index]]
with torch.inference_mode():
    proposed = model(train.inputs[wrong]).argmax(1)
print(f"{(proposed == train.true_labels[wrong]).float().mean():.0%} of the wrong labels found would be set right by it")

# %%
# *A page to look at* instead of a table: ``dv.write_report(explainer, test.pairs, "report.html", top_suspects=100)``
# lists the suspects with their pictures. From the command line, with the check by retraining:
#
# .. code-block:: console
#
#    $ dualview fit my_project.py:task --data my_project.py:train_set --held-out my_project.py:test_set \
#          --store runs/mine
#    $ dualview audit my_project.py:task --store runs/mine --top 100 --csv suspects.csv \
#          --train my_project.py:train_set --figure suspects.png \
#          --verify my_project.py:train --test my_project.py:test_set
#
# *Mend labels rather than drop samples* where the right label is plain; drop what nobody can read; keep what is merely
# hard. Then train anew, and rank anew: the second ranking is made by a network that no longer learnt the first errors.
#
# *Which ranking?* Take the loss where the network does not fit its training labels, and look at slack beside it: where
# the lists differ, a second look is worth most.

by_slack, by_loss = (set(by[name].index[:num_flipped].tolist()) for name in ("slack", "loss"))
for name, only in {"slack": by_slack - by_loss, "loss": by_loss - by_slack}.items():
    print(f"only on the list by {name}: {len(only)}, of which wrong {int(train.flipped[list(only)].sum())}")

# %%
# The metrics that judge this are *mislabel detection* and *mislabel recall* (:doc:`/docs/evaluation`); every method's
# values, with networks that were planted with wrong labels, stand in :doc:`the benchmark </docs/benchmark>`.
