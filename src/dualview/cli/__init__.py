"""The command `dualview`: parses, calls, prints."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import dualview as dv
from dualview.cli.evaluate import EXAMPLES, evaluate
from dualview.cli.faults import line_of, place_of
from dualview.cli.places import check_places
from dualview.cli.references import TaskRef, load, task_at
from dualview.cli.tables import print_rows
from dualview.data._explainer import Explainer
from dualview.data._which_fit import newest_fit
from dualview.engine.datasets import as_samples
from dualview.engine.runs import check_train
from dualview.evaluation.counterfactual import removal_effect
from dualview.features.lrp import NAMES

app = typer.Typer(
    help="Explain a trained classifier's predictions by its training data.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

_OF_USE = (ArithmeticError, ValueError, TypeError, LookupError, OSError, ImportError, NotImplementedError)
_OF_CODE = (RuntimeError, AttributeError, NameError, SyntaxError, AssertionError)

LISTED = 30  # suspects that are printed and drawn; the CSV file has all

StoreOption = Annotated[Path, typer.Option("--store", help="Folder that keeps the recorded rows and the fit.")]
TrainOption = Annotated[
    str | None,
    typer.Option(
        "--train",
        metavar="MODULE:DATASET",
        help="The training set, to show its samples in full; without it thumbnails are shown.",
    ),
]
TransformOption = Annotated[
    str | None,
    typer.Option(
        "--transform",
        metavar="MODULE:FUNCTION",
        help="The evaluation transform of the training set, in place of its own augmenting one.",
    ),
]
MethodOption = Annotated[
    str | None,
    typer.Option(
        "--method",
        help="Which fit, where the store holds several: the name that the error lists, or settings that only one has, "
        "as 'DualView(C=0.01)'.",
    ),
]


def _example(command: str) -> str:
    """Return a worked example for the end of a help text, in a paragraph that click is told not to wrap."""
    return f"\b\nExample:\n  dualview {command}"


@app.command(epilog=_example("demo --out dualview-demo"))
def demo(
    folder: Annotated[Path, typer.Option("--out", help="Folder for the page and the store.")] = Path("dualview-demo"),
) -> None:
    """Run the main job on real data: MNIST digits with wrong labels and a shortcut planted."""
    from dualview.demo import demo as run

    run(folder)


@app.command(
    epilog=_example(
        "fit my_project.py:task --data my_project.py:train_set \\\n"
        "      --held-out my_project.py:test_set --store runs/mine"
    )
)
def fit(
    task: TaskRef,
    data: Annotated[str, typer.Option("--data", metavar="MODULE:DATASET", help="The labelled training set.")],
    store: StoreOption,
    C: Annotated[
        str,
        typer.Option(
            "--C",
            metavar="auto|NUMBER",
            help="Weight of the sum of losses; larger gives fewer support samples. auto: the sparsest surrogate "
            "that is about as faithful to the network as the best.",
        ),
    ] = "auto",
    support: Annotated[
        float | None, typer.Option(help="Share of support samples that C is chosen for, instead of fidelity.")
    ] = None,
    fit_to: Annotated[
        str, typer.Option(help="What the surrogate learns: the labels, or the network's own predictions.")
    ] = "labels",
    held_out: Annotated[
        str | None,
        typer.Option(
            "--held-out",
            metavar="MODULE:DATASET|FRACTION",
            help="Labelled data (or a share of the training set) that fidelity is measured on.",
        ),
    ] = None,
    gap: Annotated[float, typer.Option(help="Relative duality gap to reach.")] = 1e-6,
    batch_size: Annotated[int | None, typer.Option(help="Samples per forward pass.")] = None,
    data_id: Annotated[
        str | None, typer.Option(help="Your own name for the training data, part of the store's key.")
    ] = None,
    transform: TransformOption = None,
) -> None:
    """Record the training set and fit DualView."""
    explainer = dv.fit(
        dv.DualView(C=_weight(C), support=support, fit_to=fit_to, gap=gap),
        task_at(task),
        load(data),
        held_out=_held_out(held_out),
        store=store,
        transform=_transform(transform),
        batch_size=batch_size,
        data_id=data_id,
    )
    _print_facts(explainer)
    name, held = newest_fit(dv.Store(store), explainer.task)
    if held > 1:
        print(f"the store holds {held} fits of this model; this one is --method {name}")


@app.command(
    epilog=_example(
        "explain my_project.py:task --data my_project.py:test_set --store runs/mine \\\n"
        "      --index 0 --index 7 --figure neighbours.png"
    )
)
def explain(
    task: TaskRef,
    data: Annotated[str, typer.Option("--data", metavar="MODULE:DATASET", help="The labelled samples to explain.")],
    store: StoreOption,
    index: Annotated[
        list[int] | None,
        typer.Option("--index", help="Position of a sample to explain; repeat for more. Default: the worst error."),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Label of the class to explain, as in the data; default: the prediction.")
    ] = None,
    top: Annotated[int, typer.Option(help="Proponents and opponents to name.")] = 5,
    csv: Annotated[Path | None, typer.Option(help="Write all named scores as CSV.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw the first sample's neighbours (.png, .pdf, .svg).")] = None,
    train: TrainOption = None,
    transform: TransformOption = None,
    method: MethodOption = None,
) -> None:
    """Name the training samples that speak for and against a prediction."""
    check_places([csv], [figure])
    explainer = _open(store, task, train, transform, method)
    samples = as_samples(load(data), name="data")
    positions = index or explainer.errors(samples).index[:1].tolist() or [0]
    for position in positions:
        if not 0 <= position < len(samples):
            raise IndexError(f"--index {position}: the data set has samples 0 to {len(samples) - 1}")
    inputs, _ = explainer.task.split(samples.batch(positions))
    attribution = explainer.explain(inputs, None if target is None else _label(target), top=top)
    attribution = dataclasses.replace(  # of the data set's samples, not of rows of what was picked from it
        attribution, test_index=torch.tensor(positions), source=explainer.source_of(samples)
    )
    for row, position in enumerate(positions):
        _print_neighbours(attribution, row, position, top)
    if csv is not None:
        attribution.to_pandas().to_csv(csv, index=False)
        print(f"scores: {csv}")
    if figure is not None:
        dv.plot(attribution, k=top).savefig(figure)
        print(f"figure: {figure}")


@app.command(
    epilog=_example(
        "audit my_project.py:task --store runs/mine --top 20 --csv suspects.csv \\\n"
        "      --verify my_project.py:train --test my_project.py:test_set"
    )
)
def audit(
    task: TaskRef,
    store: StoreOption,
    top: Annotated[int, typer.Option(help="Suspects to list.")] = 30,
    by: Annotated[str | None, typer.Option(help="Ranking: slack, self_influence or loss.")] = None,
    csv: Annotated[Path, typer.Option(help="Where the suspects go as CSV.")] = Path("suspects.csv"),
    verify: Annotated[
        str | None,
        typer.Option(
            metavar="MODULE:TRAIN",
            help="A function train(mask, seed) → model: retrain without the suspects and compare. Needs --test.",
        ),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option("--test", metavar="MODULE:DATASET", help="Labelled data that retrained models are compared on."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Retrainings per arm.")] = 3,
    figure: Annotated[
        Path | None, typer.Option(help=f"Draw the first {LISTED} suspects with their labels (.png, .pdf, .svg).")
    ] = None,
    train: TrainOption = None,
    transform: TransformOption = None,
    method: MethodOption = None,
) -> None:
    """List the training samples most likely to be wrongly labelled, and check by retraining."""
    if verify is not None and test is None:
        raise ValueError("--verify compares retrained models on labelled data: give --test MODULE:DATASET")
    check_places([csv], [figure])
    recipe = None if verify is None else load(verify, call=False)
    if recipe is not None:
        check_train(recipe)
    explainer = _open(store, task, train, transform, method)
    suspects = explainer.suspects(top, by=by)
    suspects.to_csv(csv)
    print_rows(f"suspects, by {suspects.by}", _with_class_names(suspects.head(LISTED), explainer.task.class_names))
    print(f"{len(suspects)} suspects: {csv}")
    if figure is not None:
        dv.plot(suspects, k=LISTED).savefig(figure)
        print(f"figure: {figure}")
    if recipe is not None:
        effect = removal_effect(
            recipe,
            suspects.index,
            len(explainer.table),
            explainer.task,
            load(str(test)),
            seeds=range(seeds),
            progress=True,
        )
        print_rows(f"retrained, {len(suspects)} samples removed", effect.rows())
        if seeds == 1:
            print("one seed tells nothing about spread: --seeds 3 gives the standard deviation (sd)")


@app.command(
    epilog=_example(
        "report my_project.py:task --data my_project.py:test_set --store runs/mine \\\n"
        "      --train my_project.py:train_set --out report.html"
    )
)
def report(
    task: TaskRef,
    data: Annotated[str, typer.Option("--data", metavar="MODULE:DATASET", help="The labelled samples to explain.")],
    store: StoreOption,
    out: Annotated[Path, typer.Option(help="The HTML file to write.")] = Path("report.html"),
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    rule: Annotated[
        str,
        typer.Option(help=f"How heat maps are made: auto, none, {', '.join(NAMES)}. They need --train."),
    ] = "auto",
    train: TrainOption = None,
    transform: TransformOption = None,
    method: MethodOption = None,
) -> None:
    """Write one self-contained page: fidelity, explained errors with heat maps, suspects."""
    chosen = rule if rule == "auto" else None if rule == "none" else dv.LRP(rule)
    if isinstance(chosen, dv.LRP) and train is None:
        raise ValueError(f"--rule {rule} draws heat maps on training samples: give --train MODULE:DATASET")
    explainer = _open(store, task, train, transform, method)
    print(f"The page: {dv.write_report(explainer, load(data), out, title=title, rule=chosen).resolve()}")


app.command(epilog=_example(EXAMPLES))(evaluate)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; errors of use end with one message and exit code 1, not with a traceback."""
    sys.path.insert(0, "")
    try:
        app(arguments)
    except _OF_USE as error:
        print(f"dualview: {line_of(error)}", file=sys.stderr)
        raise SystemExit(1) from error
    except _OF_CODE as error:
        if place_of(error) is None:  # a fault of this library, which needs its traceback
            raise
        print(f"dualview: {line_of(error)}", file=sys.stderr)
        raise SystemExit(1) from error


def _open(store: Path, task: str, train: str | None, transform: str | None, method: str | None) -> Explainer:
    samples = None if train is None else load(train)
    return dv.open(store, task_at(task), train=samples, transform=_transform(transform), method=method)


def _transform(reference: str | None) -> Any:
    return None if reference is None else load(reference, call=False)


def _held_out(given: str | None) -> Any:
    if given is None:
        return None
    if ":" in given:
        return load(given)
    try:
        return float(given)
    except ValueError:
        raise ValueError(f"--held-out {given!r} is neither MODULE:DATASET nor a fraction of the training set") from None


def _weight(given: str) -> float | str:
    try:
        return float(given)
    except ValueError:
        return given  # "auto", or what the method refuses


def _label(text: str) -> int | str:
    """Return a label from the command line: a number where it is one, else the word."""
    return int(text) if text.removeprefix("-").isdecimal() else text


def _print_facts(explainer: Explainer) -> None:
    facts = explainer.certificate
    seconds = f", {facts['seconds']:.1f} s" if "seconds" in facts else ""
    print(
        f"{facts['support']} of {len(explainer.positions)} training samples are support samples "
        f"({facts['support_share']:.1%}) at C={facts['C']:.3g}; relative duality gap {facts['gap']:.1e} "
        f"({facts['status']}{seconds})"
    )
    if explainer.curve is not None:
        print(explainer.curve)
    print_rows(
        "agreement of surrogate and network", [{"data": name, **scores} for name, scores in explainer.fidelity.items()]
    )


def _print_neighbours(attribution: dv.DataAttribution, row: int, position: int, top: int) -> None:
    one = attribution[row]
    strongest = one.top(top)
    rows = [
        {
            "": kind,
            "train": index,
            "label": _label_of(one, index),
            "score": score,
            **({} if attribution.names is None else {"name": attribution.names[index]}),
        }
        for kind, ranked in (("for", strongest.proponents), ("against", strongest.opponents))
        for index, score in zip(ranked.train_index[0].tolist(), ranked.scores[0].tolist(), strict=True)
        if index >= 0
    ]
    predicted, target = (_class(attribution.class_names, int(column[0])) for column in (one.predicted, one.targets))
    title = f"sample {position}: predicted {predicted}, {attribution.measured} of {target}"
    print_rows(f"{title}, bias {float(one.bias[0]):.3g}", rows)


def _label_of(one: dv.DataAttribution, train: int) -> str:
    """Write a training sample's class, or of its numbers the one that is explained."""
    label = one.train_targets[train]
    return _class(one.class_names, int(label)) if label.ndim == 0 else f"{float(label[one.targets[0]]):.4g}"


def _with_class_names(ranking: dv.Ranking, class_names: Sequence[str] | None) -> list[dict[str, Any]]:
    classes = [
        name for name in ("target", "predicted") if not ranking.columns.get(name, ranking.index).is_floating_point()
    ]
    return [
        {name: _class(class_names, int(value)) if name in classes else value for name, value in row.items()}
        for row in ranking.rows()
    ]


def _class(class_names: Sequence[str] | None, column: int) -> str:
    return str(column) if class_names is None else str(class_names[column])
