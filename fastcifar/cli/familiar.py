"""Names that users of timm, fastai, Ultralytics and torchvision type: what they mean here, as tables."""

from __future__ import annotations

from typing import NamedTuple


class Alias(NamedTuple):
    """Other names of one parameter, in some commands; in all that have it, if there are none."""

    parameter: str
    names: tuple[str, ...]
    commands: tuple[str, ...] = ()


class Answer(NamedTuple):
    """What a message says about names that no option has, in some commands; in all, if there are none.

    'key=' stands for a word `key=value` of Ultralytics, where that means something else than the option `--key`.
    """

    names: tuple[str, ...]
    text: str
    commands: tuple[str, ...] = ()


RUNS = ("train", "sweep")
"""Commands that train runs."""
TRAINING = (*RUNS, "lr-find")
RUN = ("eval", "explain", "report", "predict", "export")
IMAGES = (*TRAINING, "preview", "audit", "bench", *RUN)
"""Commands that read converted images."""
THREADS = (*TRAINING, "audit", "bench", "eval", "explain", "predict")
"""Commands that have --threads and --device."""

ALIASES = (
    Alias("recipe", ("-c", "--config")),
    Alias("model", ("-a", "--arch"), TRAINING),
    Alias("batch_size", ("-b", "--bs", "--batch")),
    Alias("epochs", ("--num-epochs", "--n-epoch")),
    Alias("lr", ("--learning-rate", "--lr0", "--lr-max")),
    Alias("optimizer", ("--opt",)),
    Alias("weight_decay", ("--wd",)),
    Alias("label_smoothing", ("--smoothing",)),
    Alias("dropout", ("--drop",)),
    Alias("clip_norm", ("--clip-grad", "--clip-grad-norm")),
    Alias("ema", ("--model-ema-decay",)),
    Alias("sched", ("--scheduler", "--lr-scheduler")),
    Alias("warmup_epochs", ("--lr-warmup-epochs",)),
    Alias("patience", ("--patience-epochs",)),
    Alias("factor", ("--decay-rate", "--lr-gamma")),
    Alias("step_size", ("--decay-epochs", "--lr-step-size")),
    Alias("milestones", ("--decay-milestones",)),
    Alias("log_every", ("--log-interval", "--print-freq")),
    Alias("name", ("--experiment",)),
    Alias("top", ("--topk", "--top-k", "-k")),
    Alias("methods", ("--method",)),
    Alias("layers", ("--layer",)),
    Alias("out", ("-o", "--output")),
    Alias("output", ("-o", "--out")),
    Alias("data_dir", ("-o", "--output", "--out"), ("convert",)),
)

VALUES = {
    "sched": {
        "cos": "cosine",
        "cosineannealinglr": "cosine",
        "one-cycle": "onecycle",
        "onecyclelr": "onecycle",
        "reducelronplateau": "plateau",
        "steplr": "step",
        "multisteplr": "multistep",
        "constant": "none",
    },
    "amp": {"bfloat16": "bf16", "float16": "fp16"},
    "split": {"valid": "val", "validation": "val"},
}
"""Other names of values, in lower case, by parameter."""

COMMANDS = {"val": ("eval", "--split", "val"), "test": ("eval", "--split", "test")}
"""Commands that are another one with an option."""

COMMAND_ANSWERS = (
    Answer(("fit", "fine-tune", "finetune", "learn", "run"), "write 'fastcifar train'"),
    Answer(("fit-one-cycle", "one-cycle"), "write 'fastcifar train --sched onecycle'"),
    Answer(("classify", "detect", "segment", "pose", "obb"), "leave it out, e.g. 'fastcifar train --epochs 50'"),
    Answer(("find-lr", "lrfind", "findlr", "lr-finder", "lr", "lr-range-test"), "write 'fastcifar lr-find'"),
    Answer(("tune", "grid", "grid-search", "search", "hpo"), "write 'fastcifar sweep'"),
    Answer(("list", "ls"), "write 'fastcifar runs'"),
    Answer(("compare", "diff"), "write 'fastcifar runs compare'"),
    Answer(("evaluate", "validate", "validation", "score"), "write 'fastcifar eval'"),
    Answer(("resume",), "write 'fastcifar train --resume RUN'"),
    Answer(("prepare", "download", "dataset", "data"), "write 'fastcifar convert'"),
    Answer(("show-batch", "augment"), "write 'fastcifar preview'"),
    Answer(("gradcam", "grad-cam", "cam", "heatmap", "interpret", "plot-top-losses"), "write 'fastcifar explain'"),
    Answer(("benchmark", "profile"), "write 'fastcifar bench'"),
    Answer(("checks", "info", "env"), "write 'fastcifar doctor'"),
    Answer(("plot", "results", "visualize"), "write 'fastcifar report'"),
    Answer(("models", "settings", "cfg", "copy-cfg"), "write 'fastcifar train --help-all'"),
    Answer(("help",), "write 'fastcifar --help', or --help after a command"),
    Answer(("version",), "write 'fastcifar --version'"),
)

ANSWERS = (
    # machine
    Answer(
        ("-j", "--workers", "--num-workers"),
        "not needed: the resident loader has no workers, the others start what they need; --threads sets the threads",
        THREADS,
    ),
    Answer(("-j", "--workers", "--num-workers"), "not needed: the number of threads follows the CPUs"),
    Answer(
        ("--gpus", "--gpu", "--gpu-ids", "--ngpu", "--nproc-per-node", "--world-size", "--local-rank", "--ddp"),
        "one GPU: --device cuda:0; several: torchrun --nproc-per-node 2 -m fastcifar train …",
        RUNS,
    ),
    Answer(("--gpus", "--gpu", "--gpu-ids", "--ngpu"), "write --device cuda:0", THREADS),
    Answer(("--cuda", "--cpu", "--no-cuda", "--mps"), "write --device cuda, --device cpu or --device mps", THREADS),
    Answer(
        ("--half", "--fp16", "--bf16", "--native-amp", "--amp-dtype", "--precision", "--mixed-precision", "amp="),
        "write --amp bf16 or --amp fp16; by default bf16 is used where the device is fast at it",
        TRAINING,
    ),
    Answer(
        ("--half", "--fp16", "--bf16", "--amp", "amp="), "not needed: the autocast is that of the training", ("eval",)
    ),
    Answer(("--torchcompile", "--torch-compile"), "write --compile", RUNS),
    Answer(("--channels-last",), "not needed: it is always on", (*TRAINING, "bench")),
    Answer(("--cache",), "not needed: the resident loader holds the images in memory", IMAGES),
    Answer(("-v",), "write -V for the version", ("fastcifar",)),
    Answer(
        ("-q", "--quiet", "--silent", "-v", "--verbose"),
        "not needed: results go to stdout, progress and log to stderr; 2>/dev/null hides those",
    ),
    # data
    Answer(("--imgsz", "--img-size", "--img", "--input-size", "--image-size"), "write --size", ("convert",)),
    Answer(
        ("--imgsz", "--img-size", "--img", "--input-size", "--image-size", "--size"),
        "not needed: images of any size are resized as those of the training data were",
        ("predict",),
    ),
    Answer(
        ("--imgsz", "--img-size", "--img", "--input-size", "--image-size", "--size"),
        "images keep the size that they were converted to: 'fastcifar convert --size 64'",
        IMAGES,
    ),
    Answer(("--num-classes", "--nc"), "not needed: the data has the classes"),
    Answer(("--mean", "--std"), "not needed: they are computed from the training images", IMAGES),
    Answer(("--data", "--data-path", "--root"), "write --source", ("convert",)),
    Answer(
        ("--data", "--dataset", "--data-path", "--root"),
        "write --data-dir FOLDER, which 'fastcifar convert' has written",
        (*TRAINING, "preview", "bench", "eval", "explain", "export"),
    ),
    Answer(
        ("--val-split", "--valid-pct", "--validation-split", "--val-ratio", "fraction="),
        "write --val-size with a number of images",
        TRAINING,
    ),
    Answer(("--force", "--overwrite"), "not needed: existing files are replaced", ("convert",)),
    # weights
    Answer(
        ("--pretrained", "--initial-checkpoint", "--weights", "--checkpoint", "--ckpt"),
        "weights are random at first; write --init FILE or --model timm:hf-hub:NAME for others",
        RUNS,
    ),
    Answer(("--run",), "write --resume RUN to continue a run, --name NAME for a new one", ("train",)),
    Answer(("--freeze", "--freeze-backbone", "--freeze-layers"), "write --freeze-until LAYER", RUNS),
    Answer(
        ("-m", "--weights", "--checkpoint", "--ckpt", "--model-path", "--run-dir", "model="),
        "write --run with the run, its name, folder or a file in it, e.g. runs/small",
        ("predict",),
    ),
    Answer(
        ("--weights", "--checkpoint", "--ckpt", "--model-path", "--run-dir", "model="),
        "write the run, its name, folder or a file in it, e.g. runs/small",
        tuple(command for command in RUN if command != "predict"),
    ),
    Answer(("model=",), "write --model resnet18, --model small or --model with a name of torchvision.models", TRAINING),
    # files
    Answer(
        ("-o", "--output", "--output-dir", "--out", "--project", "--save-dir", "--log-dir", "--logdir"),
        "write --runs-dir FOLDER for the folder of all runs, --name for the name of this one",
        RUNS,
    ),
    Answer(
        ("-o", "--output", "--output-dir", "--out", "--project", "--save-dir"), "write --runs-dir FOLDER", ("lr-find",)
    ),
    Answer(
        ("-o", "--output", "--output-dir", "--out", "--project", "--save-dir"),
        "the files go to the folder of the run",
        ("eval", "explain", "report"),
    ),
    Answer(
        ("--exist-ok", "--overwrite", "--force"),
        "not needed: no run replaces another; the next of the same name gets -2, -3, …",
        TRAINING,
    ),
    Answer(
        ("--save", "--plots", "--save-period", "--save-every", "--checkpoint-hist", "--val"),
        "not needed: last and best weights, curves and predictions are always saved",
        RUNS,
    ),
    Answer(("--wandb", "--log-wandb"), "write --log wandb", RUNS),
    Answer(("--tensorboard",), "write --log tensorboard", RUNS),
    # optimization
    Answer(
        ("patience=", "--early-stopping", "--early-stopping-patience"),
        "write --early-stop with a number of epochs; --patience is that of --sched plateau",
        RUNS,
    ),
    Answer(("--cos-lr",), "write --sched cosine", RUNS),
    Answer(("--lrf", "--final-lr"), "write --min-lr (plateau, cosine) or --final-div-factor (onecycle)", RUNS),
    Answer(("--warmup-lr", "--warmup-bias-lr"), "the warm-up starts at a hundredth of --lr", RUNS),
    Answer(("--warmup-steps", "--warmup-ratio"), "write --warmup-epochs, e.g. 0.5", RUNS),
    Answer(("--lr-find", "--find-lr", "--auto-lr"), "write --lr auto, or 'fastcifar lr-find'", RUNS),
    Answer(("--model-ema", "--use-ema"), "write --ema with the decay per step, e.g. 0.999", RUNS),
    Answer(
        ("--betas", "--opt-betas", "--beta1", "--beta2"),
        "--momentum is the first beta of adam and adamw; the second is 0.999",
        TRAINING,
    ),
    Answer(("--eps", "--opt-eps"), "not a setting: it is the default of torch", TRAINING),
    Answer(("--grad-accum-steps", "--accumulate", "--nbs"), "not built in: choose --batch-size and --lr", RUNS),
    Answer(("-e", "--evaluate", "--test-only", "--eval"), "write 'fastcifar eval RUN'", RUNS),
    Answer(("-b", "--bs", "--batch", "--batch-size"), "not needed: any batch gives the same scores", ("eval",)),
    # augmentation
    Answer(("--hflip", "--fliplr"), "half of the images are mirrored; --no-flip: none", (*TRAINING, "preview")),
    Answer(("--reprob", "--random-erase", "--erasing"), "write --cutout-size and --cutout-p", (*TRAINING, "preview")),
    Answer(
        ("--color-jitter",),
        "write --contrast with that number, --brightness in grey levels, e.g. 50, and --saturation-shift",
        (*TRAINING, "preview"),
    ),
    Answer(("--color-jitter-prob",), "write --colour-p", (*TRAINING, "preview")),
    Answer(
        ("--hsv-h", "--hsv-s", "--hsv-v"),
        "write --hue-shift, --saturation-shift and --value-shift",
        (*TRAINING, "preview"),
    ),
    Answer(("--degrees",), "write --rotate-degrees", (*TRAINING, "preview")),
    Answer(("--no-aug", "--no-augment"), "write --crop-padding 0 --no-flip --cutout-size 0", (*TRAINING, "preview")),
    Answer(("--mixup-alpha",), "write --mixup", (*TRAINING, "preview")),
    Answer(("--cutmix-alpha",), "write --cutmix", (*TRAINING, "preview")),
    Answer(
        (
            "--mosaic",
            "--close-mosaic",
            "--aa",
            "--auto-augment",
            "--randaugment",
            "--vflip",
            "--flipud",
            "--scale",
            "--ratio",
            "--translate",
        ),
        "not built in; --augment FILE runs a pipeline of Albumentations",
        (*TRAINING, "preview"),
    ),
    # images to look at
    Answer(
        ("source=", "--source", "--input", "--input-dir", "--path"),
        "write only the path, e.g. 'fastcifar predict cat.png'",
        ("explain", "predict"),
    ),
    Answer(("--image", "--images"), "write only the path, e.g. 'fastcifar predict cat.png'", ("predict",)),
    Answer(("--top-losses", "--max-images"), "write --n", ("explain",)),
    # modes of Ultralytics
    Answer(("mode=", "task="), "leave it out: the command says what is done"),
)
