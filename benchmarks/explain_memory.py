"""Memory of explaining 2,000 test rows against 60,000 training rows, 192 features, 10 classes, top=20.

The fit is made and stored by one process; another opens it and explains. Reported is the largest
resident memory during `explain` less that before it, once counting private pages alone and once
counting the store's mapped pages too. The claim: under 300 MB beyond the stored features.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time

TRAIN, TEST, UNITS, CLASSES, TOP, C = 60_000, 2_000, 192, 10, 20, 1e-5

DATA = f"""
import torch
torch.set_num_threads(1)
generator = torch.Generator().manual_seed(0)
centres = torch.randn({CLASSES}, {UNITS}, generator=generator)
def draw(rows):
    labels = torch.randint(0, {CLASSES}, (rows,), generator=generator)
    return (centres[labels] + 2 * torch.randn(rows, {UNITS}, generator=generator)).relu(), labels
train, test = draw({TRAIN}), draw({TEST})
model = torch.nn.Linear({UNITS}, {CLASSES})
model.weight.data, model.bias.data = centres * 0.05, torch.zeros({CLASSES})
"""


def measure() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        fit = f"import dualview as dv\ndv.fit(dv.DualView(C={C}), model, train, store={folder!r}, progress=False)"
        _run(DATA + fit)
        explain = (
            f"import json, dualview as dv\nfrom benchmarks.explain_memory import Watch\n"
            f"del train\nexplainer = dv.open({folder!r}, model)\nexplainer.explain(test[0][:2], top={TOP})\n"
            f"with Watch() as watch:\n    explainer.explain(test[0], top={TOP})\n"
            "print(json.dumps({**watch.rows(), 'support': explainer.certificate['support']}))"
        )
        found = json.loads(_run(DATA + explain).splitlines()[-1])
    return [
        {
            "test rows": TEST,
            "training rows": TRAIN,
            "support rows": found["support"],
            "private MB": found["private"],
            "with mapped pages MB": found["resident"],
            "stored features MB": round(TRAIN * UNITS * 4 / 1e6),
            "seconds": found["seconds"],
        }
    ]


class Watch:
    """Sample this process's memory every millisecond."""

    def __enter__(self):
        self._peak = {"RssAnon": 0, "VmRSS": 0}
        self._before, self._start = self._now(), time.perf_counter()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.seconds = time.perf_counter() - self._start
        self._done.set()
        self._thread.join()

    def rows(self):
        private, resident = ((self._peak[k] - self._before[k]) / 1e3 for k in ("RssAnon", "VmRSS"))
        return {"private": round(private), "resident": round(resident), "seconds": round(self.seconds, 2)}

    def _sample(self):
        while not self._done.wait(0.001):
            now = self._now()
            self._peak = {key: max(value, now[key]) for key, value in self._peak.items()}

    @staticmethod
    def _now():
        lines = (line.split(":") for line in open("/proc/self/status"))
        return {name: int(value.split()[0]) for name, value in lines if name in ("RssAnon", "VmRSS")}


def _run(program: str) -> str:
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    return run.stdout
