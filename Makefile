# Every command a person types. `make` alone lists them.
# For GNU Make 3.81, the one that macOS ships: no .ONESHELL, no !=, no $(file …).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:

python := .venv/bin/python

# What a person may set on the command line or in the environment reaches the scripts through the environment, letter for
# letter. A plain `export` would mangle `$` and run a $(shell …) in a value.
settings := REPO REVISION NAME MODEL DEVICE METHOD PROMPT PROMPT_FILE MAX_NEW_TOKENS DTYPE QUANT SEED TEMPERATURE JSON FROM PYTHON BUNDLE SHA256
define take
ifneq ($$(origin $(1)),undefined)
override $(1) := $$(value $(1))
export $(1)
endif
endef
$(foreach name,$(settings),$(eval $(call take,$(name))))

# These count from the command line only, so that nothing set long ago overwrites or deletes.
flag = $(if $(findstring command,$(origin $(1))),$(if $(filter-out 0,$(value $(1))),$(2)))
force := $(call flag,FORCE,--force)
record := $(call flag,RECORD,--record)
unexport FORCE RECORD

# The environment is what the lock says, under every locale and whatever else is active.
export PYTHONUTF8 := 1
unexport PYTHONPATH PYTHONHOME
# Some machines set it; then every run compiles torch and transformers anew (7 s).
unexport PYTHONDONTWRITEBYTECODE

starter := models/starter/.verified.json

##@ The two commands

.PHONY: run
run: $(starter) ## One completion, streamed (MODEL DEVICE METHOD PROMPT PROMPT_FILE MAX_NEW_TOKENS DTYPE SEED TEMPERATURE JSON)
	@$(python) -m scripts.run $(record)

.PHONY: test
test: development $(starter) ## The tests (a few minutes, no internet)
	@$(python) -m pytest -q -n auto --dist loadfile -m "not slow" tests

##@ Set up

.PHONY: setup
setup: environment ## .venv from the lock of this platform, and the starter model (PYTHON)
	@$(python) -m scripts.setup && touch $(starter) && echo 'ready: make run' >&2

.PHONY: login
login: environment ## Signs in with HF_TOKEN from .env, and says whether it can read MODEL (MODEL)
	@$(python) -m scripts.login

.PHONY: logout
logout: environment ## Forgets the token that login stored
	@$(python) -m scripts.logout

.PHONY: download
download: environment ## MODEL at its pinned commit, every byte verified; goes on where it stopped (MODEL)
	@$(python) -m scripts.download

.PHONY: add-model
add-model: environment ## A new section of env/models.toml from the Hub (REPO REVISION NAME)
	@$(python) -m scripts.add_model

.PHONY: doctor
doctor: ## Checks machine, environment, token and model, and says what to do (MODEL JSON)
	@sh env/doctor.sh

##@ Maintain

.PHONY: lock
lock: environment ## The locks, resolved anew from env/requirements*.in
	@$(python) -m scripts.lock

.PHONY: lint
lint: development ## ruff, mypy, sh -n, and no token in any file
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@for file in env/*.sh .ci/run; do sh -n $$file || exit 1; done
	@sh env/no-token.sh

.PHONY: test-slow
test-slow: development $(starter) ## What takes minutes: set-up from nothing, and what can go wrong in it
	@$(python) -m pytest -q -m slow tests

.PHONY: clean
clean: ## Removes .venv and caches
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	@find kit scripts tests -name __pycache__ -type d -exec rm -rf {} +

.PHONY: purge
purge: ## Also removes models/ reports/ dist/, after asking (FORCE=1: without). Never .env
	@sh env/purge.sh $(force)
	@$(MAKE) -s clean

# --- What the verbs need ------------------------------------------------------------------------------------------------

.PHONY: environment
environment:
	@sh env/bootstrap.sh

.PHONY: development
development:
	@sh env/bootstrap.sh dev

# Made once; `run` itself notices a file that is missing or altered.
$(starter): env/models.toml | environment
	@$(python) -m scripts.setup && touch $@

.PHONY: help
help: ## This list
	@awk 'BEGIN { FS = ":.*## " } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
