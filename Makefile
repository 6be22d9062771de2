# make setup: everything that is needed, in .venv.  make demo: convert, train, explain.  make test, make lint: the checks. make soak: trust, in full.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FFCV_NEEDS := pkg-config libopencv-dev libturbojpeg0-dev
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: setup demo test soak lint format clean

setup: $(VENV)/.done

$(VENV)/.done: setup.cfg pyproject.toml scripts/setup.sh scripts/apt.sh
	PYTHON="$(PYTHON)" VENV="$(VENV)" FFCV_NEEDS="$(FFCV_NEEDS)" bash scripts/setup.sh
	touch $@

demo: setup
	BIN="$(CURDIR)/$(BIN)" bash scripts/demo.sh

# a worker for each core, each with one thread
test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# every promise of SECURITY.md in full: under 20 minutes on two cores
soak: setup
	FASTCIFAR_SOAK=1 $(BIN)/python -m pytest tests/trust -n 2 --dist worksteal --durations=10

# mypy sees the packages as they are installed: converters/ is fastcifar.converters
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build/typecheck && mkdir -p build/typecheck && cp -r fastcifar build/typecheck/ && cp -r converters build/typecheck/fastcifar/
	cd build/typecheck && $(CURDIR)/$(BIN)/mypy --config-file $(CURDIR)/setup.cfg --cache-dir $(CURDIR)/.mypy_cache -p fastcifar

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo *.egg-info .mypy_cache .pytest_cache .ruff_cache
