"""Everything that decides what a training run does."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from fastcifar.config.augment import AugmentConfig
from fastcifar.config.model import ModelConfig
from fastcifar.config.rates import DEFAULT_LR, network_kind
from fastcifar.errors import UsageError
from fastcifar.io.checks import (
    make_plain,
    require_bool,
    require_choice,
    require_float,
    require_int,
    require_number,
    require_utf8,
)
from fastcifar.io.paths import data_folder

SHUFFLES = ("full", "window", "none")
LOADERS = ("auto", "resident", "ffcv", "albumentations")
SCHEDULES = ("plateau", "onecycle", "cosine", "step", "multistep", "none")
MONITORS = ("loss", "accuracy")
ANNEALS = ("cos", "linear")
OPTIMIZERS = ("sgd", "adamw", "muon")
REST_OPTIMIZERS = ("adamw", "sgd")
TTAS = ("none", "flip", "flip-shift")
AMP_MODES = ("auto", "bf16", "fp16", "off")
MAX_SEED = 2**63 - 1
MAX_WARMUP = 1e6
MAX_THREADS = 1_024
CHANGEABLE = ("epochs", "max_steps", "data_dir", "device", "threads", "loader", "amp", "compile", "log_every")
"""What may differ when a run is resumed; everything else is the run's own."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides what a training run does. Stored in the run folder as config.yaml."""

    recipe: str | None = None
    """Name of the recipe that these settings began as."""
    data_dir: str | os.PathLike[str] = "data"
    """Folder with train.beton and test.beton; kept as text."""
    model: str = "resnet18"
    """Name of the network: see `ModelConfig`."""
    norm: str = "batch"
    """Normalisation in the network: see `ModelConfig`."""
    dropout: float = 0.0
    """Dropout before the last layer: see `ModelConfig`."""
    last_stride: int = 2
    """Stride of the last stage: see `ModelConfig`."""
    epochs: int = 50
    """Passes over the training images."""
    batch_size: int = 512
    """Images in one step, of all processes together; the last, partial batch of an epoch is dropped."""
    optimizer: str = "sgd"
    """'sgd', 'adamw', or 'muon' (for filters and matrices; `rest_optimizer` for biases, norms and the last layer)."""
    lr: float | str | None = None
    """Learning rate: the highest that the schedule reaches; 'auto' runs the range test first; None: see `rate`."""
    rest_optimizer: str = "adamw"
    """muon: 'adamw' or 'sgd', which updates the rest."""
    rest_lr: float = 0.01
    """muon: learning rate of the rest, at the peak of the schedule."""
    bias_lr: float | None = None
    """muon: learning rate of biases and norms, if it is not `rest_lr`. SGD wants far more for them (Page 2018)."""
    unit_filters: bool = False
    """muon: scale each filter bank to the norm sqrt(filters) before a step; where each is normalised after."""
    muon_steps: int = 5
    """muon: Newton-Schulz steps that make an update orthogonal; each costs time, and 3 do in a short training."""
    momentum: float = 0.9
    """Momentum of SGD and Muon, first beta of AdamW; onecycle swings that of SGD and AdamW by 0.05 either way."""
    nesterov: bool = True
    """Nesterov's momentum, where momentum is above 0."""
    weight_decay: float = 5e-4
    """L2 penalty (SGD, also beside Muon), decoupled decay (AdamW, Muon); unit filters have none."""
    decay_all: bool = True
    """Weight decay and L1 on biases and normalisation too, not only on filters and matrices."""
    l1: float = 0.0
    """L1 penalty: its gradient is added to that of the loss; the loss that is reported does not hold it."""
    label_smoothing: float = 0.0
    """Share of each label that is spread over all classes while training (Szegedy et al. 2016)."""
    clip_norm: float = 0.0
    """Gradients are scaled down to this norm, all parameters together; 0: they are not."""
    ema: float = 0.0
    """Decay per step of an exponential moving average of the weights, which is then what is scored; 0: none."""
    sched: str = "plateau"
    """'plateau', 'onecycle', 'cosine', 'step', 'multistep' or 'none'."""
    factor: float = 0.2
    """plateau, step, multistep: what the learning rate is multiplied by."""
    patience: int = 3
    """plateau: epochs without an improvement before the rate falls."""
    monitor: str = "loss"
    """plateau: 'loss' or 'accuracy', of the validation images, or of training if none are held out."""
    min_lr: float = 0.0
    """plateau, cosine: the rate does not fall below this."""
    step_size: int = 10
    """step: epochs between two falls."""
    milestones: tuple[int, ...] = ()
    """multistep: after how many epochs the rate falls."""
    pct_start: float = 0.3
    """onecycle: share of the steps in which the rate rises."""
    div_factor: float = 25.0
    """onecycle: the rate starts at lr / div_factor."""
    final_div_factor: float = 1e4
    """onecycle: the rate ends at lr / div_factor / final_div_factor."""
    anneal: str = "cos"
    """onecycle: 'cos' or 'linear'."""
    warmup_epochs: float = 0.0
    """Epochs in which the rate rises in a line from a hundredth; onecycle has its own."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """What happens to training images."""
    progressive: tuple[tuple[int, float], ...] = ()
    """(side, until): images are resized to side x side until that share of the steps is done."""
    tta: str = "none"
    """Test-time augmentation of the last score, beside the plain one: 'none', 'flip', 'flip-shift'."""
    loader: str = "auto"
    """Which loader feeds the network."""
    shuffle: str = "full"
    """'full', or 'window' for betons larger than memory."""
    device: str = "auto"
    """'auto' (CUDA, else MPS, else CPU), or a torch device."""
    threads: int | None = None
    """Threads on the CPU; None: as many as the CPUs that the process may use."""
    amp: str = "auto"
    """Autocast: 'bf16', 'fp16' (with loss scaling), 'off', or 'auto' (bf16 where the device is fast at it)."""
    compile: bool = False
    """torch.compile the network: worth its half minute in long runs on a GPU, not on a CPU."""
    sync_bn: bool = False
    """Batch normalisation over the images of all processes."""
    val_size: int | None = None
    """Training images held out for validation, of each class its share; 0 trains on all; None is a tenth."""
    seed: int = 0
    """Decides initial weights, order, augmentation and the validation images."""
    deterministic: bool = False
    """Use only algorithms that give the same result every time."""
    max_steps: int | None = None
    """End after this many steps, evaluation included."""
    log_every: int = 0
    """Log the mean loss of every so many steps; 0: of epochs only."""

    def __post_init__(self) -> None:
        make_plain(self)
        object.__setattr__(self, "milestones", _tuple("milestones", self.milestones))
        object.__setattr__(
            self, "progressive", tuple(_tuple("progressive", p) for p in _tuple("progressive", self.progressive))
        )
        _ = self.network
        object.__setattr__(self, "data_dir", str(data_folder(self.data_dir)))
        require_utf8("data_dir", str(self.data_dir))
        require_int("epochs", self.epochs, 1)
        require_int("batch_size", self.batch_size, 2)  # batch normalisation has no variance of one image
        require_choice("optimizer", self.optimizer, OPTIMIZERS)
        if self.lr not in ("auto", None):
            require_float("lr", self.lr, 0.0, above=True)
        if self.lr == "auto" and self.optimizer == "muon":
            raise UsageError(
                "lr is 'auto' with optimizer 'muon'; expected a number: 'fastcifar lr-find' finds all rates"
            )
        require_choice("rest_optimizer", self.rest_optimizer, REST_OPTIMIZERS)
        require_float("rest_lr", self.rest_lr, 0.0, above=True)
        if self.bias_lr is not None:
            require_float("bias_lr", self.bias_lr, 0.0, above=True)
        require_int("muon_steps", self.muon_steps, 1, 20)
        require_float("momentum", self.momentum, 0.0, high=1.0)
        for name in ("weight_decay", "l1", "clip_norm", "min_lr"):
            require_float(name, getattr(self, name), 0.0)
        require_number("warmup_epochs", self.warmup_epochs, 0.0, MAX_WARMUP)
        for name in ("label_smoothing", "ema"):
            require_float(name, getattr(self, name), 0.0, high=1.0)
        for name in ("unit_filters", "nesterov", "decay_all", "compile", "sync_bn", "deterministic"):
            require_bool(name, getattr(self, name))
        self._check_schedule()
        require_choice("tta", self.tta, TTAS)
        require_choice("loader", self.loader, LOADERS)
        require_choice("shuffle", self.shuffle, ("full", "window"))
        require_choice("amp", self.amp, AMP_MODES)
        if self.threads is not None:
            require_int("threads", self.threads, 1, MAX_THREADS)
        if self.val_size is not None:
            require_int("val_size", self.val_size, 0)
        require_int("seed", self.seed, 0, MAX_SEED)
        if self.max_steps is not None:
            require_int("max_steps", self.max_steps, 1)
        require_int("log_every", self.log_every, 0)

    def _check_schedule(self) -> None:
        require_choice("sched", self.sched, SCHEDULES)
        require_float("factor", self.factor, 0.0, above=True, high=1.0)
        require_int("patience", self.patience, 0)
        require_choice("monitor", self.monitor, MONITORS)
        require_int("step_size", self.step_size, 1)
        for number in self.milestones:
            require_int("milestones", number, 1)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise UsageError(f"milestones is {list(self.milestones)}; expected each epoch once, in rising order")
        if self.sched == "multistep" and not self.milestones:
            raise UsageError("sched is 'multistep' without milestones; expected epochs, such as 15,25")
        if self.sched == "onecycle" and self.warmup_epochs:
            raise UsageError("warmup_epochs is given with sched 'onecycle'; it warms up by itself: see pct_start")
        require_float("pct_start", self.pct_start, 0.0, above=True, high=1.0)
        require_float("div_factor", self.div_factor, 1.0)
        require_float("final_div_factor", self.final_div_factor, 1.0)
        require_choice("anneal", self.anneal, ANNEALS)
        if self.lr != "auto" and self.min_lr > self.rate:
            raise UsageError(f"min_lr is {self.min_lr:g}, above lr, {self.rate:g}; expected less")
        rest = min(self.rest_lr, self.rest_lr if self.bias_lr is None else self.bias_lr)
        if self.optimizer == "muon" and self.min_lr > rest:
            raise UsageError(
                f"min_lr is {self.min_lr:g}, above the rate of the rest beside muon, {rest:g}; expected less"
            )
        before = 0.0
        for stage in self.progressive:
            if len(stage) != 2:
                raise UsageError(f"progressive is {self.progressive}; expected pairs of side and share, such as 24:0.5")
            require_int("the side in progressive", stage[0], 8, 1_024)
            require_number("the share in progressive", stage[1], before, 1.0)
            before = stage[1]

    @property
    def rate(self) -> float:
        """The learning rate as a number: `lr`, or the default of the network and the optimiser. Not for 'auto'."""
        assert not isinstance(self.lr, str)
        return DEFAULT_LR[network_kind(self.model, self.norm)][self.optimizer] if self.lr is None else self.lr

    @property
    def network(self) -> ModelConfig:
        """The settings of the network alone."""
        return ModelConfig(name=self.model, norm=self.norm, dropout=self.dropout, last_stride=self.last_stride)


def _tuple(name: str, value: object) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{name} is {value!r}; expected a list")
    return tuple(value)
