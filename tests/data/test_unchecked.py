"""Runs unchecked.py, where nothing checks annotations."""

import os
import subprocess
import sys
from pathlib import Path


def test_what_checked_annotations_would_hide():
    script = Path(__file__).with_name("unchecked.py")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
