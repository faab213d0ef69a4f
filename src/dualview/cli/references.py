"""What the command line names: `MODULE:NAME`, a dotted module or a file, and what stands in it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from dualview.engine.task import Task, as_task

TaskRef = Annotated[
    str,
    typer.Argument(
        metavar="MODULE:TASK",
        help="A dualview.Task or a torch model, or a function that returns one; MODULE is a dotted name or a .py file.",
    ),
]


def load(reference: str, *, call: bool = True) -> Any:
    """Import `MODULE:NAME`; MODULE is a dotted name or a .py file. A plain function is called for its value."""
    module_name, colon, name = reference.rpartition(":")
    if not colon or not name:
        raise ValueError(f"{reference!r} is not of the form MODULE:NAME, e.g. my_project.py:task")
    module = _from_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    if not hasattr(module, name):
        public = ", ".join(sorted(key for key in vars(module) if not key.startswith("_")))
        raise LookupError(f"{module_name} has no {name!r}; it has {public}")
    value = getattr(module, name)
    if not call or not callable(value) or isinstance(value, torch.nn.Module) or hasattr(value, "__getitem__"):
        return value
    return value()


def _from_file(path: Path) -> Any:
    """Import a file once, under its own name, so that what it defines is the same in every reference."""
    name = path.stem
    known = sys.modules.get(name)
    if known is not None and getattr(known, "__file__", None) == str(path.resolve()):
        return known
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    return module


def task_at(reference: str) -> Task:
    """Import a task, or a model as one."""
    return as_task(load(reference))
