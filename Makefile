# What is done here, by name; .ci/run calls these targets. Use a virtual environment: `make install` fills it.
PYTHON ?= python

.PHONY: help install test lint format types check docs models peers pictures wheel ci

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: ## mxsweep and what its tests need, in the versions last tested
	$(PYTHON) -m pip install -q -c constraints.txt -e '.[dev]'

test: ## every test that this machine can do
	$(PYTHON) -m pytest

lint: ## lint, and whether files are formatted
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: ## format files, and mend what lint can mend
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: ## types of mxsweep/ and benchmarks/
	$(PYTHON) -m mypy

docs: ## the pages that are made from the code
	$(PYTHON) -m mxsweep.config.knob_page > docs/knobs.md
	$(PYTHON) -m mxsweep.report.column_page > docs/columns.md

models: ## docs/models.md, measured on every architecture of tests/matrix/ (minutes)
	PYTHONPATH=.:tests $(PYTHON) -m matrix.page > docs/models.md.new
	mv docs/models.md.new docs/models.md

peers: ## docs/peers.md, measured on every tool of the extra "peers", which this needs (minutes)
	PYTHONPATH=.:tests $(PYTHON) -m peers.page

pictures: ## the pictures of docs/, from a sweep of the embedded model and a browser (a minute)
	PYTHONPATH=.:tests $(PYTHON) -m helpers.pictures

check: lint types test ## all three

wheel: ## dist/mxsweep-*.whl
	$(PYTHON) -m pip install -q build
	$(PYTHON) -m build -q --wheel --outdir dist .

ci: ## the gate of a landing: what the README says, in a fresh copy of what is committed
	.ci/run
