#!/usr/bin/env bash
# `make compose`: docker compose up with the exit code of the run; its lines as they come, the run folder last.
#
#   docker/up.sh [-f compose.yaml -f compose.insecure.yaml]
set -euo pipefail
cd "$(dirname "$0")/.."
source docker/base.sh
export LLM_QFL_RUNS=${LLM_QFL_RUNS:-$PWD/runs/compose} COMPOSE_ANSI=never
if [ "$(id -u)" != 0 ]; then # the run folders are whose the command is
    export LLM_QFL_UID=${LLM_QFL_UID:-$(id -u)} LLM_QFL_GID=${LLM_QFL_GID:-$(id -g)}
fi
mkdir -p "$LLM_QFL_RUNS"
plain() { sed -u -e 's/\x1b\[[0-9;]*[A-Za-z]//g' -e 's/^run-1 *| \{0,1\}//'; }
build=(--build)
if [ -n "${LLM_QFL_NO_BUILD:-}" ]; then build=(--no-build); fi
ended=$(mktemp)
trap 'rm -f "$ended"' EXIT
set +e
docker compose "$@" --progress quiet up --no-color "${build[@]}" --exit-code-from run 2>&1 | plain | tee "$ended"
code=${PIPESTATUS[0]}
set -e
docker compose "$@" --progress quiet stop --timeout 5
if [ "$code" = 0 ]; then grep -F "$LLM_QFL_RUNS/" "$ended" | tail -n 1; fi
exit "$code"
