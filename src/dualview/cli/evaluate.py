"""The command `dualview evaluate`: methods by metrics on tasks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

import dualview as dv
from dualview.cli.places import check_places
from dualview.cli.references import load, task_at
from dualview.cli.tables import print_rows
from dualview.engine.runs import check_train
from dualview.evaluation.cases import case_of, case_of_task
from dualview.evaluation.contenders import BASELINES, NAMES, contenders
from dualview.evaluation.judgement import Judgement, judge
from dualview.evaluation.metrics import chosen
from dualview.evaluation.tasks import SOURCES, VARIANTS, Problem, Source

EXAMPLES = (
    "evaluate --tasks wine --methods 'DualView(C=1e-2)' --methods random --figure metrics.png\n"
    "  dualview evaluate my_project.py:task --data my_project.py:train_set \\\n"
    "      --test my_project.py:test_set --metrics class-detection --metrics sparsity"
)


def evaluate(
    task: Annotated[
        str | None, typer.Argument(metavar="[MODULE:TASK]", help="Your own task; needs --data and --test.")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            help=f"A baseline ({', '.join(BASELINES)}) or a method with its settings, e.g. 'DualView(C=1e-3)'; "
            "repeat for more; random is always among them. Default: every one."
        ),
    ] = None,
    metrics: Annotated[
        list[str] | None,
        typer.Option(help="Repeat for more; 'all' adds those that train networks for each method. Default: the rest."),
    ] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(help="Built-in tasks; repeat for more, or 'all'. Default: mnist-mlp.")
    ] = None,
    store: Annotated[Path, typer.Option(help="Folder that keeps trained networks and retrained outputs.")] = Path(
        "runs/evaluation"
    ),
    data: Annotated[str | None, typer.Option("--data", metavar="MODULE:DATASET", help="Your training set.")] = None,
    test: Annotated[str | None, typer.Option("--test", metavar="MODULE:DATASET", help="Your test set.")] = None,
    train: Annotated[
        str | None,
        typer.Option(metavar="MODULE:TRAIN", help="Your function train(mask, seed) → model, for what retrains."),
    ] = None,
    subsets: Annotated[
        int | None, typer.Option(help="Half subsets that retrained networks saw. Default: 100, or what the task says.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Trainings of each.")] = 2,
    limit: Annotated[
        float | None, typer.Option(help="Seconds for a method's scores on a task, and for each metric on them.")
    ] = None,
    keep: Annotated[
        Path | None, typer.Option(help="Folder in which parts are kept: a killed run goes on. Built-in tasks only.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write the table as CSV.")] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write the table in Markdown.")] = None,
    figure: Annotated[Path | None, typer.Option(help="Draw each metric with its intervals.")] = None,
    ranks: Annotated[Path | None, typer.Option(help="Draw run time against average rank.")] = None,
) -> None:
    """Judge methods by metrics: on built-in tasks with planted flaws, or on your own."""
    named = chosen(metrics)
    check_places([csv, markdown], [figure, ranks])
    if task is None and (data is not None or test is not None or train is not None):
        raise ValueError("--data, --test and --train are of a task of your own: give MODULE:TASK first")
    bank = {"num_subsets": subsets, "num_seeds": seeds}
    if task is not None:
        if data is None or test is None:
            raise ValueError("a task of your own needs --data MODULE:DATASET and --test MODULE:DATASET")
        planted = [metric.name for metric in named if metric.variant != "standard"]
        if metrics is not None and "all" not in metrics and planted:
            raise ValueError(f"{planted[0]} needs a planted flaw: it can be taken on built-in tasks only")
        retrain = None if train is None else load(train, call=False)
        if retrain is not None:
            check_train(retrain)
        folder = store / "banks"
        own = partial(case_of_task, task_at(task), load(data), load(test), retrain=retrain, bank_folder=folder, **bank)
        made = [own]
    else:
        problems = [
            Problem(_source(name), variant, store)
            for name in (SOURCES if tasks and "all" in tasks else tasks or ["mnist-mlp"])
            for variant in VARIANTS
            if any(metric.variant == variant for metric in named)
        ]
        made = [partial(case_of, problem, **bank) for problem in problems]
    judged = contenders(methods or NAMES)
    if BASELINES["random"] not in judged:  # no table without it
        judged.insert(0, BASELINES["random"])
    judgement = judge(judged, named, made, limit=limit, keep=keep)
    _print(judgement)
    for path, text in ((csv, judgement.to_csv), (markdown, judgement.to_markdown)):
        if path is not None:
            path.write_text(text())
            print(f"table: {path}")
    for path, kind in ((figure, "metrics"), (ranks, "ranks")):
        if path is not None:
            dv.plot(judgement, kind=kind).savefig(path)
            print(f"figure: {path}")


def _passes(judgement: Judgement, name: str, way: int) -> int:
    """Add up the samples that one contender sent through networks, forward (0) or backward (1)."""
    return sum(one.fit_passes[way] + one.explain_passes[way] for one in judgement.costs if one.contender == name)


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise ValueError(f"there is no built-in task {name!r}; there are {', '.join(SOURCES)}")
    return SOURCES[name]


def _print(judgement: Judgement) -> None:
    """Print a table for each data set, metric after metric, with all that was noted, costs and ranks."""
    notes: dict[str, int] = {}
    for place in dict.fromkeys((line.data, line.variant) for line in judgement.lines):
        here = [line for line in judgement.lines if (line.data, line.variant) == place]
        metrics, rows = [line.metric for line in here], []
        for line in sorted(here, key=lambda line: metrics.index(line.metric)):
            short = line.short(notes)
            mean = " ".join(filter(None, (short["mean"], short["95 % interval"])))
            rows.append({"metric": line.metric, "contender": line.contender, "mean, 95 % interval": mean})
            rows[-1] |= {name: short[name] for name in ("chance", "better", "notes")}
        print_rows(", ".join(place), rows)
    for note, number in notes.items():
        print(f"[{number}] {note}")
    ranks = judgement.ranks()
    summary = [
        {
            "contender": name,
            "seconds": sum(
                cost.fit_seconds + cost.explain_seconds for cost in judgement.costs if cost.contender == name
            ),
            "forward, backward": f"{_passes(judgement, name, 0)}, {_passes(judgement, name, 1)}",
            "mean rank": f"{ranks[name][0]:.2f} of {ranks[name][1]} comparisons" if name in ranks else "",
        }
        for name in dict.fromkeys(cost.contender for cost in judgement.costs)
    ]
    print_rows("cost and rank", summary)
