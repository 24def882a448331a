# make train   a policy from the sample data, in minutes, on whatever this machine has
#              METHOD=gc_bc_tiny or another small preset of configs/train_config.py, in place of ecot_tiny, which reasons
#              LEVEL=few or full: more to tell apart than one cube and one bowl
# make sample  the sample data alone, of a LEVEL
# make metaworld  demonstrations of ten tasks of Meta-World, a policy from them, and its evaluation
# make backbone  the small backbone that ships with the package, trained again from its seed (75 minutes on one core)
# make test    the checks of everything that one process does
# make processes  trainings of several processes against one, killed ones among them
# make serving-clients  the client for robots, and the unmodified ones of others, against the server, each in an
#              environment of its own
# make gpu-programs  what XLA makes of large policies for a GPU, which is not needed: it installs jax's plugin for CUDA
# make parity  comparisons with torch, transformers, timm, PEFT and tensorflow_datasets (installs CPU builds)
# make lint    ruff
# EXTRAS=cuda12 | cuda13 | tpu | wandb (comma-separated) adds what setup.py lists under that name

PYTHON ?= python3
EXTRAS ?=
METHOD ?= ecot_tiny
LEVEL ?= one
VENV := .venv
BIN := $(VENV)/bin
# XLA allocates the buffers of a program anew at each call on CPUs. On large pages the system clears fewer of them.
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1
# pip and uv name the folder of local wheels differently.
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)

comma := ,
empty :=
space := $(empty) $(empty)
extras_of = $(if $(strip $(1)),[$(subst $(space),$(comma),$(strip $(1)))])
# One mark per set of extras, so that a second call installs nothing.
mark_of = $(VENV)/.installed-$(subst $(space),-,$(strip $(subst $(comma),$(space),base $(1))))

TRAIN_MARK := $(call mark_of,$(EXTRAS))
TEST_MARK := $(call mark_of,dev $(EXTRAS))
PARITY_MARK := $(call mark_of,dev tf torch peft)

# Each level has its own folder and its own preset of configs/data_config.py.
SAMPLE := data/sample/$(LEVEL)
DATA := sample$(if $(filter-out one,$(LEVEL)),_$(LEVEL))
# Methods of LeRobot learn from a LeRobotDataset.
LEROBOT := $(SAMPLE)/lerobot
SET := $(if $(filter act_tiny smolvla_tiny,$(METHOD)),$(LEROBOT)/meta/info.json,$(SAMPLE)/tfrecord/.complete)
FROM := $(if $(filter $(LEROBOT)/%,$(SET)),sample_lerobot --config.data_path $(LEROBOT),$(DATA))
# The more there is to tell apart, the more scenes it takes.
SCENES_one := 1000
SCENES_few := 2500
SCENES_full := 8000
SCENES := $(or $(SCENES_$(LEVEL)),$(error LEVEL must be one, few or full, not $(LEVEL)))

# Scenes of all levels, which no policy of `make train` sees: the seed is another.
SEEN := data/backbone

# Demonstrations of Meta-World, and how many of each task.
MT10 := data/metaworld/mt10
DEMONSTRATIONS ?= 50
METAWORLD_MARK := $(call mark_of,metaworld $(EXTRAS))

.PHONY: train test processes parity serving-clients gpu-programs lint sample metaworld backbone clean

train: $(TRAIN_MARK) $(SET)
	$(BIN)/python experiments/train.py --config train_config.py:$(METHOD) --bridgedata_config data_config.py:$(FROM) \
		--config.rollout.world tabletop --config.rollout.level $(LEVEL)

sample: $(SAMPLE)/tfrecord/.complete

$(SAMPLE)/tfrecord/.complete: | $(TRAIN_MARK)
	$(call render,$(SAMPLE),--level $(LEVEL) --num_trajectories $(SCENES))
	touch $@

$(LEROBOT)/meta/info.json: | $(SAMPLE)/tfrecord/.complete
	$(BIN)/python data_processing/convert_dataset.py --from tfrecord:$(SAMPLE)/tfrecord --to lerobot21 \
		--bridgedata_config configs/data_config.py:$(DATA) --output_path $(LEROBOT)

metaworld: METHOD = metaworld_lc_bc
metaworld: $(METAWORLD_MARK) $(MT10)/reasoning.sqlite
	$(BIN)/python experiments/train.py --config train_config.py:$(METHOD) --bridgedata_config data_config.py:metaworld_mt10 \
		--config.data_path $(MT10) --name $(METHOD)
	$(BIN)/python experiments/eval.py --checkpoint $$(ls -td runs/$(METHOD)_* | head -1) --env metaworld --suite mt10 --level starvla \
		--episodes 200 --output_path runs/$(METHOD)_mt10.json --videos 10

$(MT10)/reasoning.sqlite: | $(METAWORLD_MARK)
	$(BIN)/python data_processing/make_metaworld_demos.py --output_path $(MT10) --tasks mt10 --image_size 64 \
		--num_trajectories $(DEMONSTRATIONS)

backbone: $(SEEN)/tfrecord/.complete
	$(BIN)/python experiments/train.py --config train_config.py:backbone_tiny --bridgedata_config data_config.py:sample \
		--config.data_path $(SEEN)/tfrecord --config.save_dir $(SEEN)/runs --name backbone
	$(BIN)/python experiments/check_words.py --checkpoint $$(ls -td $(SEEN)/runs/* | head -1)
	rm -rf $(SEEN)/tiny
	$(BIN)/python experiments/export.py --checkpoint $$(ls -td $(SEEN)/runs/* | head -1) --output_path $(SEEN)/tiny --dtype bfloat16

$(SEEN)/tfrecord/.complete: | $(TRAIN_MARK)
	$(call render,$(SEEN),--level one --level few --level full --seed 1 --num_trajectories 3000)
	touch $@

# Demonstrations with these flags, from raw folders to TFRecords in a folder, and what is thought at each step.
define render
	$(BIN)/python data_processing/make_sample_bridgedata.py --output_path $(1)/raw $(2) --image_size 64 \
		--annotations_path $(1)/annotations.json --overwrite
	$(BIN)/python data_processing/bridgedata_raw_to_numpy.py --depth 2 --input_path $(1)/raw \
		--output_path $(1)/numpy --im_size 64 --overwrite
	$(BIN)/python data_processing/bridgedata_numpy_to_tfrecord.py --depth 2 --input_path $(1)/numpy \
		--output_path $(1)/tfrecord --overwrite
	rm -r $(1)/numpy
	$(BIN)/python data_processing/reasoning_to_store.py --input_path $(1)/annotations.json \
		--output_path $(1)/tfrecord/reasoning.sqlite --overwrite
endef

test: $(TEST_MARK)
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m ruff check .
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder \
		-m "not parity and not clients and not multiprocess and not gpu_programs"

processes: $(TEST_MARK)
	$(BIN)/python -m pytest -m multiprocess

parity: $(PARITY_MARK)
	$(BIN)/python -m pytest -m parity

# openpi-client wants numpy 1, of which Python 3.13 has no wheels, and imports typing_extensions without saying so.
CLIENTS := $(VENV)/clients
CLIENT_openpi := 'openpi-client==0.1.2' typing_extensions
CLIENT_vla-eval := 'vla-eval==0.8.0'
CLIENT_jaxvla := ./jaxvla_client 'numpy<2'

serving-clients: $(TEST_MARK) $(patsubst %,$(CLIENTS)/%/.installed,openpi vla-eval jaxvla)
	$(BIN)/python -m pytest -m clients

$(CLIENTS)/jaxvla/.installed: $(wildcard jaxvla_client/*.py) jaxvla_client/pyproject.toml
$(CLIENTS)/%/.installed: Makefile | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python '>=3.10,<3.13' $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python $(CLIENT_$*)
	touch $@

# The plugin without NVIDIA's libraries, gigabytes that compiling does not take. Beside everything else, it would have
# jax look for a GPU.
COMPILER := $(VENV)/gpu-programs

gpu-programs: $(COMPILER)/.installed
	$(COMPILER)/bin/python -m pytest -m gpu_programs

$(COMPILER)/.installed: setup.py | $(BIN)/uv
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python $(@D)
	$(BIN)/uv pip install --quiet --python $(@D)/bin/python -e '.[dev]' 'jax[cuda12-local]'
	touch $@

lint: $(TEST_MARK)
	$(BIN)/python -m ruff format .
	$(BIN)/python -m ruff check --fix .

clean:
	rm -rf $(VENV) .cache data runs *.egg-info

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: jaxvla needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(TRAIN_MARK): setup.py | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.$(call extras_of,$(subst $(comma),$(space),$(EXTRAS)))'
	touch $@

$(TEST_MARK): setup.py | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.$(call extras_of,dev $(subst $(comma),$(space),$(EXTRAS)))'
	touch $@

$(METAWORLD_MARK): setup.py | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.$(call extras_of,metaworld $(subst $(comma),$(space),$(EXTRAS)))'
	touch $@

# The plain index serves torch for CUDA, gigabytes of it. A local CPU wheel is taken where there is one.
$(PARITY_MARK): setup.py | $(BIN)/uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -e '.[dev,tf]' 'transformers>=5.23,<5.24' 'peft>=0.21,<0.22' \
		'timm>=1.0.15,<1.1' torchvision \
		$(if $(wildcard $(UV_FIND_LINKS)/torch-*+cpu*.whl),'torch==2.13.0+cpu',--torch-backend=cpu torch)
	touch $@
