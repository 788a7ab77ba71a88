# The two commands of the README are `make demo` and `make test`; both set themselves up.
PYTHON ?= python3
BIN := .venv/bin
NATIVE := CMakeLists.txt $(wildcard native/*.cpp native/*.h native/*.inc tests/native/*)
GOLDEN ?= tests/golden

.PHONY: setup demo test check bench bench-peers golden clean

setup: .venv/.built

.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt scikit-build-core nanobind cmake ninja
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q -c constraints.txt \
	  --no-build-isolation -e '.[train,dev]'
	touch $@

.venv/.built: .venv/.installed $(NATIVE)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --no-deps --no-build-isolation \
	  -C cmake.define.YOCOBIT_TESTS=ON -e .
	touch $@

demo: setup
	$(BIN)/python examples/demo.py

test: setup
	$(BIN)/python -m pytest --golden=$(GOLDEN)

check: setup
	$(BIN)/ruff format --check src tests examples benchmarks
	$(BIN)/ruff check src tests examples benchmarks
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(wildcard native/*.cpp native/*.h native/*.inc)

bench: setup
	$(BIN)/python benchmarks/run.py

bench-peers: setup
	CMAKE_ARGS=-DGGML_NATIVE=ON $(BIN)/python -m pip install -q -c constraints.txt -e '.[peers]' \
	  --no-build-isolation
	$(BIN)/python benchmarks/peers.py

golden: setup
	$(BIN)/python tests/make_golden.py

clean:
	rm -rf build .venv/.built
