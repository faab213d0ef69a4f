"""
Compare methods
===============

Five methods score the training samples of the same network. Which of them should you believe? Nobody knows the true
answer for a real network, but some questions have an answer that can be checked: what retraining does, where a mark was
planted, which labels were flipped. This page takes these measurements on a small table of real data, in less than a
minute, and reads the result.

The command line does the same: ``dualview evaluate --tasks wine --methods DualView --methods ForwardInfluence``.
"""

import tempfile
from functools import partial
from pathlib import Path

import torch

import dualview as dv
from dualview.evaluation.cases import case_of, case_of_task
from dualview.evaluation.contenders import contenders
from dualview.evaluation.judgement import judge
from dualview.evaluation.metrics import chosen
from dualview.evaluation.tasks import SOURCES, Problem

torch.set_num_threads(1)
folder = Path(
    tempfile.mkdtemp()
)  # where networks and retrained outputs are kept; a folder of yours keeps them for good

# %%
# What is judged
# --------------
# The built-in task ``wine`` is 118 training rows of 13 columns, three cultivars, and a network of 64 hidden units. It
# comes in variants, each with another flaw planted, since each metric needs to know a truth: in "shortcut" 30 % of one
# class's training rows have a telltale column, in "flipped" 5 % of the labels are wrong, and "standard" has no flaw
# but a bank of networks that were retrained on random halves of the rows.
#
# Contenders are methods with their settings, as you would write them. Without random scores no table can be read, so
# they come first; ``same-class`` only looks at labels and is the second thing to beat.

asked = contenders(["random", "same-class", "DualView", "FeatureSimilarity", "GradDot", "ForwardInfluence"])
metrics = chosen(["lds", "shortcut-detection", "mislabel-detection"])
cases = [
    partial(case_of, Problem(SOURCES["wine"], variant, folder), num_subsets=40)
    for variant in ("standard", "shortcut", "flipped")
]
judgement = judge(asked, metrics, cases, progress=False)
for line in judgement.lines:
    found = line.estimate
    said = line.why_not if found is None else f"{found.mean:6.3f}  ({found.low:.3f} to {found.high:.3f})"
    print(f"{line.metric:20}{line.contender:20}{said}")

# %%
# ``judgement.to_markdown()`` and ``to_csv()`` write the whole table with notes and costs. As a figure: a dot is a mean
# over test samples, its bar a 95 % bootstrap interval, the dashed line what random scores would get.

figure = dv.plot(judgement)
figure

# %%
# How to read it
# --------------
# *Intervals first.* Where the bars of two methods overlap widely, this table cannot tell them apart, whatever their
# means say. The wine test set is small, and the bars are long.
#
# *The linear datamodelling score* asks what retraining does: over random halves of the training set, does the sum of a
# method's scores rank the retrained outputs rightly? Its note gives the noise ceiling, which perfect scores could
# reach. Of a similarity the note says that its sums mean nothing of their own.
#
# *Shortcut detection* asks whether the rows with the telltale column stand high for test rows that it leads astray.
#
# *Mislabel detection* ranks training rows by how suspicious a method finds their labels. ``same-class`` has no
# opinion, and "does not apply" is not zero.
#
# No method leads everywhere, and none has to: DualView's scores are *shares* of a surrogate, ForwardInfluence's are
# *effects* of retraining. Choose the metric that is your question, then the method. A rank over all metrics, against
# run time, is for a first impression only:

figure = dv.plot(judgement, kind="ranks")
figure

# %%
# Your own network
# ----------------
# Where nothing was planted there are still two honest questions: what retraining does (give a function that trains),
# and whether scores depend on the network at all. ``case_of_task`` takes your task and your data.

problem = Problem(SOURCES["wine"])


def train(mask, seed):
    """Train on the rows where the mask is True; called once for each subset and seed."""
    return problem.retrain(mask, seed)


task = dv.Task(problem.model(), output=dv.margin)
mine = case_of_task(
    task, problem.train.pairs, problem.test.pairs, retrain=train, bank_folder=folder / "mine", num_subsets=20
)
found = judge(contenders(["random", "DualView", "ForwardInfluence"]), chosen(["lds"]), [lambda: mine], progress=False)
for line in found.lines:
    print(f"{line.contender}: {line.estimate}")

# %%
# The note says how few subsets these are. A hundred and two seeds, the default, take a night on a network that trains
# in minutes; they are kept, so that the next method costs nothing but its own scores.
