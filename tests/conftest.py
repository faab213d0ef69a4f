"""What every test runs under: one thread, no screen, and annotations that are checked."""

import importlib.util
import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"
# Read by tests that start another Python; here set_num_threads below does it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import jaxtyping
import torch
from hypothesis import settings
from jaxtyping import install_import_hook

from tests.checked import checked

torch.set_num_threads(1)

# Every run draws the same examples, and how long one takes is no reason to fail.
settings.register_profile("dualview", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("dualview")


def modules_to_check(folder: Path, name: str) -> list[str]:
    """Name the modules below `folder` so that jaxtyping's hook, which goes by prefix, misses each loop."""
    if not any(folder.rglob("_*loop.py")):
        return [name]
    found = []
    for path in sorted(folder.iterdir()):
        if path.is_dir() and any(path.glob("*.py")):
            found += modules_to_check(path, f"{name}.{path.name}")
        elif path.suffix == ".py" and path.stem != "__init__" and not path.stem.endswith("_loop"):
            found.append(f"{name}.{path.stem}")
    return found


# Shapes and types are checked at every call, by beartype. DUALVIEW_TYPECHECK=0 turns it off, for a
# debugger or to see what it costs. Compiled functions cannot be wrapped: numba could not read them.
if os.environ.get("DUALVIEW_TYPECHECK", "1") != "0":
    if "dualview" in sys.modules:
        raise RuntimeError("dualview was imported before tests/conftest.py, so its annotations would go unchecked")
    spec = importlib.util.find_spec("dualview")
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeError("dualview is not installed here; `make test` installs it, or: pip install -e '.[test]'")
    jaxtyping.jaxtyped = checked  # which the hook puts before every function
    install_import_hook(modules_to_check(Path(spec.submodule_search_locations[0]), "dualview"), "beartype.beartype")
