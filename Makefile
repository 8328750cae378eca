# Everything starts from a bare Debian 12 with Rust: `make demo` shows Puck at work, `make test` proves it.
# Running sprites needs root: machines are namespaces, loop devices and network rules.

SHELL := /bin/bash
CARGO ?= cargo
STATIC_TARGET := $(shell uname -m)-unknown-linux-gnu
PUCK := target/release/puck
AGENT := target/release/puck-guest

.PHONY: all setup build image demo test unit e2e soak lint bench bench-disk bench-guest clean

all: build

setup:
	@scripts/setup.sh

# The server with the command line, and the static agent beside it.
build: setup
	$(CARGO) build --release -p puck
	RUSTFLAGS="-C target-feature=+crt-static" $(CARGO) build --release --target $(STATIC_TARGET) -p puck-guest
	@install -m 0755 target/$(STATIC_TARGET)/release/puck-guest $(AGENT)

# The base image, once per host and recipe; a server without one would build it at its start.
image: build
	@echo "base image $$($(PUCK) image build --if-missing)"

demo: image
	@scripts/demo.py

test: image
	@scripts/test.sh

# The parts of `make test`, for a shorter loop.
unit: setup
	$(CARGO) test --release --workspace

e2e: image
	@scripts/test.sh e2e

# The long form of what crashes, fills up and goes away: about two hours. `make soak TESTS="-k postgres"` runs a part of it.
soak: image
	@scripts/test.sh soak $(TESTS)

lint: setup
	$(CARGO) fmt --all -- --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

bench: image
	.venv/bin/python bench/run.py

# The disk beside native ext4 and beside JuiceFS. `make bench-disk SHORT=--short` is the quick form.
bench-disk: image
	scripts/setup.sh bench
	.venv/bin/python bench/disk.py $(SHORT)

# What passes through the guest agent: commands, their output, files.
bench-guest: image
	.venv/bin/python bench/guest.py

clean:
	$(CARGO) clean
	rm -rf .venv tests/e2e/js/node_modules bench/out
