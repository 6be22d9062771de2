"""TensorBoard: an event file in the folder of the run.

It is written by TensorBoard's own RecordWriter, but not by `SummaryWriter`, whose thread prints a traceback when the
disk is full, and which leaves the values of repeated steps and epochs in earlier files of a run that is resumed.
"""

from __future__ import annotations

import io
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import PIL.Image
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from fastcifar.io.atomic import create_file
from fastcifar.io.reading import read_bytes
from fastcifar.loggers.base import RunInfo, Values

PREFIX = "events.out.tfevents."
MAX_BYTES = 2**28
"""Of the event files of a run that is resumed: some million steps."""


class TensorBoardLogger:
    """The run as tags `step/…`, `epoch/…` (by epoch), `final/…`, pictures, and a session of the HPARAMS plugin."""

    def __init__(self) -> None:
        self._file: IO[bytes] | None = None
        self._epoch = 0

    def begin(self, run: RunInfo) -> None:
        folder = run.make_subfolder("tensorboard")
        earlier = sorted(folder.glob(f"{PREFIX}*"))
        kept, logged = _kept_events(earlier, run)
        partial = folder / f".partial-{time.time():.6f}"
        self._file = create_file(partial)
        self._writer = RecordWriter(self._file)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))
        # a TensorBoard that is open drops what it has read from the earlier files
        self._write(Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START)))
        for record in kept:
            self._writer.write(record)
        start, _ = _hparams(run.settings)
        self._write(Event(wall_time=time.time(), summary=start))
        for row in run.history:
            if row["epoch"] not in logged:
                self._write_epoch(row)
        self._file.flush()
        partial.rename(folder / f"{PREFIX}{time.time():.6f}")  # sorted after the earlier ones
        for path in earlier:
            if path.stat().st_size:
                create_file(path).close()  # a TensorBoard without its data server stops at a file that is missing
            else:
                path.unlink()

    def steps(self, rows: Sequence[tuple[int, Values]]) -> None:
        for step, values in rows:
            self._scalars("step", step, values)
        self._flush()

    def epoch(self, row: Values) -> None:
        self._write_epoch(row)
        self._flush()

    def finish(self, epoch: int, scores: Values) -> None:
        self._epoch = epoch
        self._scalars("final", epoch, scores)
        _, end = _hparams({})
        self._write(Event(wall_time=time.time(), summary=end))
        self._flush()

    def image(self, name: str, png: bytes) -> None:
        with PIL.Image.open(io.BytesIO(png)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png)
        picture_summary = Summary(value=[Summary.Value(tag=f"final/{name}", image=image)])
        self._write(Event(wall_time=time.time(), step=self._epoch, summary=picture_summary))
        self._flush()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write_epoch(self, row: Values) -> None:
        self._epoch = int(row["epoch"])
        self._scalars("epoch", self._epoch, {key: value for key, value in row.items() if key != "epoch"})

    def _scalars(self, group: str, step: int, values: Values) -> None:
        scalars = [Summary.Value(tag=f"{group}/{key}", simple_value=value) for key, value in values.items()]
        self._write(Event(wall_time=time.time(), step=step, summary=Summary(value=scalars)))

    def _write(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def _flush(self) -> None:
        assert self._file is not None
        self._file.flush()


def _hparams(settings: Mapping[str, Any]) -> tuple[Any, Any]:
    """The summaries that begin and end a session of the HPARAMS plugin."""
    plain = {
        key: value if isinstance(value, (bool, int, float, str)) else "none" if value in (None, []) else str(value)
        for key, value in settings.items()
    }
    make: Any = summary.hparams
    _, start, end = make(plain, {})
    return start, end


def _kept_events(paths: Sequence[Path], run: RunInfo) -> tuple[list[bytes], set[int]]:
    """The events of completed steps and epochs, as they are in the files, and these epochs."""
    ends, kept, epochs = {"step": run.step, "epoch": len(run.history)}, [], set()
    for path in paths:
        for record in _records(read_bytes(path, MAX_BYTES)):
            event = Event.FromString(record)
            group = event.summary.value[0].tag.partition("/")[0] if event.summary.value else ""
            if event.step <= ends.get(group, -1):
                kept.append(record)
                if group == "epoch":
                    epochs.add(event.step)
    return kept, epochs


def _records(content: bytes) -> Iterator[bytes]:
    """The records of an event file, up to the first that is truncated or damaged."""
    position = 0
    while position + 16 <= len(content):
        length, head_crc = struct.unpack_from("<QI", content, position)
        end = position + 12 + length
        if masked_crc32c(content[position : position + 8]) != head_crc or end + 4 > len(content):
            return
        record = content[position + 12 : end]
        if masked_crc32c(record) != struct.unpack_from("<I", content, end)[0]:
            return
        yield record
        position = end + 4
