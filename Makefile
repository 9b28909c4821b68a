# Everything is done in virtual environments inside this folder (.venv*); nothing on the machine is changed.
# Needed: make, and Python 3.10 or later with venv.  Another Python: make test PYTHON=python3.12

PYTHON ?= python3
VENV ?= .venv
DEMO ?= .venv-demo
# The client that the metadata service is tried with; apart, since flowkit needs nothing of it.
METAFLOW ?= .venv-metaflow
METAFLOW_VERSION ?= 2.19.39
# The Airflows that flows are deployed to in tests: both lines, each in an environment of its own.
AIRFLOW ?= .venv-airflow
AIRFLOW_VERSION ?= 3.3.2
AIRFLOW2_VERSION ?= 2.11.0
PYTEST_ARGS ?= -n auto --dist worksteal

PACKAGED := flowkit plugins metadata_service tutorials
SOURCES := $(shell find $(PACKAGED) -name .flowkit -prune -o -type f ! -name '*.py[co]' -print 2>/dev/null)
DESCRIPTION := setup.cfg pyproject.toml MANIFEST.in README.md LICENSE

# Large, and hardly ever imported: two thirds of what is installed.
NOT_COMPILED := /tests?/|/kubernetes/(aio|client/api|client/models/v)|/(cfnlint|debugpy|mpmath|mypy|networkx|sympy)/

# Stale modules in build/ would be packed again, so each build starts without it.
BUILD_CLEAN = rm -rf build flowkit.egg-info

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# The suite and the demo see only what is installed here.
unexport PYTHONPATH PYTHONHOME

.PHONY: help demo test test-airflow test-docker test-deploying soak check format lint types test-pythons bench clean

help:
	@echo "make demo          train digit classifiers on real data, and look at the result"
	@echo "make test          run the whole test suite"
	@echo "make test-airflow  run flows on a real Airflow, of both lines"
	@echo "make test-docker   run steps and AWS Batch jobs in real containers (starts a Docker daemon where it can)"
	@echo "make test-deploying  run random flows and long stories on every scheduler that flows are deployed to"
	@echo "make soak          attack it for a quarter of an hour: kills, full disks, damage, random flows"
	@echo "make check         formatting, lint, types, tests"
	@echo "make format        rewrite the files as ruff formats them"
	@echo "make test-pythons  run the suite on every Python from 3.10 to 3.13 that is found"
	@echo "make bench         measure flowkit beside Metaflow and Luigi (20 minutes)"
	@echo "make clean         remove the virtual environments and everything built"

demo: $(DEMO)/package.stamp
	$(DEMO)/bin/python tutorials/03-digits/flow.py run
	@echo
	@echo "The result, by a script of a few lines (tutorials/03-digits/look.py):"
	$(DEMO)/bin/python tutorials/03-digits/look.py
	@echo
	@echo "To look further:"
	@echo "    $(DEMO)/bin/python tutorials/03-digits/flow.py status         every run and how it ended"
	@echo "    $(DEMO)/bin/python tutorials/03-digits/flow.py show           the steps of the flow"
	@echo "    $(DEMO)/bin/python tutorials/03-digits/flow.py dump 1/end     what run 1 left behind"
	@echo "    tutorials/03-digits/README.md                                    what it teaches, and what to try next"

test: export FLOWKIT_TEST_METAFLOW = $(abspath $(METAFLOW))/bin/python
test: $(VENV)/package.stamp $(METAFLOW)/metaflow-$(METAFLOW_VERSION).stamp
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

# Airflow 2 is not to be had for Pythons later than 3.12: there it is left out.
test-airflow: $(VENV)/package.stamp $(AIRFLOW)/airflow-$(AIRFLOW_VERSION)-$(AIRFLOW2_VERSION).stamp
	FLOWKIT_TEST_AIRFLOW="$$(printf '%s:' $(abspath $(AIRFLOW))/*/bin/python)" \
		$(VENV)/bin/python -m pytest -n 2 --dist loadgroup tests/airflow

# Says what it installs and starts; stops it in the end.
test-docker: $(VENV)/package.stamp
	VENV=$(VENV) .ci/docker-suite --must

# Flows deployed to every scheduler, for longer: random ones, and stories of what goes wrong.
test-deploying: $(VENV)/package.stamp
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS) -m deploying tests/deploying tests/plugins

# The attacks that "make test" has in a short form, for many more rounds.
soak: $(VENV)/package.stamp
	FLOWKIT_SOAK=1 $(VENV)/bin/python -m pytest $(PYTEST_ARGS) tests/attacks $(addprefix tests/service/test_service_,schema.py kills.py)

check: lint types test

format: $(VENV)/deps.stamp
	$(VENV)/bin/ruff format .
	$(VENV)/bin/ruff check --fix .

lint: $(VENV)/deps.stamp
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .

types: $(VENV)/deps.stamp
	.ci/types $(VENV)/bin/mypy

test-pythons:
	@bash .ci/test-pythons

# In virtual environments of its own; for example: make bench BENCH_ARGS=--quick
bench:
	$(PYTHON) benchmarks/run.py $(BENCH_ARGS)

clean:
	rm -rf .venv .venv-* build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# One stamp for what the package needs, one for the package: a changed module is installed again in seconds.
$(VENV)/venv.stamp $(DEMO)/venv.stamp $(METAFLOW)/venv.stamp:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "flowkit needs Python 3.10 or later: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || \
		{ echo "this Python cannot make virtual environments: on Debian, apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(@D)
	@touch $@

$(VENV)/deps.stamp: $(VENV)/venv.stamp setup.cfg pyproject.toml
	@$(BUILD_CLEAN)
	@# What fits together is found by a new pip in a third of the time.
	-$(VENV)/bin/python -m pip install --quiet --upgrade pip
	$(VENV)/bin/python -m pip install --quiet --no-compile '.[dev,tutorials,arrow]'
	@# pip compiles everything, with one processor.
	@$(VENV)/bin/python -m compileall -q -j 0 -x '$(NOT_COMPILED)' $(VENV)/lib >/dev/null 2>&1 || true
	@touch $@

$(VENV)/package.stamp: $(VENV)/deps.stamp $(SOURCES) $(DESCRIPTION)
	@$(BUILD_CLEAN)
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	@$(BUILD_CLEAN)
	@touch $@

$(METAFLOW)/metaflow-$(METAFLOW_VERSION).stamp: $(METAFLOW)/venv.stamp
	$(METAFLOW)/bin/python -m pip install --quiet 'metaflow==$(METAFLOW_VERSION)'
	@touch $@

# uv finds versions that fit together in seconds, where pip takes many minutes.
$(AIRFLOW)/airflow-$(AIRFLOW_VERSION)-$(AIRFLOW2_VERSION).stamp:
	rm -rf $(AIRFLOW)
	$(PYTHON) -m venv $(AIRFLOW)/uv
	$(AIRFLOW)/uv/bin/python -m pip install --quiet uv
	@set -e; for version in $(AIRFLOW_VERSION) $(AIRFLOW2_VERSION); do \
		if $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 13))' && [ "$${version%%.*}" = 2 ]; then \
			echo "Airflow $$version is left out: it does not run on this Python"; continue; \
		fi; \
		echo "installing Airflow $$version"; \
		$(PYTHON) -m venv $(AIRFLOW)/$$version; \
		$(AIRFLOW)/uv/bin/uv pip install --quiet --python $(AIRFLOW)/$$version/bin/python "apache-airflow==$$version" \
			apache-airflow-providers-amazon apache-airflow-providers-cncf-kubernetes; \
	done
	rm -rf $(AIRFLOW)/uv
	@touch $@

$(DEMO)/package.stamp: $(DEMO)/venv.stamp $(SOURCES) $(DESCRIPTION)
	@$(BUILD_CLEAN)
	$(DEMO)/bin/python -m pip install --quiet '.[tutorials]'
	@$(BUILD_CLEAN)
	@touch $@
