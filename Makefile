# Two commands for everyone: `make demo` and `make test`. Both set up what they need in .venv, from a bare checkout.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENV := $(VENV)/.env-ready
BUILD := $(VENV)/.built
CMAKE_BUILD := build/core
SOURCES := setup.py pyproject.toml CMakeLists.txt $(shell find csrc -type f -not -name '*.md')

.PHONY: demo test unit compile-check lint format docs links wheel wheels-check bench fuzz sanitize clean

demo: $(BUILD)
	$(BIN)/ade-fast demo --out demo

# The quick checks first, so that the output ends with pytest's closing line.
test: lint docs compile-check unit

unit: $(BUILD)
	$(BIN)/python -m pytest -n 2

# C++ tests, and (with nvcc) every CUDA kernel compiled alone against its budget of registers, spills and stack.
compile-check: $(BUILD)
	$(BIN)/cmake -S . -B $(CMAKE_BUILD) -G Ninja -DADE_TESTING=ON -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
		-DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja
	$(BIN)/cmake --build $(CMAKE_BUILD)
	$(BIN)/ctest --test-dir $(CMAKE_BUILD) --output-on-failure

lint: $(ENV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

format: $(ENV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' | xargs $(BIN)/clang-format -i

# The site, in build/site: warnings are errors, links and headings are checked. Not -q: a warning not said is not counted.
docs: $(ENV)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# Links to elsewhere; not a part of `make test`, which needs no network.
links: $(ENV)
	$(BIN)/python docs/site/links.py

# dist/: an sdist, and from it a cp310-abi3 wheel. Not isolated: the build needs the torch that is here.
wheel: $(ENV)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m build --no-isolation

# The wheel in environments of other Pythons and torches (CONTRIBUTING.md, Release): PYTHONS="env/bin/python ..."
wheels-check:
	$(BIN)/python tests/check_wheels.py dist/*.whl $(PYTHONS)

bench: $(BUILD)
	$(BIN)/pip install -q "jax>=0.4.30"
	$(BIN)/python bench/dynamics.py
	$(BIN)/python bench/mlp.py
	$(BIN)/python bench/report.py

# Random cases against the reference, 2000 unless CASES says otherwise: make fuzz CASES=100000
CASES ?= 2000
fuzz: $(BUILD)
	$(BIN)/python bench/fuzz.py --cases $(CASES)

# The C++ tests and the CUDA kernels run on the host under AddressSanitizer and UBSan, threads under ThreadSanitizer.
SANITIZE = $(BIN)/cmake -S . -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DADE_TESTING=ON \
	-DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python
PRELOADED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)"
sanitize: $(BUILD)
	$(SANITIZE) -B build/asan -DADE_SANITIZE=address,undefined
	$(BIN)/cmake --build build/asan
	$(BIN)/ctest --test-dir build/asan --output-on-failure -E cuda_resources
	$(PRELOADED) ASAN_OPTIONS=detect_leaks=0 ADE_FAST_CORE=build/asan \
		$(BIN)/python -m pytest -q -p no:cacheprovider tests/test_cuda_host.py tests/test_cuda_mlp_host.py
	$(SANITIZE) -B build/tsan -DADE_SANITIZE=thread
	$(BIN)/cmake --build build/tsan --target pool_test workspace_test
	$(BIN)/ctest --test-dir build/tsan --output-on-failure -R '^(pool_test|workspace_threads_test)$$'

$(ENV): requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip
	$(BIN)/python -m pip install -q -r requirements-dev.txt
	touch $@

$(BUILD): $(ENV) $(SOURCES)
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m pip install -q --no-build-isolation -e .
	touch $@

clean:
	rm -rf build dist *.egg-info ade_fast/*.so $(BUILD)
