# Each target sets up what it needs: on a fresh clone `make demo` or `make test` is the first and only command.
PYTHON ?= python3
BIN := .venv/bin
ONEDL := .venv-onedl/bin
DOCS := .venv-docs/bin

.PHONY: demo test test-all commands kernels floors interop docs notebooks wheel lint bench tables clean

.venv/.installed: EXTRAS := dev,train,analysis,mmdet,export
.venv-onedl/.installed: EXTRAS := dev,train,onedl
.venv/.installed .venv-onedl/.installed: %/.installed: pyproject.toml
	test -x $*/bin/python || $(PYTHON) -m venv $*
	$*/bin/python -m pip install --quiet --upgrade "pip>=24"
	$*/bin/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

.venv/.interop: .venv/.installed
	$(BIN)/python -m pip install --quiet --editable ".[interop]"
	touch $@

.venv-docs/.installed: pyproject.toml
	test -x .venv-docs/bin/python || $(PYTHON) -m venv .venv-docs
	$(DOCS)/python -m pip install --quiet --upgrade "pip>=25.1"  # which reads dependency groups
	$(DOCS)/python -m pip install --quiet --group docs
	touch $@

demo: .venv/.installed  ## a trained network gains SE without losing a prediction, is saved and loaded; digits are found in scenes
	$(BIN)/python tools/demo.py
	$(BIN)/python tools/demo_detection.py

# Tests of timm's own tables, which `make floors` runs with the newest timm, and of other processes, for `make commands`.
TIMMS := tests/models/test_flag.py::test_the_table_says_what_the_installed_timm_builds \
	tests/models/test_flag.py::test_the_tests_know_every_structure
PROCESSES := tests/sharing/test_push.py::test_what_is_pushed_comes_back_in_another_process \
	tests/detection/test_hub.py::test_a_detector_comes_back_in_another_process_which_its_configuration_prepares

test: .venv/.installed  ## the quick suite; `make commands`, `kernels`, `interop` and `docs` have what is left out
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" \
		--ignore tests/commands --ignore tests/interop --ignore tests/layers/kernels \
		--ignore tests/test_docs.py --ignore tests/test_notebooks.py \
		$(addprefix --deselect ,$(TIMMS) $(PROCESSES))

test-all: .venv/.installed .venv-onedl/.installed  ## every name and size, and detection on both stacks
	$(BIN)/python -m pytest -n 2
	$(ONEDL)/python -m pytest -n 2 tests/detection

commands: .venv/.installed  ## the commands of timm-se, run as a user runs them, and what other processes load
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow" tests/commands $(PROCESSES)

kernels: .venv/.installed  ## the Triton kernels without a GPU: every value by the interpreter, compiled for every GPU
	$(BIN)/python -m pytest -n 2 tests/layers/kernels

floors: .venv/.installed  ## a selection with the oldest and the newest releases; writes docs/tested-versions.md
	$(BIN)/python tools/run_floors.py

interop: .venv/.interop  ## the networks with the libraries of docs/works-with.md, and what is exported to them
	$(BIN)/python -m pytest -n 2 --dist worksteal tests/interop

docs: .venv/.installed .venv-docs/.installed  ## the code of the pages runs, and they become a site in site/; a broken link is an error
	$(BIN)/python -m pytest -n 2 -m "not slow" tests/test_docs.py tests/test_notebooks.py
	$(DOCS)/python -m mkdocs build --strict

notebooks: .venv/.installed  ## runs the notebooks of docs/notebooks/ and keeps their outputs; an error ends it
	$(BIN)/python tools/run_notebooks.py

wheel: .venv/.installed  ## dist/ with the sdist and the wheel, checked and installed into an empty environment
	rm -rf dist
	$(BIN)/python -m uv build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest tests/test_wheel.py

lint: .venv/.installed  ## .pre-commit-config.yaml has the same commands
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python tools/update_tables.py --check
	$(BIN)/zizmor --offline --quiet .github
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/ci.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

bench: .venv/.installed  ## the speed table; nothing else may run meanwhile
	$(BIN)/python tools/benchmark_speed.py

tables: .venv/.installed  ## the tables of README and docs, and plots, from the CSV files in results/
	$(BIN)/python tools/update_tables.py

clean:
	rm -rf .venv .venv-onedl .venv-docs build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
