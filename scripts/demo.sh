#!/usr/bin/env bash
# Convert, train, explain, with the time of each part: demo.sh synthetic | cifar. $BIN is the folder of the program.
# synthetic needs no network connection; cifar takes the images that FASTCIFAR_SOURCE names, or downloads CIFAR-10.
set -euo pipefail
case $1 in
synthetic) folder=demo source=synthetic recipe=shapes ;;
cifar)
    folder=demo-cifar source=${FASTCIFAR_SOURCE:-download} recipe=fast
    if [ "$source" = download ]; then
        echo "demo: CIFAR-10 is downloaded; FASTCIFAR_SOURCE=PATH takes its archive, or a folder of images, instead"
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
program=$(printf '%q' "$BIN/fastcifar") # to be pasted, whatever the folder is called
part() { # NAME COMMAND...
    local name=$1
    shift
    echo "demo: fastcifar $*"
    "$BIN/fastcifar" "$@" || {
        local code=$?
        echo "demo: $name ended with exit code $code; commands that it shows are for $folder/, with $program" >&2
        exit $code
    }
    times+=", $name $((SECONDS - began)) s"
    began=$SECONDS
}

part convert convert --source "$source"
part train train --recipe "$recipe" --name demo
run=$(ls -td runs/demo* | head -n 1)
part explain explain "$run" --n 25 --methods hirescam,gradcam,gradcampp

echo
echo "demo: $SECONDS s in all (${times#, }); open:"
for file in "$run"/{report.html,explain/grid.png,curves.png,metrics.json}; do
    [ ! -e "$file" ] || echo "    $folder/$file"
done
echo "demo: next, in $folder/:"
echo "    $program preview          # what augmentation does to the images"
echo "    $program eval $run  # accuracy of each class, confusion, calibration"
