# make demo: install and verify a small network.  make test: install and run the checks.
# make onnx-backend: how many of onnx's own backend node tests load and agree, and why the others do not load.
# make nightly: ten thousand generated cases (pytest -m nightly).
# PYTHON=/path/to/python3.11 chooses the interpreter; JOBS=n the number of test processes.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test onnx-backend nightly clean

demo: $(VENV)/.installed
	$(BIN)/python examples/01_verify.py

test: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -q -n $(JOBS)

onnx-backend: $(VENV)/.installed-dev
	$(BIN)/python tests/frontends/onnx_backend.py

nightly: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -q -n $(JOBS) -m nightly

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "absdom needs Python 3.11 or later: make PYTHON=/path/to/python3.11 ..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis
