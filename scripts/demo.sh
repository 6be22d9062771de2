#!/usr/bin/env bash
# Convert, train and explain, and time each step: demo.sh synthetic | cifar. $BIN is the folder of the program.
# synthetic needs no network connection; cifar uses the images at FASTCIFAR_SOURCE, or downloads CIFAR-10.
set -euo pipefail
case $1 in
synthetic) folder=demo source=synthetic recipe=shapes ;;
cifar)
    folder=demo-cifar source=${FASTCIFAR_SOURCE:-download} recipe=fast
    if [ "$source" = download ]; then
        echo "demo: downloading CIFAR-10; FASTCIFAR_SOURCE=PATH uses its archive, or a folder of images, instead"
    elif [[ $source != /* && -e $source ]]; then
        source=$PWD/$source # relative to where make was called
    fi
    ;;
*) echo "demo.sh: expected synthetic or cifar, not $1" >&2; exit 2 ;;
esac
unset FASTCIFAR_DATA_DIR FASTCIFAR_RUNS_DIR CDPATH
mkdir -p "$folder"
cd "$folder"
SECONDS=0 began=0 times=
program=$(printf '%q' "$BIN/fastcifar") # quoted for a shell
step() { # NAME COMMAND...
    local name=$1
    shift
    echo "demo: fastcifar $*"
    "$BIN/fastcifar" "$@" || {
        local code=$?
        echo "demo: $name failed with exit code $code; run the commands shown above in $folder/, as $program" >&2
        exit $code
    }
    times+=", $name $((SECONDS - began)) s"
    began=$SECONDS
}

step convert convert --source "$source"
step train train --recipe "$recipe" --name demo
run=$(ls -td runs/demo* | head -n 1)
step explain explain "$run" --n 25 --methods hirescam,gradcam,gradcampp

echo
echo "demo: $SECONDS s in total (${times#, }); open:"
for file in "$run"/{report.html,explain/grid.png,curves.png,metrics.json}; do
    [ ! -e "$file" ] || echo "    $folder/$file"
done
echo "demo: next, in $folder/:"
echo "    $program preview          # what augmentation does to the images"
echo "    $program eval $run  # accuracy per class, confusion matrix, calibration"
