# make setup   install everything into .venv          make lint    ruff and mypy
# make demo    convert, train and explain             make test    the fast tests
# make docs    generated pages, site in build/site    make check   all tests
# make gpu     all that a GPU is needed for            make soak    the tests of SECURITY.md in full counts
# make pictures  of docs/, from DATA_DIR and RUN
# make test-lowest  the fast tests with the lowest versions that setup.cfg allows, without Albumentations
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FFCV_NEEDS := pkg-config libopencv-dev libturbojpeg0-dev
export NO_ALBUMENTATIONS_UPDATE := 1

.PHONY: setup demo demo-cifar docs pictures test test-lowest check soak gpu lint format clean

setup: $(VENV)/.done

$(VENV)/.done: setup.cfg pyproject.toml scripts/setup.sh scripts/apt.sh
	@PYTHON="$(PYTHON)" VENV="$(VENV)" TORCH_INDEX="$(TORCH_INDEX)" FFCV_NEEDS="$(FFCV_NEEDS)" bash scripts/setup.sh
	@touch $@

# on synthetic images; after `make setup` it needs no network connection
demo: setup
	@BIN="$(CURDIR)/$(BIN)" bash scripts/demo.sh synthetic

# on CIFAR-10: the images at FASTCIFAR_SOURCE, otherwise a download
demo-cifar: setup
	@BIN="$(CURDIR)/$(BIN)" bash scripts/demo.sh cifar

docs: setup
	$(BIN)/python scripts/settings_page.py
	$(BIN)/python scripts/commands_page.py
	$(BIN)/python scripts/api_page.py
	$(BIN)/python scripts/site.py

# from a run with validation images; optional: AUDIT, the folder of an audit, ISSUES, its issues.csv with 'keep' where a
# label is right, and COMPARE, two groups of seeds
pictures: setup
	$(BIN)/python scripts/pictures.py --data-dir "$(DATA_DIR)" --run "$(RUN)" $(and $(AUDIT),--audit "$(AUDIT)") \
	    $(and $(ISSUES),--issues "$(ISSUES)") $(and $(COMPARE),--compare $(COMPARE))

# one worker per core, one thread each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal

# with few processes, without browsers or real images: under 4 minutes on two cores
test: setup
	$(PYTEST) -m "not slow and not real_data"

# with the lowest version of each package that setup.cfg allows. PYTHON must be one that all of them have wheels for: 3.10
# or 3.11. Albumentations is left out: OpenCV 5, which it is installed with, needs a later NumPy than the lowest
LOWEST := .venv-lowest
LOWEST_TOOLS := hypothesis markdown-it-py pytest pytest-xdist torchmetrics
$(LOWEST)/.done: setup.cfg scripts/lowest.py
	test -x $(LOWEST)/bin/pip || $(PYTHON) -m venv $(LOWEST)
	$(PYTHON) scripts/lowest.py >$(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install $(and $(TORCH_INDEX),--extra-index-url "$(TORCH_INDEX)") -c $(LOWEST)/constraints.txt \
	    -e '.[audit,export,hf,notebook,tensorboard,timm,trackio,wandb]' $(LOWEST_TOOLS)
	@touch $@

test-lowest: $(LOWEST)/.done
	$(subst $(BIN),$(LOWEST)/bin,$(PYTEST)) -m "not slow and not real_data" -W ignore::DeprecationWarning

# all tests: 15 to 20 minutes on two cores
check: setup
	$(PYTEST)

# the promises of SECURITY.md in full counts: under 20 minutes on two cores
soak: setup
	FASTCIFAR_SOAK=1 $(BIN)/python -m pytest tests/trust -n 2 --dist worksteal --durations=10

# on a machine with a GPU, into OUT: benchmarks/README.md. Without .venv by $(PYTHON), and nothing is installed or
# downloaded: a link shows it converters/, which is installed elsewhere
GPU_PYTHON = $(or $(wildcard $(BIN)/python),$(PYTHON))
OUT ?= gpu-results
gpu:
	@$(GPU_PYTHON) -c 'import fastcifar.converters' 2>/dev/null || ln -sfn ../converters fastcifar/converters
	$(GPU_PYTHON) -m benchmarks.gpu --out "$(OUT)"

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
