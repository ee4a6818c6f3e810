# What you can do here. Each target is a script that you may also run by hand; `make help` lists them.
#
# Everything is built in the one release profile, so that the wasm engine is compiled once and not once per profile.
# Builds go to ./target, or to where scripts/env.sh says on a CI machine.

export CARGO_TARGET_DIR := $(shell . ./scripts/env.sh && printf '%s' "$$CARGO_TARGET_DIR")
export TIDEMILL_GUEST_TARGET_DIR := $(shell . ./scripts/env.sh && printf '%s' "$$TIDEMILL_GUEST_TARGET_DIR")

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-long bench lint clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## install what is missing here to build and test; harmless to repeat
	@scripts/setup all

demo: ## build everything and run an example job on real data
	@scripts/setup
	@scripts/demo

test: setup ## run all tests
	@scripts/test

test-long: setup ## run the tests that take hours or need a lot of memory
	@scripts/test long

bench: setup ## measure, and compare with the recorded results
	@bench/run-all

lint: setup ## check the format and run clippy, warnings denied
	@scripts/lint

clean: ## delete what was built
	@scripts/clean
