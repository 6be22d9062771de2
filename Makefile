# make setup: everything that is needed, in .venv.   make demo: convert, train, explain.   make lint, make test: the quick
# checks.   make check: all tests.   make soak: the promises of SECURITY.md, in full.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FFCV_NEEDS := pkg-config libopencv-dev libturbojpeg0-dev
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: setup demo demo-cifar test check soak lint format clean

setup: $(VENV)/.done

$(VENV)/.done: setup.cfg pyproject.toml scripts/setup.sh scripts/apt.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" FFCV_NEEDS="$(FFCV_NEEDS)" bash scripts/setup.sh
	@touch $@

# synthetic images; no network connection is needed
demo: setup
	@BIN="$(CURDIR)/$(BIN)" bash scripts/demo.sh synthetic

# CIFAR-10: what FASTCIFAR_SOURCE names, or the download
demo-cifar: setup
	@BIN="$(CURDIR)/$(BIN)" bash scripts/demo.sh cifar

# a worker for each core, each with one thread
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# without processes, signals, browsers and real images: under 4 minutes on two cores
test: setup
	$(PYTEST) -m "not slow and not real_data"

# all tests: under 15 minutes on two cores
check: setup
	$(PYTEST)

# every promise of SECURITY.md in full: under 20 minutes on two cores
soak: setup
	FASTCIFAR_SOAK=1 $(BIN)/python -m pytest tests/trust -n 2 --dist worksteal --durations=10

# converters/ is installed as fastcifar.converters: the link shows it to mypy under that name
lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	mkdir -p build/mypy/fastcifar && ln -sfn ../../../converters build/mypy/fastcifar/converters
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist demo demo-cifar *.egg-info .mypy_cache .pytest_cache .ruff_cache
