#!/usr/bin/env bash
# Convert, train, explain, in the folder demo/, with the time of each part. $BIN is the folder of the program.
set -euo pipefail
mkdir -p demo
cd demo
unset FASTCIFAR_DATA_DIR FASTCIFAR_RUNS_DIR
SECONDS=0
part() { echo "demo: $1 ($((SECONDS - began)) s)"; began=$SECONDS; }
began=0

if [ -n "${FASTCIFAR_SOURCE:-}" ]; then
    # a relative path is meant from where make was called
    [ ! -e "../$FASTCIFAR_SOURCE" ] || FASTCIFAR_SOURCE="../$FASTCIFAR_SOURCE"
    "$BIN/fastcifar" convert --source "$FASTCIFAR_SOURCE"
else
    code=0
    "$BIN/fastcifar" convert --source download || code=$?
    if [ "$code" -eq 4 ]; then
        echo "demo: CIFAR-10 cannot be had here, so the demo goes on with synthetic images"
        "$BIN/fastcifar" convert --source synthetic
    elif [ "$code" -ne 0 ]; then
        exit "$code"
    fi
fi
part "converted"

"$BIN/fastcifar" train --recipe fast --name demo
part "trained and tested"
"$BIN/fastcifar" explain --n 25 --methods hirescam,gradcam,gradcampp
part "explained"
run=$(ls -td runs/demo* | head -n 1)
echo "demo: $SECONDS s in all; open demo/$run/report.html and demo/$run/explain/grid.png; figures in demo/$run/metrics.json"
