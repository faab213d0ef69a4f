"""
Your own model
==============

What does ``dualview`` have to know of a network that you did not write for it? This page takes two as they come: a
residual network written as torchvision writes them, on images with words for labels, and a text classifier that is
called as Hugging Face's are, with dicts in and an object with ``.logits`` out. It shows the :py:class:`~dualview.Task`
of each, stores and other processes, checkpoints, and what is said when something does not fit.

What it needs: PyTorch, a last layer that is linear (for DualView; other methods need none), and a training set with
positions, since positions are what scores name. Neither torchvision nor transformers is needed to run this page.
Fitting and explaining were also tried with transformers 5.23, on small networks with random weights: BERT, RoBERTa and
DistilBERT for sequences, ViT and ResNet for images work as they are; GPT-2 and Llama need the wrapper that is shown
below.
"""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from pydoc_data.topics import topics

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, Dataset

import dualview as dv

torch.set_num_threads(1)
torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())  # what this page writes; take a folder of yours

# %%
# A residual network
# ------------------
# In-place ReLUs, one ReLU used twice, ``out += identity``, ``torch.flatten``: nothing of it has to be rewritten. Rules
# and hooks stand on operations, not on modules.


class BasicBlock(nn.Module):
    def __init__(self, inplanes, planes, stride=1):
        super().__init__()
        self.conv1 = nn.Conv2d(inplanes, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = None
        if stride != 1 or inplanes != planes:
            self.downsample = nn.Sequential(nn.Conv2d(inplanes, planes, 1, stride, bias=False), nn.BatchNorm2d(planes))

    def forward(self, x):
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.layer2 = nn.Sequential(BasicBlock(16, 32, stride=2), BasicBlock(32, 32))
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer2(self.layer1(x))
        x = torch.flatten(self.avgpool(x), 1)
        return self.fc(x)


# %%
# The data set is map-style, its images are normalised, and its labels are words. It has a ``transform``, and the
# training view shifts images at random.

WORDS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
MEAN, DEVIATION = 0.305, 0.376


def normalised(image):
    """The evaluation view."""
    return (image - MEAN) / DEVIATION


def shifted(image):
    """The training view: moved by up to a pixel."""
    return normalised(image.roll(tuple(torch.randint(-1, 2, (2,)).tolist()), (1, 2)))


class Digits(Dataset):
    def __init__(self, positions, transform):
        found = load_digits()
        self.images = torch.tensor(found.images[positions, None], dtype=torch.float32) / 16
        self.labels = [WORDS[label] for label in found.target[positions]]
        self.transform = transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, position):
        return self.transform(self.images[position]), self.labels[position]


order = torch.randperm(1797).numpy()
train_set, test_set = Digits(order[:1400], shifted), Digits(order[1400:], normalised)

model = ResNet(10)
optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
for _ in range(8):
    for images, words in DataLoader(train_set, batch_size=50, shuffle=True):
        optimiser.zero_grad()
        targets = torch.tensor([WORDS.index(word) for word in words])
        nn.functional.cross_entropy(model(images), targets).backward()
        optimiser.step()

# %%
# The task. The network may be in training mode: it is put into evaluation mode for each pass, and left as it was.
#
# - ``classes`` maps each label, as your data have it, to its output column.
# - ``class_names`` are for people, one for each column.
# - ``display`` takes one sample's input and returns an image; undo the normalisation there.
# - ``readout`` is found by itself where one Linear makes the output; ``readout="fc"`` says it.
# - ``output`` is what is explained, the logit by default.

task = dv.Task(
    model,
    classes={word: column for column, word in enumerate(WORDS)},
    class_names=WORDS,
    display=lambda image: image * DEVIATION + MEAN,
)

# %%
# Fitting on the training view is a mistake that is easily made. Two reads of a few samples are compared, and you are
# warned:

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    dv.fit(dv.DualView(C=0.01), task, train_set, progress=False)
for warning in caught:
    print(f"{warning.category.__name__}: {warning.message}")

# %%
# ``transform=`` puts the evaluation view in its place, on a copy of the data set. ``store=`` keeps rows and fit in a
# folder; a killed recording goes on there. A data set, a tuple of tensors or a DataLoader will do; of a DataLoader the
# order, the shuffling and the batch size are not used.

explainer = dv.fit(
    dv.DualView(),
    task,
    train_set,
    held_out=test_set,
    transform=normalised,
    store=folder / "images",
    progress=False,
)
print(explainer)
print(f"readout {explainer.task.readout.module!r}, agreement {explainer.fidelity['held_out']['agreement']:.1%}")

# %%
# Explain a data set or a batch. Targets, where you give them, are labels as your data have them: ``"three"``.

errors = explainer.errors()
positions = errors.index[:4].tolist()
worst = torch.stack([test_set[position][0] for position in positions])
scores = explainer.explain(worst)
true_targets = errors.columns["target"][:4]
print(explainer.explain(worst[:1], "three"))
dv.plot(scores, true_targets=true_targets)

# %%
# Heat maps on both samples pass batch norm, residual sums and in-place operations. What operations absorb on the way is
# booked; above 5 % you are warned, with the places.

maps = dv.render(dv.relate(explainer, worst), dv.LRP("epsilon-plus"), test=0, k=2)
print(f"absorbed on the test side {maps.test_account.absorbed_share:.1%}", end=", ")
print(f"on the training side {maps.train_account.absorbed_share:.1%}")
dv.plot(maps, k=2, true_target=int(true_targets[0]))

# %%
# GradCAM takes a layer by its name, as does every setting that speaks of a place.

dv.plot(dv.GradCAM("layer2").attribute(task, worst), [0, 1], true_targets=true_targets)

# %%
# A text classifier
# -----------------
# Its forward takes ``input_ids``, ``attention_mask`` and ``labels``, and returns an object with a loss and ``.logits``.
# A real project has it in a file, and so has this page, since another process will import it further down.

(folder / "my_net.py").write_text('''
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class ClassifierOutput:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class TextClassifier(nn.Module):
    def __init__(self, vocabulary, num_labels, width=48):
        super().__init__()
        self.embeddings = nn.Embedding(vocabulary, width, padding_idx=0)
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(0.1)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, input_ids, attention_mask=None, labels=None):
        mask = (input_ids != 0 if attention_mask is None else attention_mask)[..., None].float()
        pooled = (self.embeddings(input_ids) * mask).sum(1) / mask.sum(1).clamp(min=1)
        logits = self.classifier(self.dropout(torch.tanh(self.dense(pooled))))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return ClassifierOutput(logits, loss)
''')  # fmt: skip
sys.path.insert(0, str(folder))
from my_net import TextClassifier  # noqa: E402

# %%
# The texts are paragraphs of Python's own manual, each labelled with the topic that it stands in. Batches are dicts,
# padded by a collate function, as a tokeniser and its collator make them.

TOPICS = ["debugger", "string-methods", "formatstrings", "typesmapping", "assignment", "comparisons"]
LENGTH = 40
texts, topic = [], []
for number, name in enumerate(TOPICS):
    found = [" ".join(part.split()) for part in topics[name].split("\n\n") if len(part) > 60]
    texts += found
    topic += [number] * len(found)
words = [[word.strip(".,:;()'\"").lower() for word in text.split()][:LENGTH] for text in texts]
held = torch.arange(len(texts)) % 5 == 0
vocabulary = [
    "[pad]",
    "[unknown]",
    *sorted({word for row, out in zip(words, held, strict=True) if not out for word in row}),
]
index = {word: number for number, word in enumerate(vocabulary)}
samples = [
    {"input_ids": [index.get(word, 1) for word in row], "labels": label}
    for row, label in zip(words, topic, strict=True)
]


def collate(batch):
    """Pad to the longest text of the batch."""
    longest = max(len(sample["input_ids"]) for sample in batch)
    ids = [sample["input_ids"] + [0] * (longest - len(sample["input_ids"])) for sample in batch]
    input_ids = torch.tensor(ids)
    labels = torch.tensor([sample["labels"] for sample in batch])
    return {"input_ids": input_ids, "attention_mask": (input_ids != 0).long(), "labels": labels}


train_texts = [sample for sample, out in zip(samples, held, strict=True) if not out]
test_texts = [sample for sample, out in zip(samples, held, strict=True) if out]
loader = DataLoader(train_texts, batch_size=16, shuffle=True, collate_fn=collate)
test_loader = DataLoader(test_texts, batch_size=16, collate_fn=collate)

network = TextClassifier(len(vocabulary), len(TOPICS))
optimiser = torch.optim.Adam(network.parameters(), lr=5e-3)
for epoch in range(12):
    for batch in loader:
        optimiser.zero_grad()
        network(**batch).loss.backward()
        optimiser.step()
    if epoch % 4 == 3:  # checkpoints, for methods that use several
        save_file(network.state_dict(), folder / f"epoch{epoch}.safetensors")
print(f"{len(train_texts)} and {len(test_texts)} texts, {len(vocabulary):,} words")

# %%
# The task needs nothing but the model: labels are found under ``labels`` (or ``label``, ``targets``, ``target``,
# ``y``), the rest of the dict is what the model is called with, and logits are found in what it returns. Other batches
# need ``split=``, a function batch → (inputs, targets), such as ``lambda batch: ({"input_ids": batch["ids"]},
# batch["topic"])``. Here only names and a ``display`` are added, which turns one sample's input into text.


def as_text(inputs):
    """Decode one sample's token ids."""
    return " ".join(vocabulary[number] for number in inputs["input_ids"].tolist() if number)


text_task = dv.Task(network, class_names=TOPICS, display=as_text)
text_explainer = dv.fit(dv.DualView(), text_task, loader, held_out=test_loader, store=folder / "texts", progress=False)
print(f"readout {text_explainer.task.readout.module!r}", end=", ")
print(f"agreement {text_explainer.fidelity['held_out']['agreement']:.1%}")
wrong = text_explainer.errors()
print(f"{len(wrong)} of {len(test_texts)} held-out texts are taken for another topic")
question = collate([test_texts[int(wrong.index[0])]])
dv.plot(text_explainer.explain(question), k=2, true_targets=wrong.columns["target"][:1])

# %%
# Labels in a batch that is explained are not used. Methods for the inputs run at the embedding layer, with the token id
# that stands for absence as the baseline. The figure has a bar for each token, the sum over its embedding; ``names=``
# turns an id into its word, as a tokeniser's ``convert_ids_to_tokens`` does.

gradients = dv.IntegratedGradients(baseline={"input_ids": 0}, site="embeddings", steps=64)
found = gradients.attribute(text_task, question)
print(f"completeness error {found.completeness_error.item():+.1e}")
dv.plot(found, names=vocabulary.__getitem__, true_targets=wrong.columns["target"][:1])

# %%
# Another process
# ---------------
# It needs the model and the store, not the training set. A store refuses a model with other weights.

save_file(network.state_dict(), folder / "model.safetensors")
(folder / "another_process.py").write_text(f"""
import dualview as dv
from my_net import TextClassifier
from safetensors.torch import load_file

network = TextClassifier({len(vocabulary)}, {len(TOPICS)})
try:
    dv.open("texts", network)
except OSError as refused:
    print(type(refused).__name__, "for untrained weights")
network.load_state_dict(load_file("model.safetensors"))
explainer = dv.open("texts", network)
print(explainer)
for row in explainer.suspects(3).rows():
    print("suspect", row["index"], "slack", round(row["slack"], 2), "label", row["target"])
""")
finished = subprocess.run(
    [sys.executable, "another_process.py"], cwd=folder, capture_output=True, text=True, check=True
)
print(finished.stdout)

# %%
# Checkpoints
# -----------
# State dicts, safetensors files or models, alone or in pairs with the learning rate at that time. TracIn uses them all;
# ``parameters=`` keeps to some layers.

paths = sorted(folder.glob("epoch*.safetensors"), key=lambda path: int(path.stem.removeprefix("epoch")))
with_checkpoints = dv.Task(network, class_names=TOPICS, display=as_text, checkpoints=[(path, 5e-3) for path in paths])
tracin = dv.fit(dv.TracIn(parameters=("dense", "classifier")), with_checkpoints, loader, progress=False)
both = [one.explain(question).top(5).proponents.train_index[0].tolist() for one in (text_explainer, tracin)]
print(f"the five strongest proponents by DualView {both[0]}, by TracIn {both[1]}")

# %%
# Models that choose a token
# --------------------------
# ``GPT2ForSequenceClassification``, ``LlamaForSequenceClassification`` and their relatives apply the last layer to
# every token and take the logits of the last one. Then no Linear makes the model's output, and DualView says which
# layer runs where. A wrapper that chooses the token first has the same logits (tried with transformers 5.23):


class LastToken(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.body, self.score = model.base_model, model.score

    def forward(self, input_ids, attention_mask):
        hidden = self.body(input_ids, attention_mask=attention_mask).last_hidden_state
        last = attention_mask.sum(1) - 1  # padded on the right
        return self.score(hidden[torch.arange(len(hidden)), last])


# %%
# What errors say
# ---------------
# Each says what was expected, what came, and what to do. Some that everybody meets:


def complaint(action):
    """Print what is said of a mistake."""
    try:
        action()
    except (TypeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}\n")


complaint(lambda: dv.fit(dv.DualView(), dv.Task(model), test_set, progress=False))  # labels are words
complaint(lambda: explainer.explain(worst[0]))  # a sample without its axis
complaint(lambda: explainer.explain(worst, "eleven"))  # no class
complaint(lambda: dv.fit(dv.DualView(), dv.Task(nn.Sequential(model, nn.Softmax(1))), test_set, progress=False))
complaint(lambda: dv.fit(dv.DualView(), dv.Task(model, readout="head"), test_set, progress=False))
complaint(lambda: dv.fit(dv.DualView(), task, iter(test_set), progress=False))

# %%
# What to do with what you found
# ------------------------------
# Put the task into a file of your project, beside the data set: the command line reads it from there (``dualview fit
# my_project.py:task --data my_project.py:train_set ...``), and so does every other process. Look at
# ``explainer.fidelity`` before anything else; where the agreement is low, choose a method that needs no surrogate
# (:doc:`/docs/which_method`). What is refused and what cannot be seen is listed in :doc:`/docs/limits`, and which
# metric judges your question in :doc:`/docs/evaluation`, with tables in :doc:`the benchmark </docs/benchmark>`.
