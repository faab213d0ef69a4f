"""
Explain a table
===============

Rows and columns instead of images: why does a network call a tumour malignant, by the measured columns of this tumour,
and by the tumours that the network was trained on? Four methods answer for the columns, and this page says what each of
them shares out, in which unit, and from which baseline.

The data are scikit-learn's breast_cancer: 569 tumours, 30 measured columns, malignant or benign. The network is trained
in seconds; its units are smooth, since that is where Taylor effects mean most.
"""

import math

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import dualview as dv
from dualview.evaluation.faithfulness import agreement, infidelity

torch.set_num_threads(1)
torch.manual_seed(0)

table = load_breast_cancer()
columns, classes = [str(name) for name in table.feature_names], [str(name) for name in table.target_names]
raw, labels = torch.tensor(table.data, dtype=torch.float32), torch.tensor(table.target)
order = torch.randperm(len(labels))
training, held = order[:450], order[450:]
mean, deviation = raw[training].mean(0), raw[training].std(0)
inputs = (raw - mean) / deviation  # by the training rows alone
train_set, held_out = (inputs[training], labels[training]), (inputs[held], labels[held])

model = nn.Sequential(nn.Linear(30, 32), nn.GELU(), nn.Linear(32, 16), nn.GELU(), nn.Linear(16, 2))
optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
for _ in range(300):
    optimiser.zero_grad()
    nn.functional.cross_entropy(model(train_set[0]), train_set[1]).backward()
    optimiser.step()
model.eval()
with torch.inference_mode():
    right = (model(held_out[0]).argmax(1) == held_out[1]).float().mean()
print(f"right on {right:.1%} of {len(held)} held-out tumours")

# %%
# What is explained
# -----------------
# One number per tumour. ``dv.margin`` is the log-odds of the predicted class: 0 at 50 %, and +1 multiplies the odds by
# 2.7. All scores below stand in this unit, and a positive one speaks *for the prediction*, be it malignant or benign.

task = dv.Task(model, output=dv.margin, class_names=classes)
with torch.inference_mode():
    probability = model(held_out[0]).softmax(1)
row = int((probability[:, 0] - 0.8).abs().argmin())  # called malignant, and not too sure
x, y = held_out[0][row : row + 1], held_out[1][row : row + 1]
p = float(probability[row, 0])
log_odds = math.log(p / (1 - p))
print(f"held-out row {row}: malignant with {p:.1%}, log-odds {log_odds:+.3f}, labelled {classes[int(y)]}")

# %%
# Integrated gradients from the mean row
# --------------------------------------
# A score needs something to compare with. Here it is the mean training tumour, which is 0 after standardising, so that
# the default baseline is right; of a table that is not standardised it would be a tumour of size zero. The scores share
# out how much the log-odds change on the straight way from there to this row.

from_mean = dv.IntegratedGradients(steps=64).attribute(task, x)
change = from_mean.change.item()
print(f"log-odds at the mean row {log_odds - change:+.3f}, here {log_odds:+.3f}, change {change:+.3f}")
print(f"the scores miss it by {from_mean.completeness_error.item():+.1e}")
dv.plot(from_mean, names=columns, true_targets=y)

# %%
# The small numbers beside the names are the inputs as the network has them, in standard deviations from the mean. For
# people, put the measured values there:

for column in from_mean.values[0].abs().argsort(descending=True)[:4].tolist():
    value, typical = raw[held[row], column], mean[column]
    print(f"{columns[column]:24}{from_mean.values[0, column]:+.3f}   {value:.4g} measured, {typical:.4g} on average")

# %%
# Expected gradients over the training rows
# -----------------------------------------
# No tumour is the mean one. :py:class:`~dualview.ExpectedGradients` compares with many training rows instead, and
# shares out the change from their *mean output*. It draws: the completeness error says what the draws missed.

from_rows = dv.ExpectedGradients(train_set[0], draws=450).attribute(task, x)
print(f"change from the training rows {from_rows.change.item():+.3f},", end=" ")
print(f"completeness error {from_rows.completeness_error.item():+.3f}")
dv.plot(from_rows, names=columns, true_targets=y)

# %%
# The changes of the two differ, because the mean of the outputs is not the output of the mean. Neither is wrong. Say
# which question you answer: "compared with the average tumour" or "compared with tumours as they come".
#
# Taylor effects: why a column has its score
# ------------------------------------------
# :py:class:`~dualview.Taylor` splits a score from the mean row into what the column does alone, to first order and
# beyond, and what it does only together with others. Together they are the score that integrated gradients gave it.

taylor = dv.Taylor(baseline=0.0).attribute(task, x)
for name, part in taylor.split.items():
    print(f"{name:14} sums to {part.sum():+.3f}, sizes to {part.abs().sum():.3f}")
print(f"completeness error {taylor.completeness_error.item():+.1e}")
dv.plot(taylor, names=columns, true_targets=y)

# %%
# A long bar of the interactive part means: do not tell this column's story alone.
#
# Occlusion: effects, not shares
# ------------------------------
# :py:class:`~dualview.Occlusion` puts the mean into one column and looks at what is lost. These are *effects*: they say
# what would happen, and they do not add up to anything where columns act together.

occlusion = dv.Occlusion(baseline=0.0).attribute(task, x)
print(
    f"the effects sum to {occlusion.values.sum():+.3f}; the change from the mean row is {from_mean.change.item():+.3f}"
)
results = {
    "IntegratedGradients": from_mean,
    "ExpectedGradients": from_rows,
    "Taylor": taylor,
    "Occlusion": occlusion,
}
print(f"\n{'':24}" + "".join(f"{name:>21}" for name in results))
for column in from_mean.values[0].abs().argsort(descending=True)[:8].tolist():
    print(f"{columns[column]:24}" + "".join(f"{float(one.values[0, column]):+21.3f}" for one in results.values()))

# %%
# How far do they agree over all held-out rows (rank correlation of the columns' scores), and how well does each
# foretell what happens when random sets of columns are put to the mean? *Infidelity* is 0 where it does so perfectly,
# and 1 is chance.

rows = held_out[0]
methods = {
    "IntegratedGradients": dv.IntegratedGradients(steps=64),
    "ExpectedGradients": dv.ExpectedGradients(train_set[0], draws=450),
    "Taylor": dv.Taylor(baseline=0.0),
    "Occlusion": dv.Occlusion(baseline=0.0),
}
scores = {name: method.attribute(task, rows) for name, method in methods.items()}
for name, one in scores.items():
    alike = agreement(one, scores["IntegratedGradients"])
    wrong = infidelity(one, task, rows, baseline=0.0)
    print(f"{name:22}agreement with integrated gradients {alike.mean:.2f}   infidelity {wrong.mean:.3f}")

# %%
# The infidelity is measured from the mean row; that of expected gradients, which compares with other rows, is not to be
# held against it. Ask with the baseline that your question has.
#
# The training rows
# -----------------
# The same prediction by the tumours that the network was trained on. :py:class:`~dualview.DualView` explains a sparse
# surrogate on the network's features; look at how faithful it is, then at the rows. Give them names that you can look
# up.

names = [f"tumour {position}" for position in training.tolist()]
explainer = dv.fit(dv.DualView(), task, train_set, held_out=held_out, names=names, progress=False)
print(
    f"the surrogate agrees with the network on {explainer.fidelity['held_out']['agreement']:.1%} of the held-out rows"
)
neighbours = explainer.explain(x)
neighbours.to_pandas()[["train_name", "score", "train_target_name"]].head(8)

# %%
# Positive scores speak for the prediction here too. Their unit is the surrogate's log-odds, whose scale is its own: do
# not compare their size with that of the columns' scores. As a figure, dark bars are the columns of each training row
# and light ones those of this row:

dv.plot(neighbours, k=4, true_targets=y)

# %%
# A table of the strongest columns for the strongest rows brings both views together:

strongest = from_mean.values[0].abs().argsort(descending=True)[:4].tolist()
print(f"{'':14}{'label':11}{'score':>8}" + "".join(f"{columns[column]:>25}" for column in strongest))
print(f"{'this tumour':33}" + "".join(f"{raw[held[row], column]:25.4g}" for column in strongest))
top = neighbours.top(3)
for ranked in top:
    for position, score in zip(ranked.train_index[0].tolist(), ranked.scores[0].tolist(), strict=True):
        tumour = training[position]
        told = "".join(f"{raw[tumour, column]:25.4g}" for column in strongest)
        print(f"{names[position]:14}{classes[int(labels[tumour])]:11}{score:+8.3f}{told}")

# %%
# The whole table
# ---------------
# One row is an anecdote. Over all held-out rows: the mean size of each column's score, and whether high values of the
# column speak for malignant. For that, all rows are explained for the same class, by ``targets``.

malignant = dv.IntegratedGradients(steps=64).attribute(task, rows, targets=0)
size = malignant.values.abs().mean(0)
for column in size.argsort(descending=True)[:6].tolist():
    together = torch.corrcoef(torch.stack([rows[:, column], malignant.values[:, column]]))[0, 1]
    print(f"{columns[column]:24} mean size {size[column]:.3f}, correlation of value and score {together:+.2f}")

# %%
# What to do with what you found
# ------------------------------
# Report the baseline, the completeness error and the unit with every number. Where two methods differ on a column, ask
# ``dv.Taylor().allocation(method, task, rows)`` what each makes of the effects (:doc:`when_methods_disagree
# </docs/gallery/how-to/when_methods_disagree>`). Columns that measure nearly the same thing, such as radius, perimeter
# and area here, divide one effect among themselves in ways that differ from network to network: judge them together, as
# players of one group (``players=`` of Taylor and Occlusion).
#
# The metrics are *agreement* and *infidelity* for columns, and the linear datamodelling score for training rows
# (:doc:`/docs/evaluation`); tables stand in :doc:`the benchmark </docs/benchmark>`. A record of one case, with
# retraining: :doc:`/docs/gallery/how-to/answer_for_a_prediction`.
