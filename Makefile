# Every command a person types. `make` alone lists them.
# For GNU Make 3.81, the one that macOS ships: no .ONESHELL, no !=, no $(file …).

SHELL := /bin/sh
.DEFAULT_GOAL := help
.SUFFIXES:
# `make -j clean setup` means one after the other.
.NOTPARALLEL:

python := .venv/bin/python

# What a person may set: `settings`, on the command line or in the environment, and `typed`, on the command line alone, so
# that nothing set long ago overwrites, deletes, opens a port, or names something.
table := env/variables.txt
rows = $(shell awk -F ' *[|] *' '/^[A-Z]/ && $$4 !~ /^-/ && $$5 $(1) /typed/ { print $$1 }' $(table))
settings := $(call rows,!~)
typed := $(call rows,~)

# The scripts are told which ones were typed.
override KIT_TYPED := $(strip $(foreach name,$(settings) $(typed),$(if $(findstring command,$(origin $(name))),$(name))))
# They reach the scripts through the environment, letter for letter. A plain `export` would mangle `$` and run a
# $(shell …) in a value.
define take
override $(1) := $$(value $(1))
export $(1)
endef
given = $(foreach name,$(settings),$(if $(filter-out undefined,$(origin $(name))),$(name)))
$(foreach name,$(sort $(given) $(KIT_TYPED)),$(eval $(call take,$(name))))
export KIT_TYPED

# The environment is what the lock says, under every locale and whatever else is active.
export PYTHONUTF8 := 1
# What other programs export and what would decide about the kit; `!` marks what may stay.
foreign := $(shell awk -F '[|]' '/^[A-Z]/ { gsub(/[*]/, "%"); print $$1; n = split($$2, kept, " "); \
  for (i = 1; i <= n; i++) print "!" kept[i] }' env/foreign.txt)
cleared := $(filter-out $(patsubst !%,%,$(filter !%,$(foreign))),$(filter $(filter-out !%,$(foreign)),$(.VARIABLES)))
$(foreach name,$(cleared),$(eval unexport $(name)))

# What is typed and no verb knows: it would be taken no notice of.
known := $(shell awk -F ' *[|]' '/^[A-Z]/ { print $$1 }' $(table)) KIT_% HF_% PIP_% UV_% OMP_% GOMP_% KMP_% MKL_% ATEN_% PYTHON% \
  SSL_% HTTP_% HTTPS_% NO_% http_% https_% no_% XDG_% DOCKER_% TMPDIR HOME PATH LANG LC_% SHELL MAKE% REQUIRE_DOCKER
typed-names := $(foreach name,$(.VARIABLES),$(if $(findstring command,$(origin $(name))),$(name)))
unknown := $(filter-out $(known) -%,$(typed-names))
ifneq ($(unknown),)
nearest := $(filter $(known),$(shell echo $(unknown) | tr 'a-z-' 'A-Z_'))
$(error no verb has a variable $(unknown)$(if $(nearest), (it is $(nearest))): docs/verbs.md lists them)
endif

starter := models/starter/.verified.json

##@ The two commands

.PHONY: run
run: $(starter) ## One completion, streamed
	@$(python) -m scripts.run

.PHONY: test
test: development $(starter) ## The tests (a few minutes, no internet)
	@$(python) -m pytest -q -n $$(($$(getconf _NPROCESSORS_ONLN) + 1)) --dist worksteal -m "not slow" tests

##@ Set up

.PHONY: setup
setup: ## .venv from the lock of this platform, and the starter model; BUNDLE needs no network
	@sh env/unbundle.sh
	@sh env/bootstrap.sh
	@$(python) -m scripts.setup && { [ ! -w $(starter) ] || touch $(starter); } && echo 'ready: make run' >&2

.PHONY: login
login: environment ## Signs in with HF_TOKEN from .env, and says whether it can read MODEL
	@$(python) -m scripts.login

.PHONY: logout
logout: environment ## Forgets the token that login stored
	@$(python) -m scripts.logout

.PHONY: download
download: environment ## MODEL at its pinned commit, every byte verified; goes on where it stopped
	@$(python) -m scripts.download

.PHONY: add-model
add-model: environment ## A new section of env/models.toml from the Hub
	@$(python) -m scripts.add_model

.PHONY: gguf
gguf: $(starter) ## MODEL's weights for METHOD=llamacpp, which also writes them where they are missing
	@$(python) -m scripts.gguf

.PHONY: doctor
doctor: ## Checks machine, environment, token and model, and says what to do
	@sh env/doctor.sh

##@ Make it one's own

.PHONY: tune
tune: $(starter) ## Fine-tunes MODEL on your text; the result is a model under NAME for every verb
	@$(python) -m scripts.tune

.PHONY: export
export: $(starter) ## A tuned MODEL as one merged plain folder and GGUF, in dist/, under NAME
	@$(python) -m scripts.export

.PHONY: models
models: environment ## What is here and known
	@$(python) -m scripts.models

.PHONY: remove
remove: environment ## Removes the tuned model NAME, after asking (FORCE=1: without)
	@$(python) -m scripts.remove

##@ Play with it

.PHONY: serve
serve: $(starter) ## MODEL in the browser, and for OpenAI's clients; LISTEN=0.0.0.0: for a room
	@$(python) -m scripts.serve

.PHONY: chat
chat: $(starter) ## MODEL in the terminal, loaded once; or a turn for each line of a pipe
	@$(python) -m scripts.chat

.PHONY: story
story: environment ## docs/story.ipynb, out of docs/story.py where it is not there
	@$(python) -m scripts.notebook --prepare

.PHONY: notebook
notebook: $(starter) ## The story of a language model, in JupyterLab; needs EXTRA=notebook
	@$(python) -m scripts.notebook

.PHONY: batch
batch: $(starter) ## Every prompt of a file, with MODEL loaded once; goes on where it stopped
	@$(python) -m scripts.batch

.PHONY: node
node: $(starter) ## This machine as a node of a Ray cluster, for RAY=; needs EXTRA=ray
	@$(python) -m scripts.node

##@ Prove and measure

.PHONY: verify
verify: $(starter) ## Proves that this machine reproduces the reference
	@$(python) -m scripts.verify

.PHONY: compare
compare: environment ## What differs between two reports
	@$(python) -m scripts.compare

.PHONY: readiness
readiness: environment ## A room at a glance, from attendees' codes
	@$(python) -m scripts.readiness

.PHONY: bench
bench: $(starter) ## Times every method on every device: table, picture, JSON
	@$(python) -m scripts.bench

##@ In a room without internet

.PHONY: bundle
bundle: $(starter) ## All that a machine without a network needs, in dist/, and its digest
	@$(python) -m scripts.bundle

.PHONY: mirror
mirror: environment ## Serves a bundle: to this machine, or with LISTEN=0.0.0.0 to its network
	@$(python) -m scripts.mirror

##@ In a CPU-only Linux container (any machine with Docker)

.PHONY: docker-run
docker-run: ## The same as run
	@sh env/docker.sh run

.PHONY: docker-batch
docker-batch: ## The same as batch
	@sh env/docker.sh batch

.PHONY: docker-serve
docker-serve: ## The same as serve
	@sh env/docker.sh serve

.PHONY: docker-tune
docker-tune: ## The same as tune
	@sh env/docker.sh tune

.PHONY: docker-verify
docker-verify: ## The same as verify
	@sh env/docker.sh verify

.PHONY: docker-bench
docker-bench: ## The same as bench
	@sh env/docker.sh bench

.PHONY: docker-download
docker-download: ## The same as download
	@sh env/docker.sh download

.PHONY: docker-test
docker-test: ## The tests of what the container has its own of, in it
	@sh env/docker.sh test

##@ Maintain

.PHONY: lock
lock: environment ## The locks, resolved anew from env/requirements*.in
	@$(python) -m scripts.lock

.PHONY: outdated
outdated: environment ## What the locks could move to
	@sh env/outdated.sh

.PHONY: audit
audit: development ## What is known against the packages, by a public service of advisories
	@sh env/audit.sh

.PHONY: sbom
sbom: environment ## What is inside: every package, its hashes and licence, as CycloneDX
	@$(python) -m scripts.sbom

.PHONY: variables
variables: environment ## What is written from the table of variables in env/variables.txt
	@$(python) -m scripts.variables

.PHONY: pictures
pictures: development $(starter) ## The pictures in docs/, from real runs; needs chromium
	@$(python) -m tests.pictures

.PHONY: lint
lint: development ## ruff, mypy, sh -n, the table of variables, and no token in any file
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .
	@.venv/bin/mypy
	@for file in env/*.sh .ci/*; do sh -n $$file || exit 1; done
	@$(python) -m scripts.variables --check
	@sh env/no-token.sh

.PHONY: test-slow
test-slow: development $(starter) ## What takes minutes: set-up from nothing, and what can go wrong in it
	@$(python) -m pytest -q -n auto --maxprocesses 3 --dist loadgroup --no-loadscope-reorder -m slow tests

.PHONY: test-as-mac
test-as-mac: development $(starter) ## The tests as on a Mac, imitated on Linux
	@sh tests/elsewhere/run.sh mac

.PHONY: test-as-arm
test-as-arm: development $(starter) ## The tests as on Linux on aarch64, imitated
	@sh tests/elsewhere/run.sh aarch64

.PHONY: clean
clean: ## Removes .venv and caches
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache
	@find kit scripts tests -name __pycache__ -type d -exec rm -rf {} +

.PHONY: purge
purge: ## Also removes models/ (not what was tuned) reports/ dist/, after asking (FORCE=1: without). Never .env
	@sh env/purge.sh $(if $(and $(filter FORCE,$(KIT_TYPED)),$(filter-out 0,$(FORCE))),--force)
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
	@$(python) -m scripts.setup && { [ ! -w $@ ] || touch $@; } # what cannot be written is whole all the same

.PHONY: help
help: ## This list
	@awk 'FILENAME ~ /variables/ { \
	    if ($$0 !~ /^[A-Z]/) next; \
	    split($$0, cell, / *[|] */); count = split(cell[4], verbs, " "); \
	    for (number = 1; number <= count; number++) takes[verbs[number]] = takes[verbs[number]] " " cell[1]; \
	    next } \
	  /^##@/ { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { \
	    split($$0, part, /:.*## /); about = substr($$0, index($$0, "## ") + 3); names = takes[part[1]]; \
	    if (part[1] ~ /^docker-/) names = takes[substr(part[1], 8)] takes["docker"]; \
	    printf "  make %-16s %s%s\n", part[1], about, names == "" ? "" : " (" substr(names, 2) ")" }' \
	  $(table) $(firstword $(MAKEFILE_LIST))
