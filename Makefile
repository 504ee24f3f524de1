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
	$(BIN)/python benchmarks/arm64.py
	$(BIN)/python benchmarks/results.py

# 25,000 damaged inputs for each reader of what devices print and of files that people pass on; make test gives some hundred.
fuzz: $(VENV)/.installed-dev
	$(BIN)/python tests/devices/fuzz.py

# What CI holds the code to.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd benchmarks && MYPYPATH=..:../tests:../tests/devices ../$(BIN)/mypy --config-file ../pyproject.toml *.py
	$(BIN)/lint-imports

# Measures what docs/results.md and benchmarks/results.md show, keeps it in benchmarks/measured, and writes both pages again.
bench: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/help_time.py
	$(BIN)/python benchmarks/streets_floor.py
	$(BIN)/python benchmarks/vendor_int8.py
	$(BIN)/python benchmarks/paper_speed.py
	$(BIN)/python benchmarks/vendor_speed.py
	$(BIN)/python benchmarks/decoder.py
	$(BIN)/python benchmarks/edges.py
	$(BIN)/python benchmarks/harness.py
	$(BIN)/python benchmarks/floor.py
	$(BIN)/python benchmarks/time_to_artifact.py
	$(BIN)/python benchmarks/calibration_memory.py
	$(BIN)/edgekit run
	$(BIN)/python benchmarks/results.py runs/spssn-streets
	$(BIN)/python benchmarks/speed_page.py

# Hours: what needs CamVid (CAMVID_ROOT) and trains. Goes on where it was stopped; `make bench` then shows it.
bench-training: $(VENV)/.installed-dev
	$(BIN)/python benchmarks/evaluation_speed.py
	$(BIN)/python benchmarks/training_speed.py
	$(BIN)/python benchmarks/int8_accuracy.py
	$(BIN)/python benchmarks/ablation.py

clean:
	rm -rf runs .pytest_cache .hypothesis .mypy_cache .ruff_cache build
