# What a person and CI run. 'make' alone lists it; each target does its own set-up.
SHELL := /bin/bash
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
BIN := .venv/bin
MINUTES ?= 5
export PATH := $(CURDIR)/.cache/bin:$(PATH)

.PHONY: help setup setup-train setup-bench demo serve test crash bench bench-quick check format proto pins image-test clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## make .venv with the pinned dependencies
	@scripts/setup.sh

setup-train:  ## the same, with what the scripts in training/ need
	@scripts/setup.sh service,cli,train,dev

demo: setup  ## start the server, call it in all four modes, show what comes back
	@$(BIN)/cellstate demo

serve: setup  ## keep a server up on the bundled models (ARGS="--port 50051 ...")
	@$(BIN)/cellstate serve $(ARGS)

test: setup-train  ## run the whole suite (ARGS="-k name" for a part)
	@scripts/install_test_needs.sh
	@$(BIN)/python -m pytest $(ARGS)

crash: setup  ## kill servers and cut connections under running sessions, and check every output (MINUTES=5 ARGS="--scenario redis ...")
	@$(BIN)/python -m tests.crash --minutes $(MINUTES) $(ARGS)

check: setup  ## format, lint, types, layers, contract, stubs, Dockerfile
	@scripts/check.sh

setup-bench:
	@scripts/setup.sh service,cli,bench,dev
	@scripts/install_bench_needs.sh || echo "going on without Triton: its rows will say 'not measured'" >&2

bench: setup-bench  ## measure everything beside Triton, plain gRPC servers and bare torch, into docs/benchmarks (ARGS="--items paced ...")
	@$(BIN)/python -m benchmarks $(ARGS)

bench-quick: setup-bench  ## the essential part of it in under ten minutes, ending with a line of ratios
	@$(BIN)/python -m benchmarks --quick $(ARGS)

format: setup  ## put the code into its format
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

proto: setup  ## write the stubs and the contract's image anew (refuses a breaking change)
	@scripts/check.sh proto-lint proto-breaking
	@$(BIN)/buf build proto --exclude-source-info --output proto/cellstate.binpb
	@scripts/generate_stubs.sh

pins:  ## renew constraints.txt
	@scripts/pins.sh

image-test: setup  ## build the image, bring the stack up with docker, call it from outside, stop it
	@scripts/image_test.sh

clean:  ## remove what was built, the environments too
	rm -rf .venv .venv-* .cache dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
