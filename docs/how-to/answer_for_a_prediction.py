"""
Answer for one prediction
=========================

Somebody asks why this one case was decided as it was, and wants an answer that can be checked later. This page goes
through what to write down: the prediction, how far the explanation can be trusted, the training samples and the columns
behind it, what would have changed it, and what cannot be said. At its end stand the files to keep.

What it does not answer: whether the prediction was right, whether it was fair, or what *causes* the outcome in the
world. It explains a network, not a disease.

The data are scikit-learn's breast_cancer: 569 tumours, 30 measured columns, malignant or benign.
"""

import json
import tempfile
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer

import dualview as dv
from dualview import errors as dv_errors
from dualview.evaluation.selection import brittleness
from dualview.evaluation.tasks import recipes

torch.set_num_threads(1)
folder = Path(tempfile.mkdtemp())  # what this page writes; take a folder of yours

table = load_breast_cancer()
columns, classes = [str(name) for name in table.feature_names], [str(name) for name in table.target_names]
raw, labels = torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target)
order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
training, held = order[:400], order[400:]
mean, deviation = raw[training].mean(0), raw[training].std(0)
inputs = (raw - mean) / deviation
train_set, held_out = (inputs[training], labels[training]), (inputs[held], labels[held])

recipe = recipes.Recipe(
    recipes.mlp, epochs=30, learning_rate=0.02, batch_size=20, momentum=0.9, weight_decay=1e-3, falling=True
)


def retrain(mask, seed):
    """Train afresh on the samples where the mask is True."""
    return recipe.train(*train_set, 2, mask=mask, seed=seed)


everything = torch.ones(len(training), dtype=torch.bool)
model = retrain(everything, 0)

# %%
# The prediction
# --------------
# The case is a malignant tumour that the network takes for a benign one, the worst error on the held-out tumours. Write
# down the probability and, beside it, how often the network is right when it is that sure.

task = dv.Task(model, class_names=classes)
explainer = dv.fit(dv.DualView(), task, train_set, held_out=held_out, store=folder / "store", progress=False)
errors = explainer.errors()
case = int(errors.index[0])
x, y = held_out[0][case : case + 1], held_out[1][case : case + 1]
with torch.inference_mode():
    probabilities, all_probabilities = model(x).softmax(1)[0], model(held_out[0]).softmax(1)
print(f"held-out tumour {case}: predicted {classes[int(probabilities.argmax())]} ({probabilities.max():.1%}),", end=" ")
print(f"labelled {classes[int(y)]}")
sure = all_probabilities.max(1).values > 0.9
right = (all_probabilities.argmax(1) == held_out[1])[sure].sum()
print(f"of {int(sure.sum())} held-out tumours that it is more than 90 % sure of, {right} are right")

# %%
# And whether the network has seen anything like it. Outside of the training data no number below means much.

outside = (x[0] < train_set[0].amin(0)) | (x[0] > train_set[0].amax(0))
print(f"columns in which the case lies outside of all training tumours: {int(outside.sum())} of {len(columns)}")
column = int(x[0].abs().argmax())
beyond = (train_set[0][:, column].abs() >= x[0, column].abs()).sum()
print(f"furthest from the mean: {columns[column]}, by {x[0, column]:+.1f} standard deviations;", end=" ")
print(f"as far or further are {int(beyond)} of {len(training)} training tumours")

# %%
# How far the explanation can be trusted
# --------------------------------------
# DualView explains its surrogate exactly. These lines say how far that is the network, on tumours that neither has been
# trained on; and whether the two agree on *this* case.

for name in ("agreement", "matthews", "cosine", "kendall"):
    print(f"{name:12}{explainer.fidelity['held_out'][name]:.3f}")
surrogate = explainer.surrogate_logits(x)[0]
print(f"on this case the surrogate says {classes[int(surrogate.argmax())]}")
print(f"relative duality gap {explainer.certificate['gap']:.1e}, {explainer.certificate['status']}")

# %%
# C was chosen on the same held-out tumours, so that these numbers are a little too good.
#
# Training samples
# ----------------
# For two classes the question "why benign?" is "why benign *rather than malignant*?", so the contrast of the two logits
# is explained. All shares and the bias add up to it, with nothing left out.

rather = dv.Task(model, class_names=classes, output=dv.contrast(1, 0))
decision = dv.fit(dv.DualView(), rather, train_set, held_out=held_out, store=folder / "store", progress=False)
scores = decision.explain(x)
shares = scores.dense()[0]
named = int((shares != 0).sum())
print(f"{named} of {len(shares)} training tumours have a share")
for title, part in (("proponents of benign", shares.clamp(min=0)), ("opponents", shares.clamp(max=0))):
    print(f"{title:28}{part.sum():+.3f}")
print(f"{'bias':28}{scores.bias.item():+.3f}")
print(f"{'sum':28}{shares.sum() + scores.bias.item():+.3f}")
print(f"{'surrogate, from its logits':28}{surrogate[1] - surrogate[0]:+.3f}")
figure_samples = dv.plot(scores, k=3, true_targets=y)

# %%
# Positions alone convince nobody. Show the strongest of them with what is known of them:


def told(row):
    """Say of a tumour what a reader may want to compare."""
    return ", ".join(f"{name} {raw[row, columns.index(name)]:.4g}" for name in ("worst area", "worst texture"))


print(f"{'this case':30}{told(int(held[case]))}")
for side, ranked in zip(("proponent", "opponent"), scores.top(3), strict=True):
    for position, score in zip(ranked.train_index[0].tolist(), ranked.scores[0].tolist(), strict=True):
        row = int(training[position])
        print(f"{side:10}{score:+7.3f}  {classes[int(labels[row])]:11}{told(row)}")

# %%
# Columns
# -------
# Now the network itself, without the surrogate. The baseline is part of the answer: against what is each column
# compared? Here against the mean training tumour, which is 0 after standardising.

features = dv.IntegratedGradients(steps=100, rule="midpoint").attribute(rather, x)
print(
    f"change from the mean tumour {features.change.item():+.3f}, sum of scores {features.values.sum():+.3f},", end=" "
)
print(f"completeness error {features.completeness_error.item():+.1e}")
strongest = features.values[0].abs().argsort(descending=True)[:5].tolist()
for column in strongest:
    value = raw[held[case], column]
    print(f"{columns[column]:24}{features.values[0, column]:+.3f}   {value:.4g}, mean tumour {mean[column]:.4g}")
figure_columns = dv.plot(features, names=columns, true_targets=y)

# %%
# A second baseline is the cheapest test of such an answer. Against benign training tumours instead of the mean:

benign = inputs[training][labels[training] == 1]
against = dv.ExpectedGradients(benign, draws=400).attribute(rather, x)
print(f"change from benign tumours {against.change.item():+.3f},", end=" ")
print(f"completeness error {against.completeness_error.item():+.1e}")
for column in strongest:
    print(f"{columns[column]:24}{against.values[0, column]:+.3f}")

# %%
# Signs that stay may be told as they are; of those that change say both, with their baselines.
#
# What would have changed it
# --------------------------
# *By columns*: put in the mean tumour's value and ask the network, one column at a time and the strongest together.

for chosen in [[column] for column in strongest] + [strongest]:
    changed = x.clone()
    changed[0, chosen] = 0.0
    with torch.inference_mode():
        probability = model(changed).softmax(1)[0, 1]
    print(f"benign {probability:6.1%} with mean {', '.join(columns[column] for column in chosen)}")

# %%
# *By training samples*: shares do not say what retraining would do. ForwardInfluence estimates it, and retraining
# without the strongest proponents checks it, beside as many at random, and beside what another seed does with all of
# them.

by_margin = dv.Task(model, class_names=classes, output=dv.margin)
effects = dv.fit(dv.ForwardInfluence(), by_margin, train_set, progress=False).explain(x)
removed = effects.top(20).proponents.train_index[0]


def log_odds(mask, seed):
    """Return log p/(1 − p) of benign for this case, of a network trained on part of the samples."""
    logits = retrain(mask, seed)(x)[0].detach()
    return float(logits[1] - logits[0])


without, at_random = everything.clone(), everything.clone()
without[removed] = False
at_random[torch.randperm(len(training), generator=torch.Generator().manual_seed(1))[: len(removed)]] = False
print(f"foretold for leaving out 20 proponents: {-effects.dense()[0, removed].sum():+.2f}")
for name, mask in {"all": everything, "without 20 proponents": without, "without 20 at random": at_random}.items():
    found = [log_odds(mask, seed) for seed in range(4)]
    print(f"{name:24}log-odds of benign " + "  ".join(f"{value:+.2f}" for value in found))

# %%
# How many would have to go before the prediction flips, by retraining:

found = brittleness(effects, retrain, by_margin, (x, y), seeds=(0, 1))
for name, one in {"strongest proponents first": found.score, "at random": found.random}.items():
    print(f"{name:28}{one.mean:.1%} of the training samples", *one.notes, sep="\n   note: ")

# %%
# The sign of the foretold effect is right, and its size is off, as first-order estimates are for as many samples at
# once. The seeds differ by more than a random removal does: say so, and do not report one retraining as *the* answer.
#
# What cannot be said
# -------------------
# - That a named training sample *caused* the prediction: shares say what the surrogate is made of, effects what
#   retraining would do on average, and the seeds above show how much of that is chance.
# - That a column causes the disease, or that changing it in the patient would change anything. Columns of one tumour
#   move together; a tumour with one column at the mean may not exist.
# - That other methods would say the same. :doc:`when_methods_disagree` says how to find out.
#
# What to do with what you found: a record
# ----------------------------------------
# Keep what lets somebody else repeat it: results, the store with fingerprints of model and data, and the page.

scores.save(folder / "training_samples.safetensors")
features.save(folder / "columns.safetensors")
kept = dv.DataAttribution.load(folder / "training_samples.safetensors")
print(kept, "\nequal to what was saved:", torch.equal(kept.dense(), scores.dense()))

store = dv.Store(folder / "store")
manifest = store.manifest(store.keys()[0])
record = {
    "case": int(held[case]),
    "predicted": classes[int(probabilities.argmax())],
    "probability": round(float(probabilities.max()), 4),
    "library": manifest.library,
    "model": manifest.key.model_fingerprint,
    "training data": manifest.data_fingerprint,
    "method": scores.method,
    "fit": {name: explainer.certificate[name] for name in ("C", "gap", "status", "support_share")},
    "fidelity": explainer.fidelity["held_out"]["agreement"],
    "baseline": features.baseline,
}
(folder / "record.json").write_text(json.dumps(record, indent=1))
print((folder / "record.json").read_text())

# %%
# The page is for people: the case with its training samples, the certificate and the fidelity, in one file that needs
# nothing else. It has no heat maps here (``rule=None``): on this small network relevance propagation would leave a good
# part of each score in biases, and warn of it, while the columns above have theirs without.

title = f"Tumour {int(held[case])}"
page = dv.write_report(explainer, (x, y), folder / "case.html", num_correct=0, top_suspects=0, rule=None, title=title)
print(page.name, f"{page.stat().st_size // 1024} kB")

# %%
# Another process opens the store with the same model, and gets the same numbers; another model is refused.

reopened = dv.open(folder / "store", task)
print("the same shares:", torch.equal(reopened.explain(x).dense(), explainer.explain(x).dense()))
try:
    dv.open(folder / "store", dv.Task(retrain(everything, 1), class_names=classes))
except dv_errors.StoreMismatch as refusal:
    print(str(refusal).replace(f"{folder}/", ""))

# %%
# Which metric judges it? For effects the *linear datamodelling score* and *brittleness*, for shares the fidelity
# printed above, for columns the completeness error and *infidelity* (:doc:`/docs/evaluation`). How methods compare
# stands in :doc:`the benchmark </docs/benchmark>`.
