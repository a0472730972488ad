# metalmesh: `make help` lists the verbs. Everything runs from .venv, which `make setup` makes.

PYTHON ?= python3
SYSTEM_PATH := $(PATH)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Roles whose scenarios `make molecule` runs (default: all), and how many at a time.
ROLES ?=
JOBS ?= 2
# The lab that `make test` makes for itself, beside the one you work with.
TEST_LAB := test

.DEFAULT_GOAL := help
.PHONY: help setup lab lab-down rebuild site verify lint unit wire molecule lab-test test bench scale fuzz

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r verb text; do printf '  make %-9s %s\n' "$$verb" "$$text"; done

setup: ## install what is missing: Debian packages, .venv (root only when packages are missing)
	@PATH='$(SYSTEM_PATH)' $(PYTHON) -m lab.bootstrap

lab: setup ## build the lab, roll the mesh out, prove it on the wire
	lab/lab up
	$(MAKE) --no-print-directory site verify

lab-down: ## remove the lab and every trace of it
	lab/lab down

rebuild: ## fresh machines, then the mesh again
	lab/lab rebuild
	$(MAKE) --no-print-directory site

site: ## roll the mesh out on the lab (LAB_NAME picks another than `default`)
	ansible-playbook site.yml

verify: ## print the proof: what crosses the wire between two nodes
	ansible-playbook playbooks/verify.yml

lint: ## ruff, mypy, yamllint, ansible-lint
	ruff check .
	ruff format --check .
	mypy
	mypy --strict lab
	yamllint --strict -c .config/yamllint.yml .
	ansible-lint --offline --profile production

unit: ## tests of the pure parts; no root, under a minute
	pytest -q tests/unit

wire: ## tests on real sockets, namespaces and machines, and against Envoy; root
	pytest -q tests/wire tests/interop

molecule: ## each role on machines of its own; root (ROLES="ztunnel ca", JOBS=2)
	python -m lab.scenarios --jobs $(JOBS) $(ROLES)

lab-test:
	lab/lab --name $(TEST_LAB) up
	LAB_NAME=$(TEST_LAB) ansible-playbook site.yml
	LAB_NAME=$(TEST_LAB) pytest -q tests/lab
	LAB_NAME=$(TEST_LAB) pytest -q tests/uninstall
	lab/lab --name $(TEST_LAB) down

test: setup ## all of the above, and the whole mesh on a lab of its own; root
	$(MAKE) --no-print-directory lint
	$(MAKE) --no-print-directory unit
	$(MAKE) --no-print-directory wire
	$(MAKE) --no-print-directory molecule
	$(MAKE) --no-print-directory lab-test

bench: ## throughput, requests, connections and memory beside Envoy, on this machine
	python -m tests.bench

scale: ## control plane and ztunnel at up to 10 000 workloads, and 10 000 open connections
	python -m tests.scale
	python -m tests.scale.connections

fuzz: ## every parser under a coverage-guided fuzzer, half a minute each
	python -m tests.fuzz
