# shellcheck shell=bash
# Sourced: the base image and what the host's pip is set to, where the defaults of compose.yaml cannot be had.
pinned=$(sed -n 's/^ARG BASE=//p' docker/Dockerfile)
if [ -z "${LLM_QFL_BASE:-}" ] && ! docker image inspect "$pinned" >/dev/null 2>&1 && ! timeout 120 docker pull -q "$pinned" >/dev/null 2>&1; then
    docker image inspect "${pinned%@*}" >/dev/null 2>&1 || { echo "cannot pull $pinned, and there is no local ${pinned%@*}" >&2; exit 1; }
    export LLM_QFL_BASE=${pinned%@*}
    echo "== the pinned base cannot be pulled: the local $LLM_QFL_BASE is taken instead" >&2
fi
if [ -z "${LLM_QFL_WHEELS:-}" ]; then # wheels that the host's pip would find
    for place in ${PIP_FIND_LINKS:-$(python3 -m pip config get global.find-links 2>/dev/null || true)}; do
        if [ -d "$place" ]; then export LLM_QFL_WHEELS=$place; break; fi
    done
fi
