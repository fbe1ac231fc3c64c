# Everything needs Python 3.11+, a C compiler and make; the rest installs itself
# into a virtual environment of its own beside this file, one per Python version.
#
#   make demo            programs side by side on stock asyncio and on ringloop
#   make test            the tests, on both drivers (TESTS="-k timer" for some)
#   make test-services   client libraries against databases, caches and brokers on loopback
#   make test-examples   the application in examples, with its services and in Chromium
#   make example         run it, at http://127.0.0.1:8000
#   make downstream      other projects' test suites (DOWNSTREAM="uvicorn" or "--short" for some)
#   make conformance     CPython's own asyncio tests, on both drivers
#   make soak            everything at once with random behaviour (MINUTES=5, SOAK="--help")
#   make bench           ringloop beside its peers (BENCH="--help" for more)
#   make lint            ruff, mypy, stubtest, cython-lint
#   make sanitize        the tests on a build with address and UB sanitizers
#   make wheel           the sdist and a wheel, in dist
#   make clean           away with all that was made
#
# PYTHON=python3.13 chooses the interpreter.

PYTHON ?= python3

# Its version, short and in full, and where it lives (for a virtual environment: whose it is).
FOUND := $(shell $(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) and \
  print("%d.%d %d.%d.%d %s" % (v[:2] + v[:3] + (sys.base_prefix,)))' 2>/dev/null)
ifeq ($(FOUND)$(filter clean,$(MAKECMDGOALS)),)
  $(error $(PYTHON) is not there or not Python 3.11 or newer; choose one with PYTHON=python3.13)
endif

ENV := $(word 1,$(FOUND))
VENV := .venv/$(ENV)
BUILD := build/$(ENV)
SAY = @echo "ringloop, Python $(word 2,$(FOUND)):"

RUN = PATH="$(CURDIR)/$(VENV)/bin:$$PATH"
PIP_INSTALL = $(RUN) python -m pip install -qq
# A test that hangs says where.
PYTEST = $(RUN) python -m pytest -o faulthandler_timeout=180
REQUIREMENTS = $(RUN) python tools/requirements.py
EXTRAS = $(foreach extra,$(1),$(VENV)/.extra-$(extra))
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: build demo test conformance soak bench lint sanitize run-sanitized clean test-services downstream wheel example test-examples FORCE

build: $(VENV)/.editable
	@$(RUN) ninja --quiet -C $(BUILD)

# A virtual environment belongs to one interpreter and one folder. This file says which;
# it is written only when that changes, so what depends on it is made anew only then.
ORIGIN := $(FOUND) in $(CURDIR)
$(VENV)/.origin: FORCE
	@test "$$(cat $@ 2>&1)" = "$(ORIGIN)" || { \
	  $(PYTHON) tools/prerequisites.py && \
	  rm -rf $(VENV) $(BUILD) && \
	  $(PYTHON) -m venv $(VENV) && \
	  echo "$(ORIGIN)" >$@; }

$(VENV)/.editable: $(VENV)/.origin pyproject.toml meson.build tools/requirements.py
	$(SAY) building in $(BUILD), a minute or two
	@$(REQUIREMENTS) build | $(PIP_INSTALL) --requirement /dev/stdin
	@$(PIP_INSTALL) --no-build-isolation --no-deps --config-settings=build-dir=$(BUILD) \
	  $(SETUP) --editable .
	@touch $@

# `pip install .[x]` would build again; the names come from the same place.
$(VENV)/.extra-%: $(VENV)/.editable
	$(SAY) installing what "$*" needs
	@$(REQUIREMENTS) $* | $(PIP_INSTALL) --requirement /dev/stdin
	@touch $@

demo: build $(call EXTRAS,demo)
	$(SAY) the demo, about a minute
	@$(RUN) python demo/run.py

test: build $(call EXTRAS,test)
	$(SAY) the tests
	@$(PYTEST) $(TESTS)

test-services: build $(call EXTRAS,test services)
	$(SAY) client libraries against real services
	@$(PYTEST) tests/services $(TESTS)

EXAMPLE = PYTHONPATH=examples/filedesk

example: build $(call EXTRAS,examples)
	@$(RUN) $(EXAMPLE) python -m filedesk

test-examples: build $(call EXTRAS,test examples)
	$(SAY) the example
	@$(EXAMPLE) $(PYTEST) examples $(TESTS)

# What `import ringloop` finds there is a plain folder: the suites' environments have no compiler.
downstream: build
	$(SAY) "other projects' tests; the first run installs what they need"
	@$(RUN) meson install -C $(BUILD) --no-rebuild --quiet --destdir $(CURDIR)/$(BUILD)/installed
	@$(RUN) python tests/downstream/run.py $(DOWNSTREAM) --ringloop \
	  $$(dirname $$(find $(BUILD)/installed -path '*/ringloop/__init__.py' | head -n 1) | xargs dirname)

conformance: build
	$(SAY) "CPython's tests of asyncio"
	@$(RUN) python tests/conformance/run.py $(CONFORMANCE)

MINUTES ?= 1
soak: build $(call EXTRAS,test)
	@$(RUN) python tests/soak --minutes $(MINUTES) $(SOAK)

bench: build $(call EXTRAS,bench)
	@$(RUN) python -m ringloop bench $(BENCH)

# Every module with a stub, by the name that Python knows.
COMPILED = $(subst /,.,$(patsubst src/%.pyx,%,$(wildcard src/*/*/*.pyx)))

# conformance and demo are programs of several files with names of their own (run, report).
lint: build $(call EXTRAS,lint test bench demo examples)
	$(SAY) ruff, cython-lint, mypy, stubtest
	@$(RUN) ruff check --quiet .
	@$(RUN) ruff format --check --quiet .
	@$(RUN) cython-lint src
	@$(RUN) mypy
	@$(RUN) MYPYPATH=tests/conformance mypy tests/conformance/*.py tests/conformance/*/*.py
	@$(RUN) MYPYPATH=demo mypy demo
	@$(RUN) MYPYPATH=examples/filedesk:examples/filedesk/tests mypy examples
	@$(RUN) stubtest --mypy-config-file pyproject.toml --ignore-disjoint-bases \
	  --allowlist tools/stubtest-allowlist.txt $(COMPILED)

# An environment and a build of their own.
sanitize:
	@$(MAKE) --no-print-directory run-sanitized ENV=$(ENV)-sanitize \
	  SETUP="--config-settings=setup-args=-Db_sanitize=address,undefined \
	  --config-settings=setup-args=-Dbuildtype=debugoptimized"

run-sanitized: build $(call EXTRAS,test)
	$(SAY) the tests, with sanitizers
	@$(RUN) tools/sanitize $(TESTS)

wheel:
	$(SAY) sdist and wheel of what is committed
	@tools/build-wheel dist $(PYTHON)
	@ls dist

clean:
	rm -rf build dist .venv
