#!/usr/bin/env bash
# Create the virtual environment $VENV with fastcifar and its optional parts, by uv where it is installed, otherwise by pip.
# TORCH_INDEX=URL installs torch and torchvision from that package index. FFCV is compiled and needs system packages; where
# they cannot be installed, setup says so and continues without FFCV.
set -euo pipefail
. "$(dirname "$0")/apt.sh"
SECONDS=0
log=$(mktemp)
done=
trap 'rm -f "$log"; [ -n "$done" ] || echo "setup: not finished; run make setup again to continue" >&2' EXIT

have_ffcv_needs() { pkg-config --exists opencv4 libturbojpeg 2>/dev/null; }

quietly() { # show the output of a command only if it fails
    "$@" >"$log" 2>&1 || { tail -n 30 "$log" >&2; return 1; }
}

if command -v uv >/dev/null; then
    name=uv
    have_venv() { [ -x "$VENV/bin/python" ]; }
    make_venv() { uv venv --quiet --seed --python "$PYTHON" "$VENV"; }
    install() { quietly uv pip install --compile-bytecode --python "$VENV/bin/python" "$@"; }
else
    name=pip
    # without python3-venv, or interrupted, it has no pip
    have_venv() { "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }
    make_venv() { "$PYTHON" -m venv "$VENV"; }
    install() { quietly "$VENV/bin/python" -m pip install --disable-pip-version-check "$@"; }
fi

echo "setup: installing fastcifar and its packages into $VENV with $name"
have_venv || make_venv
if [ -n "${TORCH_INDEX:-}" ]; then
    echo "setup: torch and torchvision from $TORCH_INDEX"
    install --upgrade --index-url "$TORCH_INDEX" "$(grep -om1 'torch>=[0-9.]*' setup.cfg)" torchvision
else
    echo "setup: torch comes with its CUDA libraries, 5 GB on the disk; TORCH_INDEX=URL selects another build (docs/environments.md)"
fi
install --upgrade pip 'setuptools>=77' wheel
install --editable '.[dev]'

if have_ffcv_needs || apt_install $FFCV_NEEDS; then
    echo "setup: building FFCV"
    install --editable '.[ffcv]' || echo "setup: FFCV could not be built; all but JPEG betons works"
else
    echo "setup: FFCV is left out; for JPEG betons: apt-get install $FFCV_NEEDS && make -B setup"
fi
done=yes
echo "setup: done in $SECONDS s; the program is $VENV/bin/fastcifar"
echo "next: source $VENV/bin/activate"
