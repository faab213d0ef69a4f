"""
When two methods disagree
=========================

Two methods explain the same prediction and name different samples, or different features. Before one of them is thrown
away, three questions: do they answer the same question, does the disagreement matter, and can it be decided by an
experiment? This page asks them once for training samples and once for features.
"""

import torch
from sklearn.datasets import load_breast_cancer
from torch import nn

import dualview as dv
from dualview.evaluation import sanity
from dualview.evaluation.tasks import SOURCES, Problem

torch.set_num_threads(1)
problem = Problem(SOURCES["digits-mlp"])  # 1,437 digits of 8×8 pixels, 64 hidden units
train, test = problem.train, problem.test
task = dv.Task(problem.model(), output=dv.margin, class_names=list("0123456789"))

# %%
# Training samples
# ----------------
# DualView and ForwardInfluence, on twenty test digits that the network is least sure of.

unsure = task.logits(task.model(test.inputs).detach()).softmax(1).max(1).values.argsort()[:20]
inputs = test.inputs[unsure]
results = {
    "DualView": dv.fit(dv.DualView(), task, train.pairs, progress=False).explain(inputs),
    "ForwardInfluence": dv.fit(dv.ForwardInfluence(), task, train.pairs, progress=False).explain(inputs),
    "GradDot": dv.fit(dv.GradDot(), task, train.pairs, progress=False).explain(inputs),
    "random": dv.fit(dv.Random(), task, train.pairs, progress=False).explain(inputs),
}
agreement = sanity.agreement(results, k=20)
for first, second in (("DualView", "ForwardInfluence"), ("GradDot", "ForwardInfluence"), ("DualView", "random")):
    common = agreement.overlap[agreement.names.index(first), agreement.names.index(second)]
    print(f"{agreement.between(first, second)}\n  of 20 proponents, {20 * common:.1f} in common")

# %%
# First question: the same question? The kinds say no.

for name, scores in results.items():
    print(f"{name}: {scores.kind}, of {scores.measured}")

# %%
# DualView's scores are shares: what its surrogate's logit is made of, to the last digit. ForwardInfluence's are
# effects: what more of a sample in training would do. Both may be right. A sample in the middle of its class is part
# of many predictions and can be left out without harm; a rare one is a small part of few, and is missed.
#
# Second question: can it be decided? Shares by their sum, which is checked when they are made. Effects by retraining:
# leave out each method's first 30 proponents of one prediction, and as many at random, and look at the margin.

target = results["DualView"].targets[0]
everything = torch.ones(len(train.labels), dtype=torch.bool)


def margin_without(index, seeds=range(5)):
    """Retrain without some samples; return the margin of the first unsure digit, a number for each seed."""
    mask = everything.clone()
    mask[index] = False
    models = [problem.retrain(mask, seed) for seed in seeds]
    return torch.stack([dv.margin(model(inputs[:1]).detach(), target[None])[0] for model in models])


print(f"all samples: {margin_without(torch.tensor([], dtype=torch.long)).mean():.2f}")
for name, scores in results.items():
    margins = margin_without(scores.top(30).proponents.train_index[0])
    error = margins.std() / len(margins) ** 0.5
    print(f"without the first 30 of {name}: {margins.mean():.2f} ± {error:.2f}")

# %%
# One prediction is an anecdote: the linear datamodelling score does this for all test samples, with an interval
# (``dualview evaluate``). Where seeds differ more than methods do, look at :py:func:`dualview.uncertainty` first: an
# effect that changes its sign from seed to seed is no finding.
#
# Features
# --------
# Integrated gradients and occlusion, on a tumour: thirty measured columns, and a network of smooth units.

table = load_breast_cancer()
columns = torch.tensor((table.data - table.data.mean(0)) / table.data.std(0), dtype=torch.float32)
torch.manual_seed(0)
network = nn.Sequential(nn.Linear(30, 32), nn.GELU(), nn.Linear(32, 2))
optimiser = torch.optim.Adam(network.parameters(), lr=1e-2)
for _ in range(100):
    optimiser.zero_grad()
    nn.functional.cross_entropy(network(columns[:450]), torch.tensor(table.target[:450])).backward()
    optimiser.step()
tumours = dv.Task(network.eval(), output=dv.margin, class_names=[str(name) for name in table.target_names])
case = columns[450:451]

methods = {"integrated gradients": dv.IntegratedGradients(), "occlusion": dv.Occlusion()}
for name, method in methods.items():
    scores = method.attribute(tumours, case).values[0]
    print(f"{name}: sum {scores.sum():.2f}, largest", [str(table.feature_names[i]) for i in scores.argsort()[-3:]])

# %%
# Both begin at the mean tumour, which is 0 after standardising, and measure the same margin. The sums differ: what
# columns do together is given to each of them in full by occlusion, and shared out by integrated gradients. Ask for
# the effects themselves, and for what each method makes of them:

taylor = dv.Taylor(baseline=0.0)
for method in methods.values():
    allocation = taylor.allocation(method, tumours, case)
    print(allocation)

figure = dv.plot(allocation, names=[str(name) for name in table.feature_names])
figure

# %%
# If most of the change is of first order, the methods agree and the choice does not matter. Where interactions are
# most of it, no list of single columns is the whole answer: say so, show the split
# (``dv.plot(taylor.attribute(...))``), and choose a baseline that is a real alternative to the case, since every
# number here is a difference from it.
