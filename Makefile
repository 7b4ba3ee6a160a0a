# make demo   install, run the whole flow on the default params.yaml, and print the leaderboard
# make test   install, then check style, types and structure, and run the tests
# make check  the same without the slow tests, for daily work
# make gpu    run the tests that need a CUDA device, and measure it, with the torch of PYTHON: bench/RESULTS-gpu.md
# make gpu-wheels   collect what that lacks on a CUDA machine without a network, for the Python GPU_VERSION
# make lowest run the tests with the lowest versions that pyproject.toml admits, in an environment of its own
# EXTRA=gpu   uses faiss-gpu instead of faiss-cpu; PYTHON=... names the Python: otherwise the newest of PYTHONS that runs

PYTHONS := 3.14 3.13 3.12 3.11
# A command is not enough: pyenv has one for each version, and those that are not selected fail; Debian's may lack venv.
NEWEST = $(shell for version in $(PYTHONS); do python$$version -c "import ensurepip" 2>/dev/null && echo python$$version && break; done)
# The GPU's tests take python3, because they use its torch.
PYTHON ?= $(if $(filter gpu%,$(MAKECMDGOALS)),python3,$(or $(NEWEST),python3))
EXTRA ?= cpu
OTHER := $(if $(filter gpu,$(EXTRA)),cpu,gpu)
VENV := .venv
BIN := $(VENV)/bin
COMMA := ,
INPUTS := pyproject.toml constraints.txt

# Else each of the many processes compiles anew what it imports.
unexport PYTHONDONTWRITEBYTECODE

GPU_VENV := .venv-gpu
GPU_VERSION ?= 3.12
WHEELS := wheels
# What code on a GPU needs beside torch, transformers and scikit-learn: all of pyproject.toml but DVC, and the tests'.
GPU_NEEDS := distributed faiss-cpu google-crc32c h5py hypothesis jinja2 matplotlib peft pydantic pytest pytest-timeout \
	"ruamel.yaml[oldlibyaml]" safetensors scikit-learn soundfile soxr tqdm transformers universal-pathlib zarr
# Of these, wheels that machines with torch have as a rule, or that are large: they are looked for there.
GPU_THERE := h5py hypothesis jinja2 matplotlib peft pytest pytest-timeout safetensors scikit-learn tqdm transformers
PLATFORMS := $(foreach tag,manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1,--platform $(tag)_x86_64)

.PHONY: check demo gpu gpu-wheels lint lowest quick test tests

demo: $(VENV)/installed-$(EXTRA)
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro
	@echo
	@cat data/report/leaderboard.txt
	@echo
	@echo "The report: data/report/index.html"

# Two processes with one thread each, because the tests compute little. Files go in the order of their names: sorted by
# their number of tests, the longest file would come last.
PYTEST := PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile \
	--no-loadscope-reorder

# These files start processes, train, or draw thousands of samples.
SLOW := audio_whole backend_precision browser cache calibrate centroids checkpoints cli_detect cli_embed cli_metrics cli_plot \
	cluster corpus_demo detect devices docs dvc encoder_kinds endings evaluate extract fairseq faults finetune fit \
	five_corpora flow fused fuzz gather gpu_encoder gpu_extraction gpu_training halving metric_binomial metric_bootstrap \
	metric_calibration metric_transfer needed package params plots pool prepare processes quality ranks rawboost regularization \
	remarks remote report spaces stage_analyse stage_embed stage_encoder stage_finetuned stage_layers stage_rescore \
	store sweep teach together xlsr

# Some tests wait, so style and types are checked beside them.
test: $(VENV)/installed-$(EXTRA)-test
	$(MAKE) --no-print-directory -j 2 lint tests

lint: $(VENV)/installed-$(EXTRA)-test
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

tests: $(VENV)/installed-$(EXTRA)-test
	$(PYTEST)

# On the oldest Python, in an environment of its own. Where torch has no build for the CPU there, it takes 6 GB.
LOWEST := .venv-lowest
lowest:
	python$(lastword $(PYTHONS)) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/python -m pip install -qq --constraint constraints.txt uv
	$(LOWEST)/bin/uv pip compile --quiet --resolution lowest-direct --extra cpu --extra test pyproject.toml \
		--python $(LOWEST)/bin/python --output-file $(LOWEST)/lowest.txt
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --requirement $(LOWEST)/lowest.txt --editable .
	@touch $(LOWEST)/installed-cpu $(LOWEST)/installed-cpu-test  # so that nothing is installed over it
	$(MAKE) --no-print-directory VENV=$(LOWEST) EXTRA=cpu tests

check: $(VENV)/installed-$(EXTRA)-test
	$(MAKE) --no-print-directory -j 2 lint quick

quick: $(VENV)/installed-$(EXTRA)-test
	$(PYTEST) $(filter-out $(SLOW:%=tests/test_%.py),$(wildcard tests/test_*.py))

# Says which Python it takes, or which it needs.
$(VENV)/bin/python:
	@version=$$($(PYTHON) -c "import sys; print('%d.%d' % sys.version_info[:2])"); \
	case " $(PYTHONS) " in \
		*" $$version "*) echo "Python $$version ($(PYTHON)) for $(VENV)" ;; \
		*) echo "expected Python $(lastword $(PYTHONS)) to $(firstword $(PYTHONS)), got $${version:-none} ($(PYTHON)):" \
			"install one of them with its module venv, or name it: make PYTHON=..." >&2; exit 1 ;; \
	esac
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --constraint constraints.txt --upgrade pip  # twice as fast as an old one

# Both FAISS packages own the module `faiss`, so the other one is removed first. Python compiles what it imports, once;
# pip would compile all that it installs, which takes a minute.
define install
	@rm -f $(VENV)/installed-*
	@if $(BIN)/python -m pip show --quiet faiss-$(OTHER) 2>/dev/null; then $(BIN)/python -m pip uninstall --yes faiss-$(OTHER); fi
	$(BIN)/python -m pip install -qq --no-compile --constraint constraints.txt --editable ".[$(1)]"
endef

$(VENV)/installed-$(EXTRA): $(VENV)/bin/python $(INPUTS)
	$(call install,$(EXTRA))
	@touch $@

$(VENV)/installed-$(EXTRA)-test: $(VENV)/bin/python $(INPUTS)
	$(call install,$(EXTRA)$(COMMA)test)
	@touch $(VENV)/installed-$(EXTRA) $@

# An environment on top of PYTHON's own packages, so that its torch is used and nothing of it is replaced.
$(GPU_VENV)/installed:
	$(PYTHON) -m venv --clear --without-pip $(GPU_VENV)
	$(PYTHON) -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
		> "$$($(GPU_VENV)/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/beside.pth"
	$(PYTHON) -m pip --python $(GPU_VENV)/bin/python install --quiet $(if $(wildcard $(WHEELS)),--no-index --find-links $(WHEELS)) $(GPU_NEEDS)
	@touch $@

gpu: $(GPU_VENV)/installed
	$(GPU_VENV)/bin/python -m pytest -m gpu tests/test_gpu_*.py
	PYTHONPATH=. $(GPU_VENV)/bin/python bench/gpu.py

gpu-wheels:
	$(PYTHON) -m pip download --quiet --constraint constraints.txt --dest $(WHEELS) --only-binary :all: --python-version $(GPU_VERSION) \
		--implementation cp $(PLATFORMS) $(filter-out $(GPU_THERE),$(GPU_NEEDS))
	@du -sh $(WHEELS)
