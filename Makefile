# Each target sets up what it needs: on a fresh clone `make demo` or `make test` is the first and only command.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := dev,train,mmdet,export

.PHONY: demo test test-all lint bench tables clean

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=24"
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

demo: $(VENV)/.installed  ## train SE-ResNet-18 and ResNet-18 on real images, compare, save, load back
	$(BIN)/python tools/demo.py
	$(BIN)/python tools/demo_detection.py

test: $(VENV)/.installed  ## the quick suite, about ten minutes on two cores
	$(BIN)/python -m pytest -n 2 -m "not slow"

test-all: $(VENV)/.installed  ## every name and every size
	$(BIN)/python -m pytest -n 2

lint: $(VENV)/.installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy
	$(BIN)/python tools/update_tables.py --check

bench: $(VENV)/.installed  ## the speed table; nothing else may run meanwhile
	$(BIN)/python tools/benchmark_speed.py

tables: $(VENV)/.installed  ## README and plots from the CSV files in results/
	$(BIN)/python tools/update_tables.py

clean:
	rm -rf $(VENV) .venv-onedl build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
