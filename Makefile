# Everything a person runs here. `make demo` and `make test` set up what they need; nothing else has to be installed
# first but Python >= 3.11 and make. uv is used where it is present, because it is faster; pip does the same.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
export UV_PYTHON_DOWNLOADS := never

.PHONY: demo test setup format test-wire test-holds test-crash test-quota test-pages bench screenshots clean help

help:            ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

demo: setup      ## the whole story: two agents, every kind of answer, recorded and verified
	@$(BIN)/broker demo

test: setup      ## the one gate: lint, types, import floors, laws and stories
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/pytest -n 3 --dist loadfile --max-worker-restart 0

format: setup    ## format and fix what can be fixed by itself
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test-wire: setup ## what installs through npm: real clients, and the official conformance suite
	@status=0; \
	echo "$(BIN)/python tests/wire/run.py"; $(BIN)/python tests/wire/run.py || status=1; \
	echo "$(BIN)/python tests/conformance/run.py"; $(BIN)/python tests/conformance/run.py || status=1; \
	exit $$status

test-holds: setup ## 500 races of deciders in two processes, 200 holds over five kills; `make test` does a sample
	BROKER_TEST_HOLDS=all $(BIN)/pytest tests/laws/test_hold_races.py

test-crash: setup ## killed before and after every sync and send, locked out for a minute; `make test` does a sample
	BROKER_TEST_CRASH=all $(BIN)/pytest tests/stories/test_crash.py tests/stories/test_fault.py tests/stories/test_shutdown.py

test-quota: setup ## 256 callers in 4 processes, one killed every 2 s; `make test` does a small one
	BROKER_TEST_QUOTA=all $(BIN)/pytest -s tests/stories/test_quota_load.py

test-record: setup ## 1,000,000 entries: verified, asked, started with; how fast, in how much memory
	$(BIN)/python -m tests.bench.record

bench: setup     ## calls per second, latency, CPU and memory beside others (BENCH=quick: under a minute)
	$(BIN)/python -m tests.bench.run

test-pages: setup ## first answers of the console with 1,000,000 calls and 1,000 that wait, from the disk
	$(BIN)/python -m tests.bench.console

setup: $(VENV)/.ready ## the virtual environment in .venv

$(VENV)/.ready: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "Python >= 3.11 is needed; set PYTHON=/path/to/python"; exit 1; }
	@if command -v uv >/dev/null; then \
	  uv venv --quiet --allow-existing --python $(PYTHON) $(VENV) && \
	  uv pip install --quiet --python $(BIN)/python -c constraints.txt -e '.[test,demo]'; \
	else \
	  $(PYTHON) -m venv $(VENV) && \
	  $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,demo]'; \
	fi
	@touch $@

screenshots: setup ## pictures of the console's pages into docs/console (needs Chromium)
	$(BIN)/python -m tests.screenshots

clean:           ## remove what setup and the tests made
	rm -rf $(VENV) .wire .bench .pytest_cache .ruff_cache .hypothesis
