# Everything a developer or the CI does. `make help` lists it.

DENY_VERSION := 0.20.2
# The folder carries the version, so a new version is a new target and an old one is kept out.
DENY := .tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

.PHONY: help demo test asan bench lint soak
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

demo: ## Show kvtier at work on a generated trace (needs no GPU)
	cargo run --release --locked -- demo

test: fio ## Run every test, doc tests included
	cargo test --workspace --locked --no-fail-fast
	RUSTFLAGS="--cfg shuttle" cargo test -p kv-tiers --test shuttle --locked --target-dir target/shuttle

soak: ## Run every test with loops a hundred times longer
	KVTIER_SOAK=1 cargo test --release --workspace --locked

asan: ## Run the tests of the parts with unsafe code, and the simulation, under AddressSanitizer
	ASAN_OPTIONS=allocator_may_return_null=1 RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address \
		cargo test --locked --no-fail-fast -p kv-tiers -p kv-cuda -p kvtier-tests --tests \
		--target x86_64-unknown-linux-gnu --target-dir target/asan

bench: fio ## Measure against the limits and the peers (the first build takes minutes)
	cargo run --release --locked --features peers -- bench index
	cargo run --release --locked --features peers -- bench copy
	cargo run --release --locked --features peers -- bench nvme
	cargo run --release --locked --features peers -- bench reopen
	cargo run --release --locked --features peers -- bench cost
	cargo bench -p kvtier-benches --locked

lint: $(DENY) ## Check format, lints, docs, licences and sources of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	$(DENY) --locked check licenses bans sources

# Built unoptimised: it runs for a second, and an optimised build takes six minutes instead of two.
$(DENY):
	cargo install cargo-deny --version $(DENY_VERSION) --locked --debug \
		--root .tools/cargo-deny-$(DENY_VERSION) --target-dir .tools/build
	rm -rf .tools/build

# fio gives the limit that the NVMe tier is compared with. Without it everything else still runs.
.PHONY: fio
fio:
	@command -v fio >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing fio"; \
		(apt-get install -y -q fio || { apt-get update -q && apt-get install -y -q fio; }) >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "fio is not installed: NVMe figures will have no limit beside them (install the package fio)" >&2
