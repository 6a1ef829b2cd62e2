# Two commands do nearly everything: `make book` and `make test`. Both make the environment first, in .venv.
# Without make: see README.md, "Without make".

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python

.DEFAULT_GOAL := help
.PHONY: help book html test test-quick lint refresh stamp runs runs-status bench lock clean distclean env

help: ## what there is
	@echo "make TARGET, with PYTHON=... to choose Python 3.11 to 3.14 (now: $(PYTHON))"
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -e 's/:.*## /|/' | while IFS='|' read name what; do printf '  %-12s %s\n' "$$name" "$$what"; done

book: env ## run the chapters on this machine and build the pages
	@$(PY) tools/book.py book

html: env ## build the pages from the committed outputs, in seconds
	@$(PY) tools/book.py html

test: env ## lint, unit tests, every chapter under nbval, the pages in a browser
	@$(PY) tools/book.py test

test-quick: env ## lint and the fast unit tests, in some minutes: for the loop of work
	@$(PY) tools/book.py test-quick

lint: env ## check the code's style, chapters included
	@$(PY) -m ruff check .

refresh: env ## run the chapters and write their outputs back (CHAPTER=name for one)
	@$(PY) tools/book.py refresh $(CHAPTER)

stamp: env ## write the Colab cell into every chapter
	@$(PY) tools/book.py stamp

runs: env ## run what book/runs.yaml still lacks (ONLY="id id", HOURS=2, DEVICE=cuda)
	@$(PY) tools/runs.py run $(if $(ONLY),--only $(ONLY)) $(if $(HOURS),--hours $(HOURS)) $(if $(DEVICE),--device $(DEVICE))

runs-status: env ## what is there of book/runs.yaml, what is missing, and what that costs
	@$(PY) tools/runs.py status

bench: env ## how fast, against what
	@$(PY) tools/book.py bench

lock: ## resolve requirements.lock anew (needs uv)
	@python3 tools/lock.py

clean: ## remove what was built
	rm -rf _build .pytest_cache .ruff_cache .hypothesis

distclean: clean ## and the environment
	rm -rf $(VENV)

# The environment is made again only where the lock or the package's description changed since.
env:
	@$(PYTHON) tools/environment.py $(VENV)
