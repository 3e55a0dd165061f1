# make demo   makes the environment and segments a photograph with the model inside the package
# make test   makes the development environment and passes every test
# make check  formats, lints and type-checks
# make slow   the full-size proofs: vit_b against the reference, vit_t, vit_h past 2 GiB (about ten minutes)
# make bench  the numbers of docs/measurements.md, written to benchmarks/results
# make tiny   trains the model inside the package anew (about 75 minutes on two cores); recipes/tiny/README.md
PYTHON ?= python3.11
BIN := .venv/bin

.PHONY: demo test slow bench check format tiny clean

demo: .stamps/core
	$(BIN)/segship demo --out demo-output --overwrite

test: .stamps/dev
	$(BIN)/python -m pytest -q -m "not slow"

slow: .stamps/dev
	$(BIN)/python -m pytest -q -s -m slow

bench: .stamps/dev
	$(BIN)/python -m benchmarks.segment_cold
	$(BIN)/python -m benchmarks.stages

check: .stamps/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .stamps/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

POOL := recipes/tiny/runs/pool
tiny: .stamps/dev
	$(BIN)/python -m recipes.tiny.scenes --first 10000 --count 12000 --size 352 --out $(POOL)/train --processes 2
	$(BIN)/python -m recipes.tiny.scenes --first 1000 --count 500 --size 352 --out $(POOL)/validation --processes 2
	$(BIN)/python -m recipes.tiny.train --scenes $(POOL)/train --validation $(POOL)/validation --out recipes/tiny/runs/again --minutes 74
	$(BIN)/python -m recipes.tiny.halve recipes/tiny/runs/again/tiny.safetensors recipes/tiny/runs/again/tiny-half.safetensors
	$(BIN)/segship export recipes/tiny/runs/again/tiny-half.safetensors -o recipes/tiny/runs/again/bundle --licence Apache-2.0

.stamps/venv:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	@mkdir -p .stamps && touch $@

.stamps/core: .stamps/venv pyproject.toml
	$(BIN)/python -m pip install --quiet -e .
	@touch $@

.stamps/dev: .stamps/venv pyproject.toml
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	@touch .stamps/core $@

clean:
	rm -rf .venv .stamps build dist demo-output
