"""What a training run is, as a value. No torch, so that the command line can read its defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from edgekit.core.errors import UsageError
from edgekit.core.values import Size


@dataclass(frozen=True)
class TrainingRecipe:
    """Everything that decides the trained weights. The defaults are the paper's (section 5.2, Cityscapes).

    Attributes:
        network, arguments: what is trained.
        dataset: its data, the train split.
        draw_size: size at which ``streets`` frames are drawn.
        frames: use only so many training frames (None: all).
        epochs: passes over them.
        batch: images a step.
        crop: height x width of the random crop.
        optimizer: ``sgd`` (momentum) or ``adamw``.
        learning_rate: at the start.
        schedule: ``poly`` multiplies by (1 - step / steps) ** power, each step.
        warmup_steps: linear rise over the first steps; 0 as in the paper.
        scale: range of the random rescaling before the crop.
        loss_stride: cross-entropy on every n-th pixel, logits upsampled only so far; 1 is the paper's.
        class_balance: cross-entropy weights of (median frequency / class frequency) ** this; 0 as in the paper.
        colour_jitter: largest relative change of brightness, contrast and saturation; 0 as in the paper.
        average: decay of an exponential moving average of the weights, used for evaluation; 0 switches it off.
        seed: of initialization, order and augmentation.
    """

    network: str = "spssn"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = "cityscapes"
    draw_size: str = "512x1024"
    frames: int | None = None
    epochs: int = 800
    batch: int = 4
    crop: str = "1024x2048"
    optimizer: Literal["sgd", "adamw"] = "sgd"
    learning_rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-5
    schedule: Literal["poly"] = "poly"
    power: float = 0.9
    warmup_steps: int = 0
    scale: tuple[float, float] = (0.5, 2.0)
    flip: bool = True
    loss_stride: int = 1
    class_balance: float = 0.0
    colour_jitter: float = 0.0
    average: float = 0.0
    seed: int = 0

    def check(self) -> None:
        """Raise UsageError for values that cannot be trained with."""
        Size.parse(self.crop)
        Size.parse(self.draw_size)
        if self.epochs < 1 or self.batch < 1:
            raise UsageError("--epochs and --batch must be at least 1")
        if not self.learning_rate > 0:
            raise UsageError(f"--learning-rate {self.learning_rate} must be above 0")
        if not (0 <= self.momentum < 1 and self.weight_decay >= 0 and self.power >= 0):
            raise UsageError("--momentum must be at least 0 and below 1, --weight-decay and --power at least 0")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(f"--scale {self.scale[0]} {self.scale[1]} must be two factors above 0, the smaller first")
        if self.loss_stride not in (1, 2, 4, 8):
            raise UsageError(f"--loss-stride {self.loss_stride} must be 1, 2, 4 or 8")
        if not 0 <= self.class_balance <= 1:
            raise UsageError(f"--class-balance {self.class_balance} must be between 0 and 1")
        if not 0 <= self.average < 1:
            raise UsageError(f"--average {self.average} must be at least 0 and below 1")

    def to_json(self) -> dict[str, Any]:
        """Plain values, as stored in a checkpoint."""
        return {**asdict(self), "arguments": dict(self.arguments), "scale": list(self.scale)}
