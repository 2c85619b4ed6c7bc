# Everything a developer or the CI does. `make help` lists it.

DENY_VERSION := 0.20.2
# The folder carries the version, so a new version is a new target and an old one is kept out.
DENY := .tools/cargo-deny-$(DENY_VERSION)/bin/cargo-deny

# What the kernels are compiled and mirrored with. It is installed only to change or to check them.
KERNEL_TOOLS := .tools/cuda-13.0.88-ptxas-12.4.131-libclang-18.1.1

# A real Mooncake: master, node and client. Its Python package is the only one that needs no CUDA.
MOONCAKE_VERSION := 0.3.13.post1
MOONCAKE := .tools/mooncake-$(MOONCAKE_VERSION)

# Its own folder: other flags than the usual release build, which would be built anew every time.
GPU_BUILD := target/gpu

# Where `make ffi` installs the header, the libraries and the pkg-config file.
PREFIX ?= dist/ffi

# The wheel is built by MATURIN. Its tests run in a fresh environment of PYTHON, which makes both.
PYTHON ?= python3
MATURIN_VERSION := 1.16.0
MATURIN := .tools/maturin-$(MATURIN_VERSION)/bin/maturin
RUFF_VERSION := 0.17.6
RUFF := .tools/ruff-$(RUFF_VERSION)/bin/ruff
PYTHON_SOURCES := ffi/python benches/connectors tests/runtimes
TARGET := $(or $(CARGO_TARGET_DIR),target)
WHEEL_VENV := $(TARGET)/wheel-venv
# Installs the runtimes that the connectors are tested in: it links what several environments share.
UV_VERSION := 0.13.9
UV := .tools/uv-$(UV_VERSION)/bin/uv

# The runtimes that the wheel is tested in, as they are installed for a CPU.
LMCACHE := .tools/lmcache-0.5.6
SGLANG := .tools/sglang-0.5.23
VLLM := .tools/vllm-0.33.0

.PHONY: help demo test asan ffi lint lint-python soak kernels kernels-check header header-check mooncake gpu wheel test-wheel
.PHONY: test-lmcache test-sglang test-vllm soak-lmcache soak-sglang soak-vllm bench bench-servers bench-connectors
.DEFAULT_GOAL := help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

demo: ## Show kvtier at work on a generated trace (needs no GPU)
	cargo run --release --locked -- demo

test: fio cxx redis mooncake ## Run every test, doc tests included
	cargo test --workspace --locked --no-fail-fast
	$(MAKE) test-wheel
	$(MAKE) test-lmcache
	$(MAKE) test-sglang
	$(MAKE) test-vllm
	@if [ "$$(id -u)" = 0 ]; then cargo test -p kvtier-tests --test remote_frozen --locked -- --ignored; \
	else echo "not root: a file system that hangs was not tested" >&2; fi
	RUSTFLAGS="--cfg shuttle" cargo test -p kv-tiers --test shuttle --locked --target-dir target/shuttle

# The command is a file of its own in the wheel, the same that is built for everything else: a runtime that imports
# kvtier does not load the code of benchmarks, and `kvtier` starts without Python.
define build-wheel
	$(4) cargo build --profile $(1) --locked -p kvtier-benches --bin kvtier
	mkdir -p ffi/python/data/scripts
	strip -o ffi/python/data/scripts/kvtier $(TARGET)/$(2)/kvtier
	rm -rf $(3)
	$(4) $(MATURIN) build --profile $(1) --locked --features redis --manifest-path ffi/python/Cargo.toml --out $(3)
endef

wheel: $(MATURIN) ## Build dist/wheel: kvtier for Python 3.10 and later, with the command
	$(call build-wheel,release,release,dist/wheel,)

# With the assertions of the other tests, and with what was built for them: `dev` optimised like `test` is the same.
# (Cargo takes the profile `test` to mean the harness.)
test-wheel: $(MATURIN) ## Build the wheel for tests, install it in a fresh environment and test it there
	$(call build-wheel,dev,debug,$(TARGET)/wheel,CARGO_PROFILE_DEV_OPT_LEVEL=2)
	rm -rf $(WHEEL_VENV)
	$(PYTHON) -m venv $(WHEEL_VENV)
	$(WHEEL_VENV)/bin/pip install -q --disable-pip-version-check -r ffi/python/requirements-test.txt $(TARGET)/wheel/*.whl
	cd ffi/python && $(abspath $(WHEEL_VENV))/bin/python -m pytest -q
	cd ffi/python && $(abspath $(WHEEL_VENV))/bin/python -m mypy
	cd ffi/python && $(abspath $(WHEEL_VENV))/bin/python -m mypy.stubtest kvtier._kvtier --mypy-config-file pyproject.toml

# Each has an environment of its own, linked from uv's cache, and in it the wheel of `test-wheel`.
define install-runtime
	UV=$(abspath $(UV)) PYTHON=$(PYTHON) tests/runtimes/$(1)/install.sh $(2)
	$(UV) pip install -q --no-deps --reinstall --python $(2)/bin/python $(TARGET)/wheel/*.whl
endef

test-lmcache: $(UV) ## Test the wheel of `test-wheel` in a real LMCache, and on torch tensors
	$(call install-runtime,lmcache,$(LMCACHE))
	$(LMCACHE)/bin/python -m pytest -q tests/runtimes/lmcache
	$(LMCACHE)/bin/python -m pytest -q tests/runtimes/torch

test-sglang: $(UV) redis ## Test the wheel of `test-wheel` in a real SGLang
	$(call install-runtime,sglang,$(SGLANG))
	$(SGLANG)/bin/python -m pytest -q tests/runtimes/sglang

test-vllm: $(UV) redis ## Test the wheel of `test-wheel` in a real vLLM
	$(call install-runtime,vllm,$(VLLM))
	cd tests/runtimes/vllm && $(abspath $(VLLM))/bin/python -m pytest

# Each file in a process of its own: they look at what a process holds.
soak-vllm: $(UV) redis ## 10,000 requests through each connector of vLLM, with cancels, faults and restarts
	$(call install-runtime,vllm,$(VLLM))
	cd tests/runtimes/vllm && for soak in soak_*.py; do $(abspath $(VLLM))/bin/python -m pytest -s $$soak || exit 1; done

soak-sglang: $(UV) ## 10,000 requests through each connector of SGLang, with cancels, faults and restarts
	$(call install-runtime,sglang,$(SGLANG))
	KVTIER_SOAK=1 $(SGLANG)/bin/python -m pytest -q -s tests/runtimes/sglang/test_soak.py
	KVTIER_SOAK=1 $(SGLANG)/bin/python -m pytest -q -s tests/runtimes/sglang/test_linker_soak.py

soak-lmcache: $(UV) ## 10,000 requests through LMCache's storage manager, with faults, restarts and kills
	$(call install-runtime,lmcache,$(LMCACHE))
	KVTIER_SOAK=1 $(LMCACHE)/bin/python -m pytest -q -s tests/runtimes/lmcache/test_soak.py

soak: ## Run every test with loops a hundred times longer
	KVTIER_SOAK=1 cargo test --release --workspace --locked

ASAN := RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address cargo test --locked --no-fail-fast \
	--target x86_64-unknown-linux-gnu --target-dir target/asan

# On the fake driver without the search for leaks: what a hung GPU may still write is left on purpose, and the
# tests ask the driver itself what is left in it.
asan: ## Run the tests of the parts with unsafe code, and the simulation, under AddressSanitizer
	ASAN_OPTIONS=allocator_may_return_null=1 $(ASAN) -p kv-tiers -p kv-cuda -p kvtier-ffi --tests
	ASAN_OPTIONS=allocator_may_return_null=1 $(ASAN) -p kvtier-tests \
		--test crash --test faults --test replay --test simulation --test stress
	ASAN_OPTIONS=allocator_may_return_null=1:detect_leaks=0 $(ASAN) -p kvtier-tests \
		--test cuda --test cuda_driver --test cuda_without_batch --test fake_cuda --test fake_cuda_old --test kernels

bench: fio redis ## Measure against the limits and the peers (the first build takes minutes)
	cargo run --release --locked --features peers -- bench index
	cargo run --release --locked --features peers -- bench copy
	cargo run --release --locked --features peers -- bench codec
	cargo run --release --locked --features peers -- bench nvme
	cargo run --release --locked --features peers -- bench reopen
	cargo run --release --locked --features peers -- bench cost
	cargo run --release --locked --features peers,redis -- bench remote
	cargo bench -p kvtier-benches --locked

# Takes a quarter of an hour. Not part of `bench`: it exits with 1 if the promise is broken.
bench-servers: redis ## Load or recompute on real Redis and S3 servers, beside a rule that always loads
	cargo build --release --locked -p kvtier-tests --bins
	target/release/rule-on-servers

# Each backend in the environment that its runtime's tests run in. LMCache's raw_block is a package of its own.
RAW_BLOCK := .tools/lmcache-raw-block-0.5.7rc2
BENCH_DIR ?= $(TARGET)

bench-connectors: wheel fio $(UV) $(RAW_BLOCK) ## Measure kvtier beside the runtimes' own backends on the disk of BENCH_DIR (8 minutes)
	UV=$(abspath $(UV)) PYTHON=$(PYTHON) tests/runtimes/lmcache/install.sh $(LMCACHE)
	UV=$(abspath $(UV)) PYTHON=$(PYTHON) tests/runtimes/sglang/install.sh $(SGLANG)
	UV=$(abspath $(UV)) PYTHON=$(PYTHON) tests/runtimes/vllm/install.sh $(VLLM)
	rm -rf $(TARGET)/bench-connectors
	$(UV) pip install -q --no-deps --python $(PYTHON) --target $(TARGET)/bench-connectors dist/wheel/*.whl
	$(PYTHON) benches/connectors --dir $(BENCH_DIR) --path $(TARGET)/bench-connectors $(RAW_BLOCK) \
		--lmcache $(LMCACHE) --sglang $(SGLANG) --vllm $(VLLM) --out benches/results

# One file, without debug information, that needs a driver and a C library not older than this machine's. The
# commit is built in: the other machine has no repository.
gpu: ## Build dist/gpu for any NVIDIA machine: copy it there and run run.sh (no toolchain, no network)
	KVTIER_COMMIT=$$(git describe --always --dirty --abbrev=12 --exclude='*' 2>/dev/null || echo unknown) \
		CARGO_PROFILE_RELEASE_STRIP=symbols CARGO_PROFILE_RELEASE_DEBUG=none \
		cargo build --release --locked -p kvtier-benches --bin kvtier --target-dir $(GPU_BUILD)
	mkdir -p dist/gpu
	rm -f dist/gpu/*.whl
	$(MAKE) wheel
	cp $(GPU_BUILD)/release/kvtier benches/gpu/run.sh tests/runtimes/torch/test_tensors.py dist/wheel/*.whl dist/gpu/
	@du -h dist/gpu/kvtier

ffi: ## Build the C ABI and install it into PREFIX (dist/ffi): header, libraries, pkg-config file
	cargo build --release --locked -p kvtier-c
	ffi/c/install.sh $${CARGO_TARGET_DIR:-target}/release/libkvtier.a \
		$$(cargo pkgid --locked -p kvtier-c | sed 's/.*[#@]//') $(abspath $(PREFIX))

header: $(KERNEL_TOOLS) ## Write kvtier.h and what bindgen reads in it
	cargo run -q -p kvtier-header --locked -- write $(KERNEL_TOOLS)

header-check: $(KERNEL_TOOLS) ## Check that kvtier.h is current
	cargo run -q -p kvtier-header --locked -- check $(KERNEL_TOOLS)

kernels: $(KERNEL_TOOLS) ## Compile the CUDA kernels and write what is generated from them
	cargo run -q -p kvtier-kernels --locked -- write $(KERNEL_TOOLS)

kernels-check: $(KERNEL_TOOLS) ## Check that what is generated from the CUDA kernels is current
	cargo run -q -p kvtier-kernels --locked -- check $(KERNEL_TOOLS)

lint: $(DENY) kernels-check header-check lint-python ## Check format, lints, docs, licences and sources of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
	$(DENY) --locked check licenses bans sources

$(MATURIN):
	$(PYTHON) -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore \
		--target .tools/maturin-$(MATURIN_VERSION) maturin==$(MATURIN_VERSION)

$(UV):
	$(PYTHON) -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore \
		--target .tools/uv-$(UV_VERSION) uv==$(UV_VERSION)

$(RAW_BLOCK): | $(UV)
	$(UV) pip install -q --no-deps --python $(PYTHON) --target $@ lmcache-rust-raw-block-io==$(lastword $(subst -, ,$@))

lint-python: $(RUFF) ## Check format and lints of the Python sources
	$(RUFF) format --check $(PYTHON_SOURCES)
	$(RUFF) check $(PYTHON_SOURCES)

$(RUFF):
	$(PYTHON) -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore \
		--target .tools/ruff-$(RUFF_VERSION) ruff==$(RUFF_VERSION)

# Built unoptimised: it runs for a second, and an optimised build takes six minutes instead of two.
$(DENY):
	cargo install cargo-deny --version $(DENY_VERSION) --locked --debug \
		--root .tools/cargo-deny-$(DENY_VERSION) --target-dir .tools/build
	rm -rf .tools/build

# Complete nvcc, ptxas of the oldest CUDA whose drivers must load the PTX, and libclang for bindgen, from PyPI.
$(KERNEL_TOOLS):
	rm -rf $@.part
	python3 -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore --target $@.part \
		nvidia-cuda-nvcc==13.0.88 nvidia-nvvm==13.0.88 nvidia-cuda-crt==13.0.88 nvidia-cuda-runtime==13.0.96 \
		nvidia-cuda-nvcc-cu12==12.4.131 libclang==18.1.1
	mv $@.part $@

# fio gives the limit that the NVMe tier is compared with. Without it everything else still runs.
.PHONY: fio
fio:
	@command -v fio >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing fio"; \
		(apt-get install -y -q fio || { apt-get update -q && apt-get install -y -q fio; }) >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "fio is not installed: NVMe figures will have no limit beside them (install the package fio)" >&2

# The remote tier is tested against a real server, with TLS.
.PHONY: redis
redis:
	@command -v redis-server >/dev/null && command -v openssl >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing redis-server and openssl"; \
		(apt-get install -y -q redis-server openssl || { apt-get update -q && apt-get install -y -q redis-server openssl; }) \
			>/dev/null 2>&1 && exit 0; \
	fi; \
	echo "no redis-server or no openssl: the tests of the remote tier will fail (install both packages)" >&2

# The kernels' tests compile them for the host; those of the C ABI compile programs against it.
.PHONY: cxx
cxx:
	@command -v $${CXX:-c++} >/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing g++"; \
		(apt-get install -y -q g++ || { apt-get update -q && apt-get install -y -q g++; }) >/dev/null 2>&1 && exit 0; \
	fi; \
	echo "no C++ compiler: the tests of the kernels and of the C ABI will fail (install the package g++, or set CXX)" >&2

# What the package's libraries need, and the interpreter as a shared library: the tests' client runs in it.
MOONCAKE_PACKAGES = libibverbs1 libnuma1 libcurl4 \
	$(shell python3 -c 'import sys; print("libpython%d.%d" % sys.version_info[:2])')
MOONCAKE_LOADS := import ctypes, mooncake.store, sysconfig as s; \
	ctypes.CDLL(s.get_config_var("LIBDIR") + "/" + s.get_config_var("INSTSONAME"))

mooncake: $(MOONCAKE)

$(MOONCAKE):
	rm -rf $@.part
	python3 -m pip install -q --no-deps --disable-pip-version-check --root-user-action=ignore --target $@.part \
		mooncake-transfer-engine-non-cuda==$(MOONCAKE_VERSION)
	chmod +x $@.part/mooncake/mooncake_master
	@PYTHONPATH=$@.part python3 -c '$(MOONCAKE_LOADS)' 2>/dev/null && exit 0; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "installing $(MOONCAKE_PACKAGES)"; \
		(apt-get install -y -q $(MOONCAKE_PACKAGES) || { apt-get update -q && apt-get install -y -q $(MOONCAKE_PACKAGES); }) \
			>/dev/null 2>&1 && exit 0; \
	fi; \
	echo "Mooncake does not load: the tests of its store will fail (install $(MOONCAKE_PACKAGES))" >&2
	mv $@.part $@
