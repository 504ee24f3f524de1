"""What a training run is, as a value. No torch, so that the command line can read its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgekit.core.errors import UsageError
from edgekit.core.values import Size

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Section 5.2. The paper trains on train and val and does not say after how many epochs it stops on CamVid.
    "paper-cityscapes": {},
    "paper-camvid": {
        "dataset": "camvid", "split": "train+val", "frame_size": "720x960", "crop": "720x720", "batch": 8, "epochs": 200,
        "learning_rate": 0.005, "schedule": "step", "step_epochs": (100,), "arguments": {"camvid": True},
    },
}  # fmt: skip
"""Settings by name; each differs from the defaults only in what it names."""


def preset_settings(name: str) -> Mapping[str, Any]:
    """Settings of a preset.

    Raises:
        UsageError: no such preset.
    """
    if name not in PRESETS:
        raise UsageError(f"there is no preset '{name}': choose from {', '.join(PRESETS)}")
    return PRESETS[name]


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides the trained weights. The defaults are the paper's (section 5.2, Cityscapes).

    Attributes:
        network, arguments: what is trained.
        dataset: its data.
        split: ``train``, or ``train+val`` for the last training of a recipe that was chosen on val.
        initial: the checkpoint whose weights training starts from, by content hash ("" for random weights); layers of
            another shape, such as a classifier for other classes, start at random.
        teacher: a checkpoint of the same classes that is learned from, too, by content hash ("" for labels alone).
        distillation: the teacher's part of the loss, above 0 and at most 1 with a teacher; what is left is the labels'.
        draw_size: size at which ``streets`` frames are drawn.
        frame_size: size that whole frames are brought to before the random rescaling, and that validation and test see;
            "" leaves each at its own.
        frames: use only so many training frames (None: all).
        epochs: passes over them.
        batch: images a step.
        crop: height x width of the random crop.
        optimizer: ``sgd`` (momentum) or ``adamw``.
        learning_rate: at the start.
        schedule: ``poly`` multiplies by (1 - step / steps) ** power, each step; ``step`` by step_factor at each of
            step_epochs; ``constant`` leaves it.
        warmup_steps: linear rise over the first steps; 0 as in the paper.
        scale: range of the random rescaling before the crop.
        loss_stride: cross-entropy on every n-th pixel, logits upsampled only so far; 1 is the paper's.
        class_balance: cross-entropy weights of (median frequency / class frequency) ** this; 0 as in the paper.
        lovasz: weight of the Lovász-Softmax loss added to cross-entropy; 0 as in the paper.
        colour_jitter: largest relative change of brightness, contrast and saturation; 0 as in the paper.
        white_balance: largest relative change of each colour channel's own gain; 0 as in the paper.
        class_mix: share of crops over which half the classes of a second crop, of any frame, are laid; 0 as in the paper.
        precision: ``bfloat16`` runs what torch's autocast says in it, weights and their updates stay float32.
        average: decay of an exponential moving average of the weights, used for evaluation; 0 switches it off.
        seed: of initialization, order and augmentation.
    """

    network: str = "spssn"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "cityscapes"
    split: Literal["train", "train+val"] = "train"
    initial: str = ""
    teacher: str = ""
    distillation: float = 0.0
    draw_size: str = "512x1024"
    frame_size: str = ""
    frames: int | None = None
    epochs: int = 800
    batch: int = 4
    crop: str = "1024x2048"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-5
    schedule: Literal["poly", "step", "constant"] = "poly"
    power: float = 0.9
    step_epochs: tuple[int, ...] = ()
    step_factor: float = 0.1
    warmup_steps: int = 0
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    loss_stride: int = 1
    class_balance: float = 0.0
    lovasz: float = 0.0
    colour_jitter: float = 0.0
    white_balance: float = 0.0
    class_mix: float = 0.0
    precision: Literal["float32", "bfloat16"] = "float32"
    average: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for values that cannot be trained with."""
        choices = {
            "split": ("train", "train+val"), "optimizer": ("sgd", "adamw"), "schedule": ("poly", "step", "constant"),
            "precision": ("float32", "bfloat16"),
        }  # fmt: skip
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise UsageError(f"--{name} {value} is not known: choose from {', '.join(allowed)}")
        Size.parse(self.crop)
        Size.parse(self.draw_size)
        if self.frame_size:
            Size.parse(self.frame_size)
        if bool(self.step_epochs) != (self.schedule == "step"):
            raise UsageError(
                "--schedule step and --step-epochs belong together, as in --step-epochs 100,150: give both, or neither"
            )
        if self.epochs < 1 or self.batch < 1:
            raise UsageError("--epochs and --batch must be at least 1")
        if not self.learning_rate > 0:
            raise UsageError(f"--learning-rate {self.learning_rate} must be above 0")
        if not (self.warmup_steps >= 0 and self.lovasz >= 0 and self.step_factor > 0):
            raise UsageError("--warmup-steps and --lovasz must be at least 0, --step-factor above 0")
        if not 0 <= self.seed < 1 << 43:  # shifted by 20 bits it must fit into torch's 64
            raise UsageError(f"--seed {self.seed} must be at least 0 and below 2 ** 43")
        if not (0 <= self.colour_jitter <= 1 and 0 <= self.white_balance <= 1):
            raise UsageError("--colour-jitter and --white-balance must be between 0 and 1")
        if not (0 <= self.momentum < 1 and self.weight_decay >= 0 and self.power >= 0):
            raise UsageError("--momentum must be at least 0 and below 1, --weight-decay and --power at least 0")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(f"--scale {self.scale[0]} {self.scale[1]} must be two factors above 0, the smaller first")
        if self.loss_stride not in (1, 2, 4, 8):
            raise UsageError(f"--loss-stride {self.loss_stride} must be 1, 2, 4 or 8")
        if not 0 <= self.class_balance <= 1:
            raise UsageError(f"--class-balance {self.class_balance} must be between 0 and 1")
        if not 0 <= self.class_mix <= 1:
            raise UsageError(f"--class-mix {self.class_mix} must be between 0 and 1")
        if not 0 <= self.distillation <= 1:
            raise UsageError(f"--distillation {self.distillation} must be between 0 and 1")
        if bool(self.teacher) != bool(self.distillation):
            raise UsageError(
                "--teacher and --distillation belong together: name a checkpoint and its part of the loss, or neither"
            )
        if not 0 <= self.average < 1:
            raise UsageError(f"--average {self.average} must be at least 0 and below 1")

    def learning_rate_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of a step, counted from 0 over the whole training."""
        rate = self.learning_rate
        if self.warmup_steps:
            rate *= min(1.0, (step + 1) / self.warmup_steps)
        if self.schedule == "poly":
            rate *= (1.0 - step / (steps_per_epoch * self.epochs)) ** self.power
        elif self.schedule == "step":
            rate *= self.step_factor ** sum(step >= epoch * steps_per_epoch for epoch in self.step_epochs)
        return rate

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint."""
        return {
            **asdict(self),
            "arguments": dict(self.arguments),
            "scale": list(self.scale),
            "step_epochs": list(self.step_epochs),
        }
