# Everything happens in a virtual environment in .venv. With an environment of your own: make test PYTHON=python VENV=

VENV ?= .venv
BASE ?= python3
PYTHON ?= $(VENV)/bin/python
EXTRAS = demo,deepspeed,test,dev
READY = $(if $(VENV),$(VENV)/.ready-$(1))

.PHONY: demo test test-slow check format clean

demo: $(call READY,demo)
	$(PYTHON) recipes/pretrain.py

test: $(call READY,$(EXTRAS))
	$(PYTHON) -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-slow: $(call READY,$(EXTRAS))
	$(PYTHON) -m pytest -m slow -n 2 --dist loadfile --no-loadscope-reorder

check: $(call READY,$(EXTRAS))
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m mypy

format: $(call READY,$(EXTRAS))
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

$(VENV)/.ready-%: pyproject.toml
	$(BASE) -m venv $(VENV)
	$(PYTHON) -m pip install --quiet --editable '.[$*]'
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
