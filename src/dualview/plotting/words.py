"""How numbers, classes and measured outputs are written, in figures and on pages alike."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from torch import Tensor

from dualview.data._attribution import DataAttribution
from dualview.engine.outputs import Kind
from dualview.features._attribution import FeatureAttribution

MINUS = "\u2212"

Measured = DataAttribution | FeatureAttribution


def number(value: float, digits: int = 3) -> str:
    """Write a number with so many significant digits; very small and large ones as 1.2e−5."""
    if not math.isfinite(value):
        return "undefined" if math.isnan(value) else ("∞" if value > 0 else f"{MINUS}∞")
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        return f"{value:.{decimals(value, digits)}f}".replace("-", MINUS)
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}".replace("-", MINUS)


def signed(value: float, digits: int = 3) -> str:
    """Write a number with its sign; zero has none."""
    return f"+{number(value, digits)}" if value > 0 else number(value, digits)


def decimals(value: float, digits: int = 3) -> int:
    """Return how many decimals show so many significant digits of a number; 6 at most."""
    return 2 if value == 0 else min(6, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def count(num: int, word: str) -> str:
    """Write how many there are of what the word names."""
    return f"{num} {word}" + ("" if num == 1 else "s")


def grouped(num: int) -> str:
    """Write a count with narrow spaces, where no line breaks, between thousands."""
    return f"{num:,}".replace(",", "\u202f")


def percent(share: float) -> str:
    """Write a share as a percentage with one decimal."""
    small = 0 < abs(share) < 5e-4
    return "less than 0.1\u202f%" if small else f"{100 * share:.1f}\u202f%".replace("-", MINUS)


def signed_to(value: float, places: int) -> str:
    """Write a number with its sign and so many decimals, as in a column of sums."""
    rounded = round(value, places) + 0.0  # no negative zero
    return f"{rounded:{'+' if rounded else ''}.{places}f}".replace("-", MINUS)


def summand(value: float, total: float) -> str:
    """Write a part of a sum with the decimals that show the sum, so that the parts can be added up."""
    return signed_to(value, decimals(total)) if 1e-4 <= abs(total) < 1e6 else signed(value)


def class_word(column: int, class_names: Sequence[str] | None) -> str:
    """Name an output column, on one line: by its class name, else by its number."""
    return str(column) if class_names is None else " ".join(str(class_names[column]).split())


def class_caption(column: int, class_names: Sequence[str] | None) -> str:
    """Name a training label below a picture, where a bare number would not say what it is."""
    word = class_word(column, class_names)
    return f"label {word}" if class_names is None or word.isdigit() else word


def explained_title(predicted: int, target: int, true: int | None, class_names: Sequence[str] | None) -> str:
    """Say what was predicted, what is true where that is known, and what is explained where that is another class."""
    title = f"Predicted {class_word(predicted, class_names)}"
    if true is not None:
        title += f", true label {class_word(true, class_names)}"
    return title if target == predicted else f"{title}, explained for {class_word(target, class_names)}"


def class_phrase(column: int, class_names: Sequence[str] | None) -> str:
    """Name an output column inside a sentence."""
    word = class_word(column, class_names)
    return f"class {word}" if class_names is None else f"“{word}”"


def measured_phrase(attribution: Measured, target: int, class_names: Sequence[str] | None) -> str:
    """Say which output the scores are about, e.g. "logit of class 3"."""
    name = attribution.measured.replace("_", " ").replace("-", MINUS)
    if name.startswith("contrast("):  # of two fixed classes, whatever the target
        return name
    return f"{name} {'for' if attribution.lower_is_better else 'of'} {class_phrase(target, class_names)}"


def brief_phrase(attribution: Measured, target: int, class_names: Sequence[str] | None) -> str:
    """Name the measured output where room is short, and say whether it was linearised."""
    return measured_phrase(attribution, target, class_names) + (", linearised" if attribution.linearised else "")


def output_phrase(attribution: Measured, target: int, class_names: Sequence[str] | None) -> str:
    """Name the measured output inside a sentence, and say where it was linearised."""
    linearised = ", linearised at the network’s logits" if attribution.linearised else ""
    return measured_phrase(attribution, target, class_names) + linearised


def score_sentence(attribution: DataAttribution, row: int, class_names: Sequence[str] | None) -> str:
    """Say what one score of this row is: kind, unit, whether it was linearised, and what the scores add up to."""
    output = output_phrase(attribution, int(attribution.targets[row]), class_names)
    if attribution.kind == "similarity":
        return "Each score is a similarity; sums of them mean nothing."
    if attribution.kind == "effect":
        return f"Each score estimates the sample’s effect on the {output}."
    sentence = f"Each score is a share of the surrogate’s {output}"
    if attribution.top_k is not None:
        return f"{sentence}."
    scores, bias = attribution.scores[row].double(), float(attribution.bias[row])
    return (
        f"{sentence}: all {int((scores != 0).sum())} scores and the bias {signed(bias)} add up to "
        f"{signed(bias + float(scores.sum()))}."
    )


def sides_of(attribution: DataAttribution, row: int) -> tuple[Tensor, Tensor]:
    """Return the scores of all proponents and of all opponents of a row, as far as they were kept."""
    scores = attribution.scores[row].double()
    strength = -scores if attribution.lower_is_better else scores
    return scores[strength > 0], scores[strength < 0]


def carried_phrase(drawn: Sequence[float], scores: Tensor, kind: Kind, word: str = "") -> str:
    """Say how many of one sign's scores are drawn, and how much of their sum these carry."""
    if not drawn:
        return "none: no score of that sign"
    amount = f"{grouped(len(drawn))} of {grouped(len(scores))}{word and ' '}{word}"
    if kind == "similarity":
        return amount
    return f"{amount}, which carry {percent(math.fsum(drawn) / float(scores.sum()))} of their sum"


def carried_sentence(attribution: DataAttribution, row: int, drawn: Sequence[Sequence[float]]) -> str:
    """Say how much of the sums of proponents and of opponents the drawn ones carry; "" where sums mean nothing.

    Args:
        attribution: the scores.
        row: whose they are.
        drawn: the scores of the drawn proponents, and those of the drawn opponents.
    """
    if attribution.kind == "similarity":
        return ""
    sides = sides_of(attribution, row)
    total = float(attribution.bias[row]) + float(attribution.scores[row].double().sum())
    partial = attribution.top_k is not None
    said = []
    for word, shown, scores in zip(("proponents", "opponents"), drawn, sides, strict=True):
        if not shown:
            said.append(f"no {word}")
        elif partial:
            said.append(f"{grouped(len(shown))} {word}, which sum to {signed(math.fsum(shown))}")
        else:
            of_all = carried_phrase(shown, scores, attribution.kind, word)
            said.append(f"{of_all} of {summand(float(scores.sum()), total)}")
    kept = f" Only the top {attribution.top_k} of each sign were kept: the sums of all are not known."
    return f"Drawn: {'; '.join(said)}.{kept if partial else ''}"


def feature_sentence(attribution: FeatureAttribution, target: int, class_names: Sequence[str] | None) -> str:
    """Say which method's scores these are, from which baseline, and of which output."""
    output, baseline = output_phrase(attribution, target, class_names), attribution.baseline
    if baseline is None or baseline in attribution.method:  # a method prints the baseline that is not its default
        return f"{attribution.method}, of the network’s {output}."
    constant = re.fullmatch(r"Constant\((.*)\)", baseline)
    return f"{attribution.method}, baseline {constant[1] if constant else baseline}, of the network’s {output}."


def completeness_phrase(attribution: FeatureAttribution, row: int) -> str:
    """Say what the scores should add up to, where they should."""
    if attribution.change is None or attribution.completeness_error is None:
        return ""
    change, error = float(attribution.change[row]), float(attribution.completeness_error[row])
    return f", the output’s change from the baseline is {signed(change)} (error {signed(error, 2)})"


def others_note(test: object, num_rows: int, *, several: bool) -> list[str]:
    """Say that there are other test samples, where the user named none.

    Args:
        test: what the user named, or None.
        num_rows: test samples of the result.
        several: whether a figure can hold several.
    """
    if test is not None or num_rows < 2:
        return []
    amount = "both" if num_rows == 2 else "more"
    more = f"test={[*range(min(3, num_rows))]} draws {amount}" if several else "test=1 draws another"
    return [f"The first of {num_rows} test samples; {more}."]


def side_phrases(attribution: Measured) -> tuple[str, str]:
    """Say what proponents and what opponents do to the measured output."""
    if attribution.kind == "similarity":
        return "most alike", "least alike"
    name = attribution.measured.replace("_", " ").replace("-", MINUS)
    verbs = ("lower", "raise") if attribution.lower_is_better else ("raise", "lower")
    return f"{verbs[0]} this {name}", f"{verbs[1]} this {name}"
