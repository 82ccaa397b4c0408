# Set-up, demo and tests on a bare Python >= 3.10: every target makes .venv by itself.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: setup demo weights test test-slow lint clean

setup: $(STAMP)

# torch first: left to another package it would be taken in its newest build, with gigabytes beside it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed; say make PYTHON=/path/to/python3")'
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python tools/fetch_detector.py
	@! command -v npm > /dev/null || $(BIN)/python tools/fetch_detector.py --heavy || \
		echo 'note: going on with the smaller network for the 2D joints; try again with tools/fetch_detector.py --heavy'
	touch $@

demo: setup
	$(BIN)/python tools/recover.py data/samples --out out/demo

# The recipe of the shipped weights on poses of your own, four trainings in turn; the same command again goes on.
#   make weights POSES=POSES.npz HELD_OUT=[5,13,94,135] SET="poses.max_level=2"
CONFIG ?= configs/default.yaml
HELD_OUT ?= []
RUNS ?= runs
TRAIN = $(BIN)/python tools/train_$(1).py --config $(CONFIG) --runs $(RUNS) --name recipe_$(1) \
	$$(test ! -d $(RUNS)/recipe_$(1) || echo --resume) --set "poses.file=$(POSES)" "poses.validation_subjects=$(HELD_OUT)" $(SET)

# Meshes and expected errors are learnt on poses that the lifter does not know by heart (docs/experiments.md).
UNFAMILIAR := {blend: 0.4, recombine: 0.8, recombine_part: 0.4, collars: 0.3, turn: 0.7, turn_sd_deg: 12}

weights: setup
	@test -f "$(POSES)" || { echo 'expected a pose file: make weights POSES=POSES.npz HELD_OUT=[1,2]'; exit 2; }
	$(call TRAIN,posenet)
	$(call TRAIN,meshnet) model.posenet_weights=$(RUNS)/recipe_posenet "poses.augmentation=$(UNFAMILIAR)"
	$(call TRAIN,labeling)
	$(call TRAIN,uncertainty) model.pose2mesh_weights=$(RUNS)/recipe_meshnet "poses.augmentation=$(UNFAMILIAR)"
	mkdir -p $(RUNS)/recipe
	cp $(RUNS)/recipe_meshnet/weights.safetensors $(RUNS)/recipe/pose2mesh.safetensors
	cp $(RUNS)/recipe_labeling/weights.safetensors $(RUNS)/recipe/labeling.safetensors
	cp $(RUNS)/recipe_uncertainty/weights.safetensors $(RUNS)/recipe/uncertainty.safetensors
	@echo '$(BIN)/python tools/recover.py PHOTO.jpg --out out --weights $(RUNS)/recipe/pose2mesh.safetensors'

test: setup
	$(BIN)/python -m pytest

test-slow: setup
	$(BIN)/python -m pytest -m "slow"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) out build .pytest_cache .mypy_cache .ruff_cache
