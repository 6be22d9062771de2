#!/usr/bin/env bash
# Make the virtual environment $VENV with fastcifar and all its optional parts. FFCV is built from source and needs
# system packages; where they cannot be had, the set-up says so and goes on without it.
set -euo pipefail
. "$(dirname "$0")/apt.sh"

have_ffcv_needs() { pkg-config --exists opencv4 libturbojpeg 2>/dev/null; }

[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
"$VENV/bin/python" -m pip install --quiet --upgrade pip 'setuptools>=77' wheel
"$VENV/bin/python" -m pip install --quiet --editable '.[albumentations,dev]'

if have_ffcv_needs || apt_install $FFCV_NEEDS; then
    "$VENV/bin/python" -m pip install --quiet --editable '.[ffcv]' ||
        echo "setup: FFCV could not be built; everything but the ffcv loader works"
else
    echo "setup: without FFCV; for the ffcv loader: apt-get install $FFCV_NEEDS && make -B setup"
fi
