# vllm-calibrate. `make` alone says what there is. Needs GNU make 3.81 or newer and Python 3.11 to 3.14.
.DEFAULT_GOAL := help
BENCHMARKS := bench-client bench-sweep bench-agreement bench-overhead bench-compare bench-report bench-predict bench-sampler
.PHONY: help setup sweep tables compare report test lint clean $(BENCHMARKS)

SWEEP ?= auto
SET ?=
A ?=
B ?=
ARGS ?=
PYTHON ?=
CALIBRATE_PYTHON ?=

ifeq ($(strip $(CALIBRATE_PYTHON)),)
RUN := .venv/bin/python
# An environment that is there keeps its Python; otherwise the first fit one on PATH makes it. Each is tried by
# running it, since a name on PATH may be a stub. With none fit, bench/bootstrap.py says what is wrong with python3.
FIT := import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))
define bootstrap
@for python in "$(PYTHON)" .venv/bin/python python3 python3.13 python3.12 python3.11 python3.14; do \
  if test -n "$$python" && "$$python" -c '$(FIT)' >/dev/null 2>&1; then exec "$$python" -I bench/bootstrap.py $(1); fi; \
  if test -n "$(PYTHON)" && test "$$python" = "$(PYTHON)"; then \
    echo "set-up: PYTHON=$$python is no Python 3.11 to 3.14 with venv and ensurepip; looking for another" >&2; fi; \
done; \
if python3 -c '' >/dev/null 2>&1; then python3 -I bench/bootstrap.py $(1); exit 1; fi; \
echo "set-up: no Python found: install Python 3.11 to 3.14, or name one with PYTHON=/path/to/python3.12" >&2; exit 1
endef
else
RUN := "$(CALIBRATE_PYTHON)"
define bootstrap
@$(RUN) -c 'import sys; from importlib.util import find_spec as f; sys.exit(not (f("vllm") and f("hydra")))' || { \
  echo "set-up: CALIBRATE_PYTHON=$(CALIBRATE_PYTHON) must be a Python that has vllm and bench/requirements/base.txt" >&2; exit 1; }
endef
endif

help:
	@echo 'make setup   make or update .venv for this machine: vLLM for its NVIDIA GPUs, or the CPU build'
	@echo 'make sweep   set up, then measure: conf/sweep/$$(SWEEP).yaml into results/$$(SET)'
	@echo 'make tables  set up, then write results/tables: multipliers, the audit of the guide and its scenarios, from SET'
	@echo '             or all sets'
	@echo 'make compare set up, then compare result sets: A=results/x B=results/y'
	@echo 'make report  set up, then write one HTML page about SET (default: every result set)'
	@echo 'make test    set up, then run the tests'
	@echo 'make lint    set up, then check the code with ruff'
	@echo 'make bench-client, bench-sweep, bench-agreement, bench-overhead'
	@echo '             time this client and this sweep beside those of other tools; minutes each, on a quiet machine'
	@echo 'make bench-compare, bench-report, bench-predict, bench-sampler'
	@echo '             time comparisons, reports, predictions, telemetry'
	@echo 'make clean   remove .venv and caches; results/ stays'
	@echo
	@echo 'SWEEP=gpu-memory   which sweep (default: auto, what this machine can run)'
	@echo 'SET=mine           which result set under results/ (default: the name of the sweep)'
	@echo 'ARGS="..."         more words for the tool behind a target, quoted as in a shell:'
	@echo '                     make sweep ARGS="engine.max_num_seqs=8,64 model=qwen2.5-0.5b"'
	@echo '                     make test ARGS="-k nvml"'
	@echo '                     make setup ARGS=--dry-run      (or --check, --recreate)'
	@echo 'PYTHON=python3.12  which Python makes .venv'
	@echo 'CALIBRATE_ENGINE=cpu          or cuda: do not look for a GPU to choose the engine'
	@echo 'CALIBRATE_PYTHON=/path/to/python   use this Python, which has vLLM already, and install nothing:'
	@echo '                                   for a host without network, or for another version of vLLM'

setup:
	$(call bootstrap,$(ARGS))

sweep:
	$(call bootstrap,)
	@$(RUN) -m bench sweep=$(SWEEP) $(if $(SET),set=$(SET)) $(ARGS)

TABLE_SETS = $(if $(SET),$(SET),$(patsubst results/%/engines,%,$(sort $(wildcard results/*/engines))))
tables:
	$(call bootstrap,)
	@$(RUN) -m analysis tables $(TABLE_SETS) $(ARGS)
	@$(RUN) -m analysis audit $(TABLE_SETS) $(ARGS)
	@$(RUN) -m analysis plan --scenarios --out results/tables $(TABLE_SETS)

compare:
	$(call bootstrap,)
	@$(RUN) -m analysis compare $(A) $(B) $(ARGS)

report:
	$(call bootstrap,)
	@$(RUN) -m analysis report $(TABLE_SETS) $(ARGS)

$(BENCHMARKS):
	$(call bootstrap,)
	@$(RUN) -m tests.benchmarks.$(subst -,_,$@) $(ARGS)

# Two runs of pytest: what can share the machine, on all cores; then what needs it alone, engines and clocks. With a
# choice of markers in ARGS there is one run, and it is all the user's. 5: no test was chosen, which one of the two may
# well say. STATUS_FILE receives the exit code, which make does not pass on.
PARALLEL := -n logical --maxprocesses 8 --dist loadfile
test:
	$(call bootstrap,--extra test)
ifneq ($(filter -m,$(ARGS)),)
	@$(RUN) -m pytest $(ARGS); code=$$?; $(if $(STATUS_FILE),echo $$code >"$(STATUS_FILE)";) exit $$code
else
	@$(RUN) -m pytest $(PARALLEL) -m "not alone" $(ARGS); first=$$?; \
	$(RUN) -m pytest -m alone $(ARGS); second=$$?; \
	case $$first-$$second in 0-0|0-5|5-0) code=0;; 0-*|5-*) code=$$second;; *) code=$$first;; esac; \
	$(if $(STATUS_FILE),echo $$code >"$(STATUS_FILE)";) exit $$code
endif

lint:
	$(call bootstrap,--extra test)
	@$(RUN) -m ruff check $(ARGS) .

clean:
	rm -rf .venv .pytest_cache .ruff_cache .mypy_cache build dist *.egg-info outputs multirun
	find analysis bench tests -type d -name __pycache__ -prune -exec rm -rf {} +
