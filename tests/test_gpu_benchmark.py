"""`benchmarks.gpu`: its steps in order, their time limits, what it writes, and how it goes on; on the CPU."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import gpu, subprocesses
from benchmarks.gpu_steps import Plan, Step, plan_steps, rows_in
from fastcifar.errors import UsageError
from tests.conftest import synthetic_data

PARTS = ["tests", "kernels", "loaders", "accuracy", "step", "epochs", "airbench"]


def plan_for(out: Path, **changes: Any) -> Plan:
    values: dict[str, Any] = {"device": "cpu", "data_dir": "data", "source": None, "airbench": None, "quick": False}
    return Plan(out=out, **(values | changes))


def step_of(name: str, code: str, part: str = "a", **changes: Any) -> Step:
    return Step(part=part, name=name, command=[sys.executable, "-c", code], reads="rows", **changes)


def entries(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]


def run(out: Path, steps: list[Step], minutes: float = 1.0, part_s: float = 30.0) -> list[str]:
    return [each.status for each in gpu.run_steps(plan_for(out), steps, {"gpu": "one"}, minutes, part_s)]


GOOD = 'print(\'[{"name": "x", "images_per_s": 5}]\')'


def test_the_most_valuable_part_comes_first_and_every_benchmark_takes_the_device(tmp_path: Path) -> None:
    steps = plan_steps(plan_for(tmp_path, device="cuda", source="images.tar"))
    assert list(dict.fromkeys(step.part for step in steps)) == ["data", *PARTS]
    assert len({step.name for step in steps}) == len({step.file_name for step in steps}) == len(steps)
    for step in steps:
        if step.command[2].startswith("benchmarks.") and not step.missing:
            assert step.command[step.command.index("--device") + 1] == "cuda"
            assert "--no-save" in step.command, "results belong into OUT"
    assert {step.part for step in steps if "airbench" in step.missing} == {"airbench"}
    (accuracy,) = (step for step in steps if step.part == "accuracy")
    assert accuracy.command[-2:] == ["--trainings", str(accuracy.file)]


def test_a_row_is_on_the_disk_when_its_step_ends_and_what_failed_is_repeated(tmp_path: Path) -> None:
    flag = tmp_path / "flag"
    second = f"import os, sys; sys.exit('no luck') if not os.path.exists({str(flag)!r}) else {GOOD}"
    steps = [step_of("first", GOOD), step_of("second", second), step_of("third", GOOD, missing="DALI is not installed")]
    assert run(tmp_path, steps) == ["done", "failed", "skipped"]
    assert [(each["step"], each["status"], each["reason"]) for each in entries(tmp_path)] == [
        ("first", "done", ""),
        ("second", "failed", "exit code 1: no luck"),
        ("third", "skipped", "DALI is not installed"),
    ]
    assert entries(tmp_path)[0]["rows"] == [{"name": "x", "images_per_s": 5}]
    assert entries(tmp_path)[0]["gpu"] == "one"
    flag.touch()
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"step": "third", "stat')  # the machine was taken away
    assert run(tmp_path, steps) == ["done", "skipped"]
    whole = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines() if line.endswith("}")]
    assert [each["step"] for each in whole] == ["first", "second", "third", "second", "third"]
    assert run(tmp_path, steps) == ["skipped"]


@pytest.mark.slow
def test_a_step_over_its_limit_is_killed_with_all_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocesses, "GRACE_S", 0.5)
    pids = tmp_path / "pids"
    code = f"""if True:
        import os, signal, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        open({str(pids)!r}, "w").write(f"{{os.getpid()}} {{child.pid}}")
        time.sleep(60)
    """
    assert run(tmp_path, [step_of("slow", code), step_of("other part", GOOD, "b")], part_s=4.0) == ["killed", "done"]
    (entry, _) = entries(tmp_path)
    assert entry["reason"] == "not done after 4 s"
    for pid in map(int, pids.read_text().split()):
        status = Path(f"/proc/{pid}/stat")
        assert not status.exists() or status.read_text().split()[2] == "Z"


def test_what_does_not_fit_into_the_time_is_left_for_another_call(tmp_path: Path) -> None:
    steps = [step_of("first", GOOD)]
    assert run(tmp_path, steps, minutes=0.0) == ["skipped"]
    assert entries(tmp_path)[0]["reason"] == "no time left in this call"
    assert run(tmp_path, steps) == ["done"]


def test_a_call_without_time_for_a_step_says_so_and_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "plan_steps", lambda plan: [step_of("first", GOOD), step_of("b", GOOD, missing="no DALI")])
    monkeypatch.setattr(gpu, "about_machine", lambda device, data: {"data": data})
    arguments = ["--out", str(tmp_path), "--data-dir", ".", "--minutes"]
    result = CliRunner().invoke(gpu.main, [*arguments, "0.001"])
    assert result.exit_code == 1
    assert result.stderr.splitlines()[-1] == "Error: no time left for 1 of 2 steps; the same command goes on"
    result = CliRunner().invoke(gpu.main, [*arguments, "1"])
    assert result.exit_code == 0, result.output


def test_a_step_counts_as_done_for_the_same_command_gpu_machine_and_data_only(tmp_path: Path) -> None:
    assert run(tmp_path, [step_of("first", GOOD)]) == ["done"]
    assert run(tmp_path, [step_of("first", f"{GOOD} or 0")]) == ["done"]
    assert run(tmp_path, [step_of("first", GOOD)]) == []
    for key in ("gpu", "machine", "data"):
        about = {"gpu": "one", key: "other"}
        with pytest.raises(UsageError, match=f"step first has {key} .*; expected 'other': use another --out"):
            gpu.run_steps(plan_for(tmp_path), [step_of("first", GOOD)], about, 1.0, 30.0)
    (tmp_path / "results.jsonl").write_text('{"step": "data", "step_command": "", "status": "failed", "data": "wrong"}')
    assert run(tmp_path, [step_of("first", GOOD)]) == ["done"]


def test_a_damaged_line_of_an_earlier_call_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes(b'[1, 2]\n{"a": 1}\n\xff\n')
    assert run(tmp_path, [step_of("first", GOOD)]) == ["done"]


def test_without_images_nothing_else_is_tried(tmp_path: Path) -> None:
    steps = [step_of("data", "import sys; sys.exit('no such file')", "data"), step_of("first", GOOD)]
    assert run(tmp_path, steps) == ["failed"]


def test_the_counts_of_tests_are_read_from_the_report(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    report.write_text(
        '<testsuites><testsuite><testcase classname="a" name="b"/>'
        '<testcase classname="a" name="c"><failure/></testcase>'
        '<testcase classname="a" name="d"><skipped message="no CUDA device"/></testcase></testsuite></testsuites>'
    )
    step = Step(part="tests", name="tests", command=["python"], reads="tests", file=report)
    assert rows_in(step, tmp_path / "none", complete=False) == [
        {
            "name": "tests",
            "passed": 1,
            "failed": 1,
            "skipped": 1,
            "failures": ["a::c"],
            "skip_reasons": ["no CUDA device"],
        }
    ]


def test_the_report_of_an_earlier_call_is_not_read_again(tmp_path: Path) -> None:
    report = tmp_path / "tests.xml"
    text = '<testsuite><testcase classname="a" name="b"><failure/></testcase></testsuite>'
    code = f"import sys; open({str(report)!r}, 'w').write({text!r}); sys.exit(1)"
    empty = f"import sys; open({str(report)!r}, 'w').write('<testsuite/>'); sys.exit('no test is selected')"
    for each in (code, "import sys; sys.exit('cannot import torch')", empty):
        assert run(tmp_path, [replace(step_of("tests", each, file=report), reads="tests")]) == ["failed"]
    first, second, third = entries(tmp_path)
    assert (first["reason"], first["rows"][0]["failed"]) == ("1 tests failed", 1)
    assert (second["reason"], second["rows"]) == ("exit code 1: cannot import torch", [])
    assert third["reason"] == "exit code 1: no test is selected"


def test_the_trainings_that_ended_before_their_step_was_killed_are_kept(tmp_path: Path) -> None:
    file, output = tmp_path / "trainings.jsonl", tmp_path / "output"
    file.write_text('{"name": "fast", "seed": 0}\n{"name": "fa')
    output.write_text("")
    step = Step(part="a", name="fast", command=["python"], reads="rows", file=file)
    assert rows_in(step, output, complete=False) == [{"name": "fast", "seed": 0}]
    assert rows_in(step_of("other", GOOD), output, complete=False) == []
    output.write_text('[{"name": "x", "images_per_s": 5}, {"name": "y", "images_per_s": null}]\n')
    assert len(rows_in(step_of("other", GOOD), output, complete=False)) == 2
    output.write_text('[{"name": "x", "ima')
    assert rows_in(step_of("other", GOOD), output, complete=False) == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 4, "no images: set FASTCIFAR_SOURCE=PATH"),
        (
            ["--data-dir", ".", "--only", "nonsense"],
            2,
            "--only is 'nonsense'; expected one of: tests, kernels, loaders",
        ),
        (["--data-dir", ".", "--minutes", "nan"], 2, "nan; expected a finite number"),
        (["--data-dir", ".", "--part-s", "inf"], 2, "inf; expected a finite number"),
        pytest.param(["--data-dir", ".", "--device", "banana"], 2, "device is 'banana'", marks=pytest.mark.slow),
    ],
)
def test_what_cannot_run_says_why(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    result = CliRunner().invoke(gpu.main, ["--out", str(tmp_path / "out"), *arguments])
    assert result.exit_code == code, result.output
    assert message in result.stderr


@pytest.mark.slow
def test_every_step_runs_on_the_cpu(tmp_path: Path) -> None:
    synthetic_data(tmp_path / "data", 200, 100)
    arguments = ["--out", str(tmp_path / "out"), "--data-dir", str(tmp_path / "data"), "--device", "cpu", "--quick"]
    result = CliRunner().invoke(gpu.main, arguments, env={"OMP_NUM_THREADS": "1"})
    assert result.exit_code == 0, result.output
    found = {entry["step"]: entry for entry in entries(tmp_path / "out")}
    assert {entry["part"] for entry in found.values()} == set(PARTS)
    for name, entry in found.items():
        if entry["status"] == "skipped":
            assert "airbench" in entry["reason"] or "quick" in entry["reason"], entry
            continue
        assert entry["status"] == "done", entry
        assert entry["rows"], name
        assert {"machine", "versions", "gpu", "driver", "commit", "step_command", "seconds"} <= set(entry)
    assert all(row["images_per_s"] > 0 for name in ("loaders", "step/small") for row in found[name]["rows"])
    assert found["epochs/tiny"]["rows"][0]["train_seconds"] > 0
    assert os.listdir(tmp_path / "out" / "logs")
