# Two commands for newcomers: `make demo` and `make test`. Each sets up .venv from nothing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# modules are compiled once, on all cores: where Python may not write (PYTHONDONTWRITEBYTECODE), every
# process would compile what it imports, which takes several times as long as running it
QUIETLY := --quiet --disable-pip-version-check --no-compile
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/'

.PHONY: demo test check notebooks bench clean

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(QUIETLY) "torch==2.13.0"
	$(BIN)/python -m pip install $(QUIETLY) -e ".[hf,onnx,dev]"
	$(COMPILE) $(VENV)/lib calibrate costmodel planner || true  # templates among the packages are no Python
	touch $(STAMP)

demo: $(STAMP)
	$(BIN)/foreshard demo --out foreshard-out

# two processes of one thread each, a file's tests in one: tests with real ranks take two cores
test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(STAMP)
	$(BIN)/python -m pytest -n 2 --nbmake --nbmake-timeout=600 notebooks

bench: $(STAMP)
	$(BIN)/python -m tests.benchmarks

clean:
	rm -rf $(VENV) foreshard-out
