# One word each: `make dev` serves, `make test` tests everything, `make lint` is the quick part of it.
#
# One profile (release), one selection (--workspace), one set of features: another one would compile RocksDB
# again, which takes 20 minutes on two cores. The build lives outside the checkout, in CARGO_TARGET_DIR or
# the cache of the user; `target` in the checkout is a link to it, so that plain cargo finds it too.

SHELL := /bin/bash
CACHE := $(or $(XDG_CACHE_HOME),$(HOME)/.cache)
export CARGO_TARGET_DIR ?= $(CACHE)/quorate/target
CARGO_ARGS := --release --workspace --locked
BIN := $(CARGO_TARGET_DIR)/release

# Arguments for `make dev` and the benches: make dev ARGS='--nodes 5'
ARGS ?=

.PHONY: dev build test lint sim mutants torture fuzz restart steady snapshot bench-engine side-by-side differential prerequisites target-dir

# A cluster of three nodes in one process, with real networking, disks and syncs; Ctrl-C ends it.
dev: build
	@exec $(BIN)/quorate dev $(ARGS)

build: prerequisites target
	cargo build $(CARGO_ARGS)

# The programs first: tests start them as a stranger would, and cargo builds no programs of other crates.
test: lint build
	cargo test $(CARGO_ARGS)

lint: prerequisites target
	@if cargo fmt --version >/dev/null 2>&1; then echo cargo fmt --all --check; cargo fmt --all --check; \
	else echo 'lint: skipped: rustfmt is not installed (rustup component add rustfmt)'; fi
	@if cargo clippy --version >/dev/null 2>&1; then echo cargo clippy $(CARGO_ARGS) --all-targets; \
		cargo clippy $(CARGO_ARGS) --all-targets -- -D warnings; \
	else echo 'lint: skipped: clippy is not installed (rustup component add clippy)'; fi

# The simulator is built alone, without RocksDB, in a directory of its own: its features are not those of the workspace.
# Seeds add up as long as what they test stays the same: the count is kept beside the build, named after the sources,
# tests and scenarios aside, which no seed runs.
SIM := CARGO_TARGET_DIR='$(CARGO_TARGET_DIR)/sim' cargo run --release --locked -p quorate-sim
SIM_CRATES := $(addprefix crates/,types raft group store wal placement sim)
SIM_SOURCES := $(addsuffix /src,$(SIM_CRATES)) $(addsuffix /Cargo.toml,$(SIM_CRATES))
SIM_STATE = $(CACHE)/quorate/sim/$(shell find $(SIM_SOURCES) -type f -not -name '*tests.rs' -not -path '*/tests/*' \
	| LC_ALL=C sort | xargs cat | sha256sum | cut -c1-16)
SEEDS ?= 10000

# SEEDS more seeds; or one run: make sim ARGS='--seed 7 --trace', make sim ARGS='--scenario FILE --diagram text'
sim:
	$(SIM) -- $(or $(ARGS),campaign --seeds $(SEEDS) --state '$(SIM_STATE)')

# Every known defect, one at a time: the oracles have to find it. Writes the table of docs/defects.md.
mutants:
	$(SIM) --features defects -- mutants --table docs/defects.md $(ARGS)

# Faults on real processes. Rounds add up as long as the sources stay the same, as seeds do.
TORTURE_STATE = $(CACHE)/quorate/torture/$(shell find crates tests/src Cargo.lock -type f | LC_ALL=C sort \
	| xargs cat | sha256sum | cut -c1-16)

# 40 more rounds; or: make torture ARGS='--rounds 100 --only kill,power-one,power-all,flip,tear,check,partition,fuzz'
torture: build
	@exec $(BIN)/quorate-torture faults --state '$(TORTURE_STATE)' $(ARGS)

# Hostile bytes, ten minutes for each decoder, eight at a time: make fuzz ARGS='--seconds 60 --only Watch,Lease'
fuzz: build
	@exec $(BIN)/quorate-torture fuzz $(ARGS)

# From kill -9 to serving with 1 GiB: make restart ARGS='--mib 1024 --rounds 3'
restart: build
	@exec $(BIN)/quorate-torture restart $(ARGS)

# Disk, memory and p99 while 2 GiB are overwritten for ten minutes: make steady ARGS='--minutes 1 --mib 256'
steady: build
	@exec $(BIN)/quorate-torture steady $(ARGS)

# The p99 of puts with and without a snapshot under way: make snapshot ARGS='--mib 256 --rate 1000'
snapshot: build
	@exec $(BIN)/quorate-torture snapshot $(ARGS)

# The embedded engine: writes per second, latency and CPU per write.
bench-engine: build
	@exec $(BIN)/bench-engine $(ARGS)

# Quorate, etcd and the ceiling of a gRPC door under the same load.
side-by-side: build
	@QUORATE_BIN_DIR=$(BIN) deploy/side-by-side $(ARGS)

# The same sequences of requests to etcd and Quorate, 1,000 of each family, in memory, for no answer depends on the disk:
# make differential DIFFERENTIAL_SEEDS=100 ARGS=watchers
DIFFERENTIAL_SEEDS ?= 1000
differential: build
	REQUIRE_PEERS=1 TMPDIR=$(or $(TMPDIR),$(wildcard /dev/shm),/tmp) DIFFERENTIAL_SEEDS=$(DIFFERENTIAL_SEEDS) \
		cargo test $(CARGO_ARGS) --test differential -- $(ARGS)

prerequisites:
	@deploy/prerequisites

# A link, made anew when the build has moved; a directory that cargo made itself stays.
target: FORCE
	@mkdir -p '$(CARGO_TARGET_DIR)'
	@if [ ! -e target ] || [ -L target ]; then ln -sfn '$(CARGO_TARGET_DIR)' target; fi

target-dir:
	@echo '$(CARGO_TARGET_DIR)'

FORCE:
