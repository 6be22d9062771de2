#!/usr/bin/env bash
# Make the virtual environment $VENV with fastcifar and all its optional parts. FFCV is built from source and needs
# system packages; where they cannot be had, the set-up says so and goes on without it.
set -euo pipefail

have_ffcv_needs() { pkg-config --exists opencv4 libturbojpeg 2>/dev/null; }

install_ffcv_needs() {
    command -v apt-get >/dev/null || return 1
    local as_root=()
    if [ "$(id -u)" -ne 0 ]; then
        sudo -n true 2>/dev/null || return 1
        as_root=(sudo -n)
    fi
    echo "setup: installing $FFCV_NEEDS with apt-get"
    "${as_root[@]}" apt-get update -qq &&
        DEBIAN_FRONTEND=noninteractive "${as_root[@]}" apt-get install -y -qq --no-install-recommends $FFCV_NEEDS >/dev/null
}

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
"$VENV/bin/python" -m pip install --quiet --editable '.[albumentations,dev]'

if have_ffcv_needs || install_ffcv_needs; then
    "$VENV/bin/python" -m pip install --quiet --editable '.[ffcv]' ||
        echo "setup: FFCV could not be built; everything but the ffcv loader works"
else
    echo "setup: without FFCV; for the ffcv loader: apt-get install $FFCV_NEEDS && make -B setup"
fi
