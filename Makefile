# make demo          set up, then map a basin on scikit-learn's digits: about 6 minutes on 2 cores
# make test          set up, then run the tests
# make docs          write the columns in docs/tables.md and the rooms in docs/architecture.md anew
# make lint          ruff, mypy, and the limits on complexity
# make dist          build sdist and wheel in dist/ and check them; how to release is said in CONTRIBUTING.md
# make fuzz          10,000 hostile sweep files and results folders: INPUTS=10000 SEED=0
# make gpu-check     whether results are right on a GPU, and how fast everything is: less than 8 minutes, no network
# make sweep-cifar   the same map on CIFAR-10: DATA=folder SWEEP=sweeps/cifar10-cpu.yaml ARGS="--checkpoint FILE"
# make cluster       start a Ray cluster on this machine, on loopback and with a token
# make submit        a sweep as a job of a cluster: SWEEP=file RESULTS=folder DATA=folder ADDRESS=http://HEAD:8265
# make cluster-stop  end the cluster that `make cluster` has started, and no other
# make chaos         kill workers, queues, trials, drivers and clusters, and compare the tables: ARGS="--rounds 2 --seed 0"

PYTHON ?= python3
VENV   := .venv
READY  := $(VENV)/.ready
SWEEP  ?= sweeps/cifar10.yaml
DATA   ?=
RESULTS ?= results/$(notdir $(basename $(SWEEP)))
ADDRESS ?= http://127.0.0.1:8265
ARGS   ?=
INPUTS ?= 10000
SEED   ?= 0
PORT   ?= 6379

.PHONY: demo test docs fuzz chaos lint dist sweep-cifar benchmark memory gpu-check setup cluster submit cluster-stop

demo: $(READY)
	$(VENV)/bin/raybasin sweep sweeps/digits.yaml $(ARGS)

# Ray's own processes take all cores: the tests that start it come after the others, which take two.
test: $(READY)
ifeq ($(strip $(ARGS)),)
	$(VENV)/bin/pytest -n 2 --dist loadfile -m "not ray and not slow and not chaos"
	$(VENV)/bin/pytest -m "ray and not slow and not chaos"
else
	$(VENV)/bin/pytest $(ARGS)
endif

docs: $(READY)
	$(VENV)/bin/python docs/make_columns.py
	$(VENV)/bin/python docs/rooms.py

dist: $(READY)
	rm -rf dist
	$(VENV)/bin/python -m build --outdir dist .
	$(VENV)/bin/twine check --strict dist/*

fuzz: $(READY)
	FUZZ_INPUTS=$(INPUTS) FUZZ_SEED=$(SEED) $(VENV)/bin/pytest -s tests/test_fuzz.py $(ARGS)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy raybasin
	@long=$$($(VENV)/bin/radon cc --min D raybasin) && test -z "$$long" || { echo "too complex (radon D): $$long"; exit 1; }

sweep-cifar: $(READY)
	$(VENV)/bin/raybasin sweep $(SWEEP) $(if $(DATA),--data "$(DATA)") $(ARGS)

benchmark: $(READY)
	$(VENV)/bin/python benchmarks/workers.py $(ARGS)

memory: $(READY)
	$(VENV)/bin/python benchmarks/memory.py $(ARGS)

gpu-check: $(READY)
	$(VENV)/bin/python benchmarks/gpu_check $(ARGS)

chaos: $(READY)
	$(VENV)/bin/pytest -m chaos tests
	$(VENV)/bin/python tests/chaos/rounds.py $(ARGS)

cluster: $(READY)
	@RAY=$(VENV)/bin/ray PORT=$(PORT) DASHBOARD_PORT=$(lastword $(subst :, ,$(ADDRESS))) deploy/local.sh start $(ARGS)

submit: export RAY_AUTH_MODE ?= token
submit: $(READY)
	@$(VENV)/bin/python -m raybasin submit --address $(ADDRESS) sweep $(SWEEP) \
	  --results "$(if $(findstring ://,$(RESULTS)),$(RESULTS),$(if $(filter /%,$(RESULTS)),$(RESULTS),$(CURDIR)/$(RESULTS)))" \
	  $(if $(DATA),--data "$(abspath $(DATA))") $(ARGS)

cluster-stop:
	@deploy/local.sh stop

setup: $(READY)

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]" --config-settings editable_mode=compat
	$(VENV)/bin/pip check
	touch $(READY)
