"""Where and how a run computes; what it logs."""

from __future__ import annotations

from dataclasses import dataclass

from fastcifar.config.setting import Choice, Config, Integer, Switch, Text, setting

AMP_MODES = ("auto", "bf16", "fp16", "off")
MAX_THREADS = 1_024


@dataclass(frozen=True, kw_only=True)
class RuntimeConfig(Config):
    """Where and how a run computes; what it logs."""

    device: str = setting("auto", Text(), "auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1, mps.")
    threads: int | None = setting(
        None, Integer(1, MAX_THREADS), "Threads on the CPU.", default_text="the CPUs available to this process"
    )
    amp: str = setting(
        "auto", Choice(AMP_MODES), "Autocast; auto: bf16 where the device is fast at it; fp16 scales the loss."
    )
    compile: bool = setting(
        False, Switch("--no-compile"), "Compile the network (torch.compile): pays off in long runs on a GPU."
    )
    sync_bn: bool = setting(
        False, Switch("--no-sync-bn"), "With several processes: batch normalisation over the images of all."
    )
    deterministic: bool = setting(
        False, Switch("--no-deterministic"), "Bit-identical results on the same machine, with the same threads."
    )
    log_every: int = setting(0, Integer(0), "Log the mean loss every so many steps; 0: once per epoch.")
