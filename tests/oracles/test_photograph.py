"""The example of a photograph, on a network and a picture from outside."""

import importlib.util
import re
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "explain_a_photograph.py"


@pytest.mark.filterwarnings("ignore")
def test_the_photograph_is_explained_four_times(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    spec = importlib.util.spec_from_file_location("photograph", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(str(tmp_path), steps=30)
    sums = [tuple(map(float, pair)) for pair in re.findall(r"sum to ([0-9.]+) of ([0-9.]+)", capsys.readouterr().out)]
    assert len(sums) == 3 and all(abs(total - change) < 0.05 * change for total, change in sums)
    for name in ("ig", "deeplift", "gradcam", "taylor"):
        assert (tmp_path / f"photograph-{name}.png").read_bytes().startswith(b"\x89PNG")
