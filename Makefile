# Two commands matter: make demo, make test. Both make the environment when it is not there yet.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On Linux without a GPU, PyTorch's CPU build saves gigabytes: make demo PIP_ARGS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_ARGS ?=

.PHONY: demo test test-slow test-devices test-arm64 fuzz check bench bench-training clean

# One pip call: in several, the converters' own pins contradict one another. torch is named, so that no other build comes.
INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt torch==2.13.0

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about 2.5 GB, some minutes"
	$(INSTALL) -e '.[all]'
	touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV): about 2.5 GB, some minutes"
	$(INSTALL) -e '.[dev]'
	touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	$(BIN)/edgekit run --frames 24 --samples 16

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 -m "not slow"

# What takes half a minute or more for one test: whole commands, and proofs by many draws.
test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist loadscope --max-worker-restart 0 -m slow

# Devices with real parts: an sshd, an adb client, and what is missing of them by apt-get, as root on Debian.
test-devices: $(VENV)/.installed-dev
	@if [ ! -x /usr/sbin/sshd ] || ! command -v ssh >/dev/null || ! command -v adb >/dev/null; then \
		if [ "$$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then \
			echo "install sshd (openssh-server), ssh (openssh-client) and adb, then run this again" >&2; exit 1; fi; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
			openssh-server openssh-client adb >/dev/null; fi
	EDGEKIT_TEST_DEVICES=1 $(BIN)/python -m pytest -n 2 --dist loadfile --max-worker-restart 0 tests/devices

# int8's accuracy on ARM's kernels, without the hardware: a Debian arm64 userland that qemu executes, over ssh. Root, Debian, some
# 20 minutes and 1 GB in runs/arm64; it needs no binfmt and no privilege. Keeps its result and writes docs/results.md again.
test-arm64: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.accuracy.arm64
	$(BIN)/python -m benchmarks.pages.results

# 25,000 damaged inputs for each reader of what devices print and of files that people pass on; make test gives some hundred.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python tests/devices/fuzz.py

# What CI holds the code to.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	MYPYPATH=.:tests:tests/devices $(BIN)/mypy --explicit-package-bases -p benchmarks
	$(BIN)/lint-imports

# Measures what docs/results.md and benchmarks/results.md show, keeps it in benchmarks/measured, and writes both pages again.
bench: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.speed.help_time
	$(BIN)/python -m benchmarks.accuracy.streets_floor
	$(BIN)/python -m benchmarks.accuracy.vendor_int8
	$(BIN)/python -m benchmarks.speed.paper_speed
	$(BIN)/python -m benchmarks.speed.vendor_speed
	$(BIN)/python -m benchmarks.speed.decoder
	$(BIN)/python -m benchmarks.speed.edges
	$(BIN)/python -m benchmarks.speed.harness
	$(BIN)/python -m benchmarks.speed.same_artifact
	$(BIN)/python -m benchmarks.speed.floor
	$(BIN)/python -m benchmarks.speed.time_to_artifact
	$(BIN)/python -m benchmarks.speed.calibration_memory
	$(BIN)/edgekit run
	$(BIN)/python -m benchmarks.pages.results runs/spssn-streets
	$(BIN)/python -m benchmarks.pages.speed_page

# Hours: what needs CamVid (CAMVID_ROOT) and trains. Goes on where it was stopped; `make bench` then shows it.
bench-training: $(VENV)/.installed-dev
	$(BIN)/python -m benchmarks.speed.evaluation_speed
	$(BIN)/python -m benchmarks.training.training_speed
	$(BIN)/python -m benchmarks.accuracy.int8_accuracy
	$(BIN)/python -m benchmarks.training.ablation

clean:
	rm -rf runs .pytest_cache .hypothesis .mypy_cache .ruff_cache build
