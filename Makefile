# make demo   the whole pipeline on the built-in cohort, ending in demo/report.html
# make test   the whole test suite        make lint   ruff, lint and format
# Each sets up .venv by itself. PYTHON=python3.12 make demo picks another interpreter for it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
PY := .venv/bin/python
SEED := 99

.PHONY: demo test lint setup clean-demo
.DELETE_ON_ERROR:

demo: demo/.done/report
	@printf '\nThe demo is finished: %s\n' "$$PWD/demo/report.html"

test: .venv/.done-dev
	$(PY) -m pytest

lint: .venv/.done-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

setup: .venv/.done

clean-demo:
	rm -rf demo

# --- set-up: torch and torchvision from the registry, exact versions from constraints.txt ---

.venv/.done: requirements.txt constraints.txt
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), "Python 3.11 or newer is needed; PYTHON=python3.12 make ..."'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements.txt
	touch $@

.venv/.done-dev: .venv/.done requirements-dev.txt
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -r requirements-dev.txt
	touch $@

# --- the demo: one stage per stamp in demo/.done; a finished stage is not run again, an interrupted one goes on ---

VAE := demo/configs/betavae_tissues.json
TISSUES := lung brain
GANS := gan_lung rna-gan_lung gan_brain rna-gan_brain
tissue = $(lastword $(subst _, ,$(1)))
loss = $(if $(filter rna-%,$(1)),wganvae,wgan)
STAGE = @mkdir -p demo/.done; printf '\n=== %s (%s s since the start)\n' "$(1)" "$$(( $$(date +%s) - $$(cat demo/.done/start 2>/dev/null || date +%s | tee demo/.done/start) ))"

demo/.done/cohort: | .venv/.done
	$(call STAGE,demo cohort: slides and expression)
	$(PY) prepare_data.py demo --out demo --seed $(SEED)
	touch $@
