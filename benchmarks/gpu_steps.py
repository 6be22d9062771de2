"""The steps of `benchmarks.gpu`: which command each runs, what it needs, and how its rows are read."""

from __future__ import annotations

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from benchmarks import lines_of
from fastcifar import recipes

GPU_LOADERS = ("resident", "limit-copy-cast", "airbench", "dali", "kornia")
"""Those whose batches are on the GPU."""
GPU_TESTS = ("test_gpu", "test_triton_kernel", "test_mixing", "test_torch_kernel", "test_loaders")
METRICS = ("epochs", "train_seconds", "test_accuracy", "tta_accuracy", "test_loss")
TINY = """title: "tiny, to test benchmarks.gpu"
settings: {model: small, epochs: 1, max_steps: 2, batch_size: 64, lr: 0.01, val_size: 0, tta: flip}
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What to measure on, and with what."""

    out: Path
    device: str
    data_dir: str
    source: str | None
    """Converted into `data_dir` first, if given."""
    airbench: Path | None
    quick: bool


@dataclass(frozen=True, kw_only=True)
class Step:
    """One process."""

    part: str
    name: str
    command: list[str]
    reads: str
    """What it prints: `rows` (a list), `metrics` (an object), `tests` (nothing; it writes `file`), `nothing`."""
    file: Path | None = None
    """The file that it writes: a report of tests, or trainings, each when it ends."""
    missing: str = ""
    """Why it cannot run, if it cannot."""

    @property
    def file_name(self) -> str:
        """For its logs."""
        return self.name.replace("/", "-")


def plan_steps(plan: Plan) -> list[Step]:
    """All steps, the most valuable first."""
    steps = []
    if plan.source is not None:
        convert = ["fastcifar", "convert", "--source", plan.source, "--data-dir", plan.data_dir]
        steps.append(_step("data", "data", "nothing", *convert))
    for part in (_tests, _kernels, _loaders, _accuracy, _step_rate, _epochs, _airbench):
        steps += part(plan)
    return steps


def _step(
    part: str, name: str, reads: str, module: str, *arguments: object, missing: str = "", file: Path | None = None
) -> Step:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    return Step(part=part, name=name, command=command, reads=reads, missing=missing, file=file)


def _benchmark(plan: Plan, part: str, name: str, module: str, *arguments: object, file: Path | None = None) -> Step:
    common = ("--data-dir", plan.data_dir, "--device", plan.device, "--json", "--no-save")
    return _step(part, name, "rows", f"benchmarks.{module}", *common, *arguments, file=file)


def _not_installed(package: str) -> str:
    return "" if importlib.util.find_spec(package) else f"{package} is not installed"


def _tests(plan: Plan) -> list[Step]:
    files = [f"tests/{name}.py" for name in (GPU_TESTS[:1] if plan.quick else GPU_TESTS)]
    report = plan.out / "logs" / "tests.xml"
    arguments = ["-m", "gpu", "-p", "no:cacheprovider", "-p", "no:benchmark", "-rs", f"--junitxml={report}", *files]
    if not plan.quick and not _not_installed("xdist"):
        arguments += ["-n", "8", "--dist", "worksteal"]
    return [_step("tests", "tests", "tests", "pytest", *arguments, missing=_not_installed("pytest"), file=report)]


def _kernels(plan: Plan) -> list[Step]:
    steps = []
    for batch_size in (50,) if plan.quick else (25_000, 512):
        arguments: list[object] = ["--batch-size", batch_size]
        arguments += ["--dtype", "float32", "--limit-s", 0.05] if plan.quick else []
        steps.append(_benchmark(plan, "kernels", f"kernels/batch {batch_size}", "kernels", *arguments))
    return steps


def _loaders(plan: Plan) -> list[Step]:
    names = GPU_LOADERS[:2] if plan.quick else GPU_LOADERS
    only = [word for name in names for word in ("--only", name)]
    if plan.quick:
        return [_benchmark(plan, "loaders", "loaders", "loaders", *only, "--batch-size", 50, "--limit-s", 0.05)]
    return [
        _benchmark(plan, "loaders", f"loaders/{dtype}", "loaders", *only, "--threads", 8, "--dtype", dtype)
        for dtype in ("float32", "bfloat16")
    ]


def _accuracy(plan: Plan) -> list[Step]:
    flags = ["--recipe", _tiny_recipe(plan)] if plan.quick else ["--seeds", 5]
    file = plan.out / "trainings.jsonl"
    return [_benchmark(plan, "accuracy", "accuracy", "fast", *flags, "--trainings", file, file=file)]


def _airbench(plan: Plan) -> list[Step]:
    """Last, because its network is compiled for each training, for minutes."""
    missing = ""
    if plan.airbench is None:
        missing = "no checkout of cifar10-airbench: set FASTCIFAR_AIRBENCH=DIR"
    elif not (plan.airbench / "airbench94_muon.py").is_file():
        missing = f"{plan.airbench}: has no airbench94_muon.py"
    elif plan.quick:
        missing = "left out of a quick test"
    command: list[Any] = ["benchmarks.peers.speedrun", plan.airbench, plan.data_dir, plan.device]
    return [
        _step("airbench", f"airbench/airbench94_muon, seed {s}", "metrics", *command, s, missing=missing)
        for s in range(3)
    ]


def _step_rate(plan: Plan) -> list[Step]:
    if plan.quick:
        quick = ["--model", "small", "--batch-size", 16, "--min-s", 0.01, "--one-process"]
        others = ("+channels_last", "+bf16", "+allocator", "fastcifar+compile", "recipe")
        quick += [word for name in others for word in ("--without", name)]
        return [_benchmark(plan, "step", "step/small", "plain_step", *quick)]
    more = ["--batch-size", 512, "--one-process", "--min-s", 1]
    return [
        _benchmark(plan, "step", f"step/{model}", "plain_step", "--model", model, *more)
        for model in ("resnet18", "small")
    ]


def _epochs(plan: Plan) -> list[Step]:
    """An epoch of each recipe; `shapes` is for synthetic images."""
    if plan.quick:
        names, more = [str(_tiny_recipe(plan))], []
    else:
        names, more = [name for name in recipes.names() if name != "shapes"], ["--epochs", "1"]
    steps = []
    for name in names:
        label = Path(name).stem
        flags = [
            "--recipe",
            name,
            "--data-dir",
            plan.data_dir,
            "--runs-dir",
            plan.out / "runs",
            "--device",
            plan.device,
        ]
        steps.append(_step("epochs", f"epochs/{label}", "metrics", "fastcifar", "train", "--json", *flags, *more))
    return steps


def _tiny_recipe(plan: Plan) -> Path:
    path = plan.out / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


def rows_in(step: Step, output: Path, *, complete: bool) -> list[dict[str, Any]]:
    """The rows of a step. output: what it printed; complete: whether it ended well, and must have printed them. One
    that failed because a row has no value has printed the others."""
    if step.reads == "tests":
        return [test_counts(step.file)] if step.file is not None and step.file.exists() else []
    if not complete and step.file is not None:
        return list(lines_of(step.file))
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    if step.reads == "nothing" or not lines or not (complete or lines[-1].endswith("}]")):
        return []
    printed = json.loads(lines[-1])
    if step.reads == "rows":
        return list(printed)
    return [{"name": step.name.partition("/")[2], **{key: printed[key] for key in METRICS if key in printed}}]


def test_counts(report: Path) -> dict[str, Any]:
    """How many tests passed, failed or were skipped, and which failed, by pytest's XML report."""
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    reasons = sorted({str(case.find("skipped").get("message")) for case in skipped})  # type: ignore[union-attr]
    return {
        "name": "tests",
        "passed": len(cases) - len(failed) - len(skipped),
        "failed": len(failed),
        "skipped": len(skipped),
        "failures": [f"{case.get('classname')}::{case.get('name')}" for case in failed],
        "skip_reasons": reasons,
    }
