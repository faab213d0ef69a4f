"""A project of your own: what `dualview` needs to know of it, and a first look."""

from pathlib import Path

import torch

import dualview as dv
from dualview.evaluation.tasks import recipes, sources

train_digits, test_digits = sources.mnist_5k()  # yours: a map-style data set, tensors, or a DataLoader
train_set, test_set = train_digits.pairs, test_digits.pairs  # inputs and labels
recipe = recipes.Recipe(recipes.small_cnn, epochs=2, learning_rate=1e-3, batch_size=64, optimiser="adam")


def train(mask=None, seed=0):  # only `dualview audit --verify` needs this
    return recipe.train(*train_set, 10, mask=mask, seed=seed)


if not Path("model.pt").exists():
    torch.save(train().state_dict(), "model.pt")
model = recipes.small_cnn((1, 28, 28), 10).eval()
model.load_state_dict(torch.load("model.pt"))
task = dv.Task(model, class_names=list("0123456789"))

if __name__ == "__main__":
    explainer = dv.fit(dv.DualView(), task, train_set, held_out=test_set, store="runs/mine")
    print(explainer, explainer.fidelity["held_out"], sep="\n")
    errors = explainer.errors()  # the wrong predictions on the held-out data, worst first
    scores = explainer.explain(test_set[0][errors.index[:8]], top=20)
    print(scores.top(3).proponents.train_index)
    dv.plot(scores).savefig("neighbours.png")
    maps = dv.render(dv.relate(explainer, test_set[0][errors.index[:1]]), dv.LRP("epsilon-plus-flat"), k=3)
    dv.plot(maps).savefig("relation.png")
    dv.write_report(explainer, test_set, "report.html")
