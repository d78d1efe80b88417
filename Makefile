# Everything runs in .venv, which is made on first use from Python >= 3.11 alone.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help demo test test-real test-faults lint format docs bench clean

help: ## show this help
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $(READY)

demo: $(READY) ## extract → train heads → table, offline, under a minute
	$(BIN)/featcache demo

# Tests take one core each: the trials by fault and some of the longest run beside the others.
BESIDE := tests/faults tests/test_finetuning.py tests/test_studies.py tests/test_report.py tests/test_report_cli.py \
	tests/test_report_browser.py tests/test_views.py tests/test_views_drawn.py tests/test_extraction.py \
	tests/test_growing.py tests/test_growing_chance.py tests/test_live.py tests/test_mirror.py tests/test_mirror_faults.py \
	tests/test_ray.py tests/test_several.py tests/test_remote_extraction.py tests/test_remote_images.py tests/test_tutorial.py \
	tests/test_kernels.py tests/test_resizing.py
test: $(READY) ## all tests, under ten minutes on two cores
	@beside=$$(mktemp); $(BIN)/python -m pytest $(BESIDE) > $$beside 2>&1 & pid=$$!; \
	$(BIN)/python -m pytest $(BESIDE:%=--ignore=%); code=$$?; \
	wait $$pid || code=1; cat $$beside; rm -f $$beside; exit $$code

test-real: $(READY) ## only the tests on real images and weights (FEATCACHE_REAL or ../shared/real)
	$(BIN)/python -m pytest -m real -rs

test-faults: $(READY) ## the promises of docs/reliability.md tried by fault at full length, on all cores
	$(BIN)/python -m tests.faults.run

lint: $(READY) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## let ruff lay out the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## make docs/cli.md anew from the program
	$(BIN)/python -m featcache.commands.reference > docs/cli.md

bench: $(READY) ## benchmarks against the forward-only rate and against what people use instead
	$(BIN)/python bench/extract.py
	$(BIN)/python bench/startup.py
	$(BIN)/python bench/heads.py
	$(BIN)/python bench/convex.py
	$(BIN)/python bench/safety.py

clean: ## remove what make made
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
