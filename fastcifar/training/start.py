"""`train`: sets up a run, or resumes one, and has the `Trainer` train it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastcifar.config import TrainConfig
from fastcifar.data.beton import Beton
from fastcifar.io.checks import require_utf8
from fastcifar.io.locks import lock_folder
from fastcifar.loggers import Loggers, open_loggers
from fastcifar.models import builder
from fastcifar.training.checkpointer import as_stored
from fastcifar.training.data import Loaders
from fastcifar.training.device import prepare_device, standard_torch_defaults
from fastcifar.training.distributed import Distributed
from fastcifar.training.initial_weights import log_notes, prepare_network, read_initial_weights
from fastcifar.training.lr_finder import make_initial_network, report_lr, resolve_lr
from fastcifar.training.pace import resolve_max_minutes
from fastcifar.training.progress import Reporter, RunContext, SilentReporter
from fastcifar.training.run_folder import RunFolder, create_run, log_file
from fastcifar.training.stop import StopRequest
from fastcifar.training.trainer import Trainer


@standard_torch_defaults()
def train(
    config: TrainConfig,
    *,
    runs_dir: str | os.PathLike[str] = "runs",
    name: str | None = None,
    resume: RunFolder | None = None,
    reporter: Reporter | None = None,
    betons: Sequence[Beton] | None = None,
    indices: npt.NDArray[np.int64] | None = None,
    test: bool = True,
    loggers: Loggers | None = None,
) -> tuple[RunFolder, dict[str, Any]]:
    """Train with the settings in `config`; return the run folder and the content of its metrics.json.

    Creates the folder `name` in `runs_dir` (default: the name of the recipe or the network), or resumes the run
    `resume`. Under `torchrun` the processes share each batch, and rank 0 writes.
    betons: the training and test images, if they are open already. test: whether to evaluate the test images.
    indices: the training images to train on, (M,) int64, sorted, with `val_size` 0; a run resumes with the same alone.
    loggers: open ones, which the caller closes; by default those of the setting `log` are opened and closed.
    Raises DataError (4), DivergedError (5), CheckpointError (6), UsageError (2), MissingExtraError (3), and Stopped
    (130, 143) after a signal, once all is saved.
    """
    begin, distributed, reporter = time.monotonic(), Distributed.from_environment(), reporter or SilentReporter()
    require_utf8("data_dir", str(Path(config.data.data_dir).absolute()))  # as config.yaml stores it
    with ExitStack() as resources:
        device = prepare_device(config.runtime, distributed)
        builder(config.model)  # an unknown name fails before the data is read
        if resume is not None:
            config = as_stored(config, resume, runs_dir)
        # a resumed run has its weights from the checkpoint
        initial = None if resume or config.init is None else read_initial_weights(config.init, runs_dir)
        config = config if initial is None else config.with_settings(init=initial.path)
        if loggers is None:
            loggers = resources.enter_context(open_loggers(config.runtime.log, is_main=distributed.is_main))
        loaders = resources.enter_context(closing(Loaders(config, device, distributed, betons, indices)))
        resources.enter_context(distributed.connect(device))
        network = make_initial_network(config, loaders.info, device, pretrained=resume is None)
        notes = prepare_network(network, config, loaders.info, initial)
        default_lr = config.optimizer.lr is None
        config, lr_curve = resolve_lr(config, network, loaders, distributed, reporter)
        config, about_length = resolve_max_minutes(config, loaders, device, distributed, reporter, begin)
        run = resume
        if run is None and distributed.is_main:
            run = create_run(runs_dir, (config.recipe or config.model.label) if name is None else name)
        run = distributed.broadcast(run)
        assert run is not None
        if distributed.is_main:
            resources.enter_context(lock_folder(run.path, "another process is training this run; wait for it to end"))
            resources.enter_context(log_file(run.log))
            run.make_subfolder(run.last.parent)
            log_notes([*notes, *about_length])
            report_lr(config, lr_curve, run, is_default=default_lr)
        # resources are closed before the signal handlers are restored: an error is reported even if a signal follows
        with StopRequest() as stop, resources.pop_all():
            context = RunContext(
                config=config,
                run=run,
                loaders=loaders,
                device=device,
                distributed=distributed,
                reporter=reporter,
                loggers=loggers,
                is_resumed=resume is not None,
                is_fold=indices is not None,
            )
            trainer = Trainer(context, network, stop)
            if resume is not None:
                trainer.checkpointer.restore()
            if distributed.is_main:
                run.write_config(config, **({} if initial is None else {"init_sha256": initial.sha256}))
            if resume is None:
                trainer.checkpointer.save()  # from here on, a run that is killed can be resumed
            with closing(trainer.threads):
                trainer.fit()
                return run, trainer.test() if test else trainer.finish({})
