"""`fastcifar bench` and benchmarks/: what they report, not how fast it is."""

from __future__ import annotations

import importlib
import json
import mmap
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import CliRunner

import benchmarks
from benchmarks import convert as benchmark_convert
from benchmarks import fast, plot, subprocesses, whole_program
from benchmarks.peers import speedrun
from benchmarks.subprocesses import anonymous_memory
from fastcifar.bench import measure
from fastcifar.bench.results import environment
from fastcifar.cli import main
from fastcifar.converters import convert, open_source
from fastcifar.errors import FastcifarError, UsageError
from fastcifar.training.device import choose_device
from tests.conftest import ImageFolder

ROOT = Path(__file__).parent.parent


def batches() -> Iterator[tuple[torch.Tensor]]:
    for _ in range(3):
        yield (torch.zeros(10, 3, 2, 2),)


def missing() -> measure.Epoch:
    raise ImportError("nothing is\ninstalled")


def test_candidates_are_measured_in_turn_and_missing_ones_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "MIN_S", 0.01)
    lines: list[str] = []
    results = measure.measure_throughput({"here": lambda: batches, "gone": missing}, log=lines.append)
    here, gone = (result.row() for result in results)
    assert here["repeats"] == 5
    assert here["images_per_s_min"] <= here["images_per_s"] <= here["images_per_s_max"]
    assert here["first_batch_s"] >= 0
    assert gone == {
        "name": "gone",
        "images_per_s": None,
        "images_per_s_min": None,
        "images_per_s_max": None,
        "first_batch_s": None,
        "repeats": 0,
        "note": "skipped: nothing is installed",
    }
    assert lines[0] == "gone: skipped: nothing is installed"


def test_a_rate_is_the_median_with_its_spread() -> None:
    row = measure.Throughput("a", [100.0, 1.0, 2.0, 10.0, 9.0]).row()
    assert (row["images_per_s_min"], row["images_per_s"], row["images_per_s_max"]) == (1, 9, 100)


def test_nothing_to_measure_is_an_error_with_its_reasons() -> None:
    with pytest.raises(FastcifarError, match="none of gone, none could be measured: nothing is installed"):
        measure.measure_throughput({"gone": missing, "none": missing})


def test_results_are_saved_with_their_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    monkeypatch.setattr("fastcifar.bench.results.__version__", "9.9")  # of a checkout that is not installed
    about = environment("ten images")
    assert about["versions"]["fastcifar"] == "9.9"
    assert about["data"] == "ten images"
    assert about["versions"]["torch"] == torch.__version__.split("+")[0]
    assert about["cores"] >= 1
    for name in ("a", "b"):
        benchmarks.save_rows("loaders.py", [{"name": name}], about)
    text = (tmp_path / "benchmarks" / "results" / "loaders.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["rows"][0]["name"] for line in lines] == ["a", "b"]


def test_damaged_lines_of_results_are_left_out(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    file.write_bytes(b'{"step": "a", "status": "done"}\n[1, 2]\n{"step": "\xff"}\n\xff\n3\n{"step": "b", "sta')
    assert list(benchmarks.lines_of(file, "step", "status")) == [{"step": "a", "status": "done"}]
    assert len(list(benchmarks.lines_of(file))) == 2
    assert not list(benchmarks.lines_of(tmp_path / "none"))


def test_memory_of_this_process_grows_with_what_it_allocates() -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    before = anonymous_memory()
    with mmap.mmap(-1, 32 * 2**20) as kept:  # not from the C library, which may have some left
        kept.write(b"x" * len(kept))
        assert anonymous_memory() - before > 24 * 2**20


@pytest.fixture
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measurements of milliseconds."""
    monkeypatch.setattr(measure, "MIN_S", 0.02)


@pytest.mark.slow
@pytest.mark.usefixtures("brief")
def test_bench_reports_loaders_and_steps(data_dir: Path) -> None:
    arguments = ["bench", "--data-dir", str(data_dir), "--batch-size", "100", "--model", "small", "--json"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    rows = {row["name"]: row for row in report["rows"]}
    assert {"resident", "small, step alone", "small, step together"} <= set(rows)
    assert rows["resident"]["images_per_s"] > 0
    assert 0 <= rows["small, step together"]["waiting_share"] <= 1
    assert report["versions"]["torch"]
    shown = CliRunner().invoke(main, [*arguments[:-1], "--no-steps"])
    assert shown.stdout.splitlines()[0].split()[:2] == ["name", "images_per_s"]


def test_bench_without_betons_says_what_to_do(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["bench", "--data-dir", str(tmp_path)])
    assert result.exit_code == 4
    assert f"make it with: fastcifar convert --data-dir {tmp_path}" in result.stderr


@pytest.mark.usefixtures("brief")
def test_bench_shrinks_the_cutout_for_small_images(image_folder: ImageFolder, tmp_path: Path) -> None:
    with open_source(image_folder(side=5)) as source:
        convert(source, tmp_path)
    bench = ["bench", "--data-dir", str(tmp_path), "--no-steps", "--json"]
    result = CliRunner().invoke(main, [*bench, "--batch-size", "2"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["rows"][0]["images_per_s"] > 0
    result = CliRunner().invoke(main, [*bench, "--batch-size", "99"])
    assert (result.exit_code, result.stdout) == (1, "")
    assert "could be measured: batch_size is 99; expected at most" in result.stderr


@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("loaders", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
        ("loaders", ["--batch-size", "601"], 2, "has 600 images of 32x32; expected a batch of 601 or more"),
        ("loaders", ["--threads", "0"], 2, "Invalid value for '--threads'"),
        ("loaders", ["--repeats", "1"], 2, "Invalid value for '--repeats'"),
        ("loaders", ["--device", "banana"], 2, "device is 'banana'"),
        ("loaders", ["--only", "nonsense"], 2, "--only is 'nonsense'; expected one of: resident, ffcv"),
        ("growth", ["--sizes", "abc"], 2, "'abc'; expected integers of at least 512"),
        ("growth", ["--sizes", "0"], 2, "'0'; expected integers of at least 512"),
        ("growth", ["--processes", "0"], 2, "'0'; expected integers of at least 1"),
        ("duplicates", ["--sizes", "0"], 2, "'0'; expected positive integers"),
        ("duplicates", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
        (
            "near_duplicates",
            ["--pairs", __file__, "--labels-file", __file__, "--data-dir", "nowhere"],
            4,
            "nowhere/train.beton: no such file",
        ),
        ("near_duplicates", ["--pairs", __file__, "--labels-file", __file__], 4, "expected an .npz file"),
        ("label_errors", ["--labels-file", __file__], 4, "expected an .npz file with the arrays train and train_aggre"),
        ("busy", ["--policies", "x"], 2, "--policies has 'x'; expected of: spin, sleep, one thread, fastcifar train"),
        ("fast", ["--device", "banana"], 2, "device is 'banana'"),
        ("fast", ["--airbench", "."], 2, "--airbench is '.', which has no airbench94_muon.py"),
        ("fast", ["--hiverge", "."], 2, "--hiverge is '.', which has no cifar10_speedrun.py"),
        ("peers.speedrun", [], 2, "Missing argument 'CHECKOUT'"),
        ("peers.speedrun", [".", "data", "cpu", "0"], 2, "has none of airbench94_muon.py, cifar10_speedrun.py"),
        ("first_batch", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
        ("export", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
    ],
)
def test_a_benchmark_that_cannot_run_says_why(
    data_dir: Path, script: str, arguments: list[str], code: int, message: str
) -> None:
    command = importlib.import_module(f"benchmarks.{script}").main
    before = torch.get_num_threads()
    result = CliRunner().invoke(command, arguments, env={"FASTCIFAR_DATA_DIR": str(data_dir)})
    torch.set_num_threads(before)
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert "Traceback" not in result.stderr


def test_a_device_that_is_found_is_saved_with_the_row(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[Any] = []
    monkeypatch.setattr(whole_program, "one", lambda flags: {"start_s": 1.0, "exit_s": 2.0, "test_s": 1.5})
    monkeypatch.setattr(whole_program, "environment", lambda data, device: device)
    monkeypatch.setattr(whole_program, "save_rows", lambda script, rows, about: saved.extend([len(rows), about]))
    done = CliRunner().invoke(whole_program.main, ["--device", "auto", "--data-dir", str(data_dir)])
    assert done.exit_code == 0, done.output
    assert saved == [1, choose_device("auto")]


def test_a_peer_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_convert, "find_spec", lambda name: None)
    monkeypatch.setattr(benchmark_convert, "measure", lambda command: (1.0, 2.0))
    arguments = ["--png", "6", "--jpeg", "0", "--generated", "0", "--no-save", "--json"]
    done = CliRunner().invoke(benchmark_convert.main, arguments)
    assert done.exit_code == 0, done.output
    peer, own = json.loads(done.stdout)
    assert (peer["note"], own["name"], own["seconds"]) == ("skipped: FFCV is not installed", "fastcifar", 1.0)


def test_rows_of_all_benchmarks_have_the_same_keys() -> None:
    values = measure.Throughput("a", [1.0]).row()
    assert benchmarks.row("a", memory_mib=3) == {**dict.fromkeys(benchmarks.ROW_KEYS), "name": "a", "memory_mib": 3}
    assert set(benchmarks.ROW_KEYS) <= set(values)


@pytest.mark.parametrize(
    ("rows", "required", "message"),
    [
        ([{"name": "ours"}, {"name": "dali", "note": "skipped: not installed"}], (), None),
        ([{"name": "ours", "note": "skipped: not installed"}], ("ours",), "ours: skipped: not installed"),
        ([{"name": "ours"}, {"name": "dali", "note": "failed: out of memory"}], (), "dali: failed: out of memory"),
    ],
)
def test_only_a_peer_that_is_not_installed_may_have_no_value(
    rows: list[dict[str, str]], required: tuple[str, ...], message: str | None
) -> None:
    if message is None:
        benchmarks.check_measured(rows, required)
        return
    with pytest.raises(FastcifarError, match=message):
        benchmarks.check_measured(rows, required)


def test_a_process_that_fails_is_an_error_for_the_reference_and_a_note_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    codes = {"reference": 0, "missing": 3, "broken": 1}

    def run(command: list[str], **settings: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, codes[command[4]], "5.0", "line\nError: no luck")

    monkeypatch.setattr(subprocesses.subprocess, "run", run)
    results = subprocesses.measure_in_processes("module", tuple(codes), [], 2)
    assert [result.note for result in results] == ["", "skipped: no luck", "failed: no luck"]
    assert results[0].images_per_s == [5.0, 5.0]
    codes["reference"] = 4
    with pytest.raises(click.ClickException, match="reference: no luck") as error:
        subprocesses.measure_in_processes("module", tuple(codes), [], 2)
    assert error.value.exit_code == 4


def test_a_package_that_is_not_installed_has_an_exit_code_of_its_own() -> None:
    @click.command(cls=benchmarks.Command)
    def command() -> None:
        importlib.import_module("no_such_package")

    result = CliRunner().invoke(command)
    assert (result.exit_code, result.stderr) == (3, "Error: No module named 'no_such_package'\n")


STOPPABLE = """if True:
    import subprocess, sys
    import click
    from benchmarks import GOES_ON, Command
    from benchmarks.subprocesses import run_group

    @click.command(cls=Command)
    @click.argument("code", nargs=-1)
    def main(code):
        click.get_current_context().meta[GOES_ON] = True
        start = run_group if len(code) > 1 else subprocess.run
        start([sys.executable, "-c", *code])

    main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_benchmark_with_all_that_it_started(signum: signal.Signals) -> None:
    """As benchmarks.gpu, which starts benchmarks.fast, which starts a training."""
    training = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = [sys.executable, "-c", STOPPABLE, STOPPABLE, training]
    settings: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": ROOT}
    # not ignored, as under nohup
    with subprocess.Popen(command, preexec_fn=lambda: signal.signal(signum, signal.SIG_DFL), **settings) as process:
        assert process.stdout is not None
        status = Path(f"/proc/{int(process.stdout.readline())}/stat")
        process.send_signal(signum)
        _, stderr = process.communicate()
    assert process.returncode == 128 + signum
    assert stderr.splitlines()[-1] == "Stopped; the same command goes on where it stopped."
    assert not status.exists() or status.read_text().split()[2] == "Z"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "code", "message"),
    [
        ("lr_find", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
        ("lr_find", ["--model", "nope"], 2, "nope"),
        ("plain_step", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
        ("fast", ["--data-dir", "nowhere"], 4, "its message is above"),
        ("recipes", ["--data-dir", "nowhere"], 4, "its message is above"),
        ("lr_find_check", ["--data-dir", "nowhere"], 4, "its message is above"),
        ("whole_program", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
        ("busy", ["--data-dir", "nowhere"], 4, "nowhere/train.beton: no such file"),
    ],
)
def test_a_measurement_that_fails_in_its_process_has_its_exit_code_and_no_row(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, arguments: list[str], code: int,
    message: str,
) -> None:  # fmt: skip
    monkeypatch.setattr(benchmarks, "ROOT", tmp_path)
    module = importlib.import_module(f"benchmarks.{script}")
    result = CliRunner().invoke(module.main, arguments, env={"FASTCIFAR_DATA_DIR": str(data_dir)})
    assert result.exit_code == code, result.output
    assert message in result.stderr
    assert not (tmp_path / "benchmarks").exists()


@pytest.mark.slow
def test_the_benchmark_of_loaders_has_the_rows_that_it_promises(data_dir: Path) -> None:
    names = ["resident", "ffcv", "albumentations", "limit-copy-cast", "torchvision-v1", "airbench"]
    only = [part for name in names for part in ("--only", name)]
    command = [sys.executable, "-m", "benchmarks.loaders", "--data-dir", str(data_dir), "--json"]
    command += ["--no-save", "--batch-size", "50", "--limit-s", "0.2", *only]
    answer = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert answer.returncode == 0, answer.stderr
    rows = json.loads(answer.stdout)
    assert [row["name"] for row in rows] == names
    for row in rows:
        assert row["images_per_s"] or row["note"].startswith("skipped: "), row
        assert {"images_per_s_min", "images_per_s_max", "first_batch_s"} <= set(row)


def test_the_scripts_of_others_get_the_types_and_memory_of_a_cpu(tmp_path: Path) -> None:
    script = tmp_path / "airbench94_muon.py"
    body = 'images = torch.device("cuda"), (self.images.half() / 255), mod.half()\n'
    script.write_text(body + 'if __name__ == "__main__":\n    main()\n')
    assert speedrun.script_of(tmp_path) == script
    assert speedrun.source_of(script, torch.device("cuda")) == body
    expected = 'images = torch.device("cpu"), (self.images.float() / 255), mod.float()\n'
    assert speedrun.source_of(script, torch.device("cpu")) == expected
    script.write_text(script.read_text().replace("mod.half()", "mod"))
    with pytest.raises(UsageError, match="has changed"):
        speedrun.source_of(script, torch.device("cpu"))
    with pytest.raises(UsageError, match="has changed"):
        fast.script_in(str(tmp_path), script.stem, torch.device("cpu"))


@pytest.mark.parametrize(("fast", "line"), [(True, "X = G.bfloat16()"), (False, "X = G")])
def test_the_scripts_of_others_multiply_in_the_precision_that_a_cpu_is_fast_at(
    fast: bool, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "airbench94_muon.py"
    names = ", ".join(speedrun.SCRIPTS[script.name])
    script.write_text(f'X = G.bfloat16()\n{names}\nif __name__ == "__main__":\n    main()\n')
    monkeypatch.setattr(speedrun, "has_fast_bf16", lambda device: fast)
    assert speedrun.source_of(script, torch.device("cpu")).startswith(line + "\n")
    assert speedrun.source_of(script, torch.device("cuda")).startswith("X = G.bfloat16()\n")


def test_a_peer_is_the_script_of_its_own_checkout(tmp_path: Path) -> None:
    for name in speedrun.SCRIPTS:
        (tmp_path / name).write_text('if __name__ == "__main__":\n    main()\n')
    for name in fast.PEERS:
        script = fast.script_in(str(tmp_path), name, torch.device("cuda"))
        assert script == tmp_path / f"{name}.py"
        assert speedrun.script_of(script) == script
    assert fast.script_in(None, "cifar10_speedrun", torch.device("cpu")) is None


def test_a_line_without_each_training_is_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "benchmarks" / "results" / "fast.jsonl"
    results.parent.mkdir(parents=True)
    row = {"name": "fast", "trainings": 1, "train_seconds": 1.0, "tta_accuracy": 0.9}
    results.write_text(json.dumps({"command": "fast", "machine": "Xeon", "rows": [row]}))
    monkeypatch.setattr(plot, "ROOT", tmp_path)
    result = CliRunner().invoke(plot.main, [str(tmp_path / "fast.png"), "--of", "Xeon"])
    assert result.exit_code == 2
    assert "does not have each training" in result.stderr


def test_recipes_are_drawn_by_epoch_with_what_was_reported() -> None:
    row = {"name": "a", "epochs": 3, "of_epochs": 5, "reported": 0.9, "train_accuracies": [0.6, 0.7, 0.8]}
    ended = {**row, "name": "b", "val_accuracies": [0.5, 0.6, 0.7], "test_accuracy": 0.75}
    drawn = plot.recipes({"rows": [{"name": "no curve"}, row, ended]}).axes
    assert [axis.get_title() for axis in drawn] == ["a", "b", ""]
    assert [[list(line.get_ydata()) for line in axis.lines] for axis in drawn[:2]] == [
        [[0.6, 0.7, 0.8], [0.9, 0.9]],
        [[0.6, 0.7, 0.8], [0.5, 0.6, 0.7], [0.75], [0.9, 0.9]],
    ]
    with pytest.raises(UsageError, match="does not have each epoch"):
        plot.recipes({"rows": [{"name": "no curve"}]})


def test_accuracies_are_means_with_an_interval() -> None:
    trainings = [
        {"train_seconds": seconds, "test_accuracy": 0.92, "tta_accuracy": accuracy}
        for seconds, accuracy in ((200.0, 0.93), (190.0, 0.94), (250.0, 0.935))
    ]
    row = fast.summary("fastcifar fast", trainings)
    assert (row["trainings"], row["train_seconds"], row["tta_accuracy"]) == (3, 200.0, 0.935)
    assert row["tta_ci95"] == pytest.approx(4.303 * 0.005 / 3**0.5, abs=1e-4)
    assert fast.summary("fastcifar fast", trainings[:1])["tta_ci95"] is None
    assert fast.summary("cifar10_speedrun", [])["note"] == "skipped: no --hiverge"


@pytest.mark.slow
def test_a_whole_run_is_timed_from_its_start_to_its_exit(data_dir: Path) -> None:
    flags = ["--model", "small", "--batch-size", "16", "--max-steps", "2", "--data-dir", str(data_dir)]
    seconds = whole_program.one([*flags, "--tta", "flip"])
    assert 0 < seconds["test_s"] < seconds["exit_s"]
    assert seconds["start_s"] > 0


def test_a_long_comparison_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, seeds = tmp_path / "trainings.jsonl", []

    def train(module: str, *arguments: str) -> dict[str, float]:
        seeds.append(arguments[arguments.index("--seed") + 1])
        if len(seeds) == 2:
            raise click.ClickException("out of luck")
        return {"train_seconds": 2.0, "test_accuracy": 0.5, "tta_accuracy": 0.6, "loss": 1.0}

    monkeypatch.setattr(fast, "run_json", train)
    command = ["--data-dir", str(tmp_path), "--seeds", "3", "--trainings", str(file), "--no-save", "--json"]
    assert CliRunner().invoke(fast.main, command).exit_code == 1
    with file.open("a") as cut:
        cut.write('[3]\n{"name": "fastcifar fast", "seed": 1}\n{"name": "fastcifar fa')
    result = CliRunner().invoke(fast.main, command)
    assert result.exit_code == 0, result.output
    assert seeds == ["0", "1", "1", "2"]
    row = json.loads(result.stdout)[0]
    assert (row["trainings"], row["train_seconds"], row["tta_accuracy"], len(row["each"])) == (3, 2.0, 0.6, 3)
    result = CliRunner().invoke(fast.main, [*command[:1], str(ROOT), *command[2:]])
    assert result.exit_code == 2
    assert "fastcifar fast, seed 0 has data " in result.stderr
    result = CliRunner().invoke(fast.main, [*command[:-3], str(tmp_path / "none" / "file"), *command[-2:]])
    assert result.exit_code == 1
    assert len(seeds) == 4, "trained for a file that cannot be written"
