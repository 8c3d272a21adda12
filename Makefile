# Needs Python 3.11 or newer, make and pip; everything else goes into .venv.
#
#   make run                                          four sites, a quantum network and a language model, a report
#   make run SITES=8 CONFIG='data.source="digits" server.rounds=10'
#   make test                                         lint, types, tests
#   make bench                                        speed beside other libraries
#   make bench-llm                                    a site's language round beside plain PEFT
#   make drills                                       nodes, servers, networks, disks, clocks disturbed at random moments
#   make compose                                      a federation in containers: TLS, known nodes, one run
#   make compose-check                                the same, checked; nothing is left behind
#   make policy MINUTES=30                            train the policy in simulated federations; continues
#   make priced                                       what a federation costs, by who decides; continues
#   make sbom / make audit                            what the images hold / what is known against it
#
PYTHON ?= python3
# PyTorch's default Linux build brings gigabytes of CUDA: the CPU build is taken from here, and the default build where
# this cannot be reached. TORCH_INDEX= (empty) asks for the default build.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
SITES ?= 4
CONFIG ?=

BIN := .venv/bin
INSTALL = @$(PYTHON) scripts/install.py
export TORCH_INDEX SITES CONFIG
# Compiled bytecode is kept: a Flower node starts a process for every message.
unexport PYTHONDONTWRITEBYTECODE
unexport PYTHONPATH

.DEFAULT_GOAL := help
.PHONY: help run test lint bench bench-llm drills deploy-check compose compose-check sbom audit policy priced clean

help:
	@sed -n 's/^#   //p' Makefile

run:
	$(INSTALL) server aer language privacy
	@$(BIN)/python -m llm_qfl.cli.launch --sites "$$SITES" --config "$$CONFIG"

lint:
	$(INSTALL) server dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy scripts

# A worker a processor, four at most: each may hold a language model.
PYTEST = $(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile
test: lint
	$(PYTEST)

bench:
	$(INSTALL) server bench aer
	@$(BIN)/python -m benchmarks.engine
	@$(BIN)/python -m benchmarks.devices
	@$(BIN)/python -m benchmarks.federations

bench-llm:
	$(INSTALL) server language
	@$(BIN)/python -m benchmarks.llm
	@$(BIN)/python -m benchmarks.decision

# A client of IBM Quantum killed at random moments over paid jobs, the service on loopback: 97 processes, then three
# ClientApps of real nodes, then a whole node.
KILLS ?= 97
REPEAT ?= 1
drills:
	$(INSTALL) server dev
	$(BIN)/python tests/drills/kill_ibm.py --kills $(KILLS)
	$(BIN)/python tests/drills/kill_flower.py
	$(BIN)/python tests/drills/kill_flower.py --node
	$(BIN)/python tests/drills/disturb.py --repeat $(REPEAT)

deploy-check:
	$(INSTALL) server language
	@$(BIN)/python -m llm_qfl.cli.deploy_check

compose:
	@LLM_QFL_CONFIG="$$CONFIG" docker/up.sh

compose-check:
	@docker/check.sh

# Lists of what the images hold, and of what is known against it; uv fetches the tools.
sbom:
	$(INSTALL) server
	@mkdir -p dist
	@cat docker/locks/executor.txt docker/locks/torch-cpu.txt docker/locks/model.txt > dist/packages.txt
	@$(BIN)/uvx -q --from cyclonedx-bom cyclonedx-py requirements dist/packages.txt --of JSON -o dist/sbom.json && echo dist/sbom.json

audit:
	$(INSTALL) server
	@$(BIN)/uvx -q pip-audit -r docker/locks/executor.txt --require-hashes --disable-pip

MINUTES ?= 1e9
POLICY ?= policy.json
policy: # as agent/policy.json was made
	$(INSTALL) server language
	@$(BIN)/llm-qfl policy train --folder policy-training --federations 110 --epochs 4 --minutes $(MINUTES) --output $(POLICY)
priced: # with the experience of `make policy` and the shipped policy
	$(INSTALL) server language
	@test -s policy-training/worlds.jsonl || { echo "make priced: no policy-training/worlds.jsonl; run make policy first" >&2; exit 2; }
	@$(BIN)/python -m experiments.priced_records --deals 2
	@$(BIN)/python -m experiments.priced --seeds 24

clean:
	rm -rf .flwr build dist .make .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf
