"""The training loop: one code path, resumable at every epoch, stopping before a bad number spoils a good checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from calibration.datasets import Split, class_set
from edgekit.core.errors import TrainingError
from edgekit.core.files import plain, write_bytes
from edgekit.core.values import IGNORE, Normalization, Size
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.metrics.scores import add_counts, count_frame, score
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import NETWORKS, build_network, save_checkpoint
from edgekit.networks.subnormals import flush_subnormals
from edgekit.training.data import Crops, EpochOrder, decoded_frames, holds_a_class
from edgekit.training.recipe import TrainingRecipe

STATE_NAME = "training-state.pt"


@dataclass(frozen=True)
class Progress:
    """Where training stands; handed to the caller's callback after every step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float


def train(
    recipe: TrainingRecipe,
    data: Split,
    validation: Split | None,
    test: Split | None,
    folder: Path,
    name: str,
    command: str,
    report: Callable[[Progress], None],
    say: Callable[[str], None],
    validate_every: int = 10,
    workers: int = 1,
    device: str = "cpu",
    threads: int | None = None,
    decoding: Callable[[int, int], None] | None = None,
) -> Path:
    """Train, or go on where a killed run stopped, and write ``folder/name.safetensors``.

    Args:
        recipe: what to train; a resumed run must have the same.
        data: training frames.
        validation: frames to report mIoU on along the way and at the end.
        test: frames evaluated once, at the end.
        folder: holds the decoded frames, the state after the last epoch, and the checkpoint.
        command: as typed, recorded in the checkpoint.
        report, say: progress per step, and lines worth keeping.
        decoding: progress of the frames' decoding, done and total.

    Raises:
        TrainingError: another recipe lies in ``folder``, the loss is not finite, or no frame holds a class.
    """
    recipe.check()
    flush_subnormals()
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(recipe.seed)
    normalization = Normalization()
    classes = class_set(recipe.dataset)
    _check_device(device)
    module = channels_last(build_network(recipe.network, len(classes), recipe.arguments).to(device))
    logits = Logits(module, len(classes))  # a user's network may give a tuple, or channels beyond the classes
    state = _State(module, recipe)
    state_path = folder / STATE_NAME
    if state_path.is_file():
        state.restore(state_path)
        say(f"resuming after epoch {state.epoch} of {recipe.epochs}")
    say(f"decoding {len(data)} frames")
    index, path = decoded_frames(data, folder, decoding)
    if not holds_a_class(index, path):
        raise TrainingError(
            f"none of the {len(index)} frames of {data.dataset} {data.split} holds a class: check the label images"
        )
    if min(recipe.batch, len(index)) < 2 and recipe.network in NETWORKS:
        raise TrainingError(
            f"--batch {recipe.batch} with {len(index)} frames makes steps of one image, on whose one-bin pooling "
            "batch norm cannot be trained: use at least 2 of both"
        )
    order = EpochOrder(len(index), recipe)
    loader = DataLoader(
        Crops(index, path, recipe, normalization),
        batch_size=recipe.batch,
        sampler=order,
        drop_last=len(index) >= recipe.batch,
        num_workers=workers,
        persistent_workers=workers > 0,
        prefetch_factor=4 if workers else None,
        # Its own: workers' seeds, drawn once a process, must not move the dropout of a resumed run.
        generator=torch.Generator(),
    )
    weights = class_weights(index, path, len(classes), recipe.class_balance)
    weights = weights if weights is None else weights.to(device)
    steps = len(loader)
    total = steps * recipe.epochs
    started, done = time.monotonic(), 0
    while state.epoch < recipe.epochs:
        order.epoch = state.epoch
        torch.manual_seed((recipe.seed << 20) + state.epoch + 1)  # dropout, on every device, whether resumed or not
        logits.train()
        for step, (images, labels) in enumerate(loader, 1):
            rate = _learning_rate(recipe, state.step, total)
            for group in state.optimizer.param_groups:
                group["lr"] = rate
            loss = segmentation_loss(
                logits(images.to(device, memory_format=torch.channels_last)),
                labels.to(device),
                recipe.loss_stride,
                weights,
            )
            value = float(loss.detach())
            if not math.isfinite(value):
                raise _diverged(f"the loss became {value} in epoch {state.epoch + 1}, step {step}", state, folder)
            state.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is incomplete
            state.optimizer.step()
            state.step += 1
            state.update_average()
            done += 1
            pace = (time.monotonic() - started) / done
            report(
                Progress(
                    state.epoch + 1, recipe.epochs, step, steps, value, recipe.batch / pace, pace * (total - state.step)
                )
            )
        # The last step's update has met no loss yet: it must not replace a good state unseen.
        logits.eval()
        with torch.inference_mode():
            if not torch.isfinite(logits(images.to(device, memory_format=torch.channels_last))).all():
                raise _diverged(f"the logits are not finite after epoch {state.epoch + 1}", state, folder)
        state.epoch += 1
        state.save(state_path)
        if validation is not None and (state.epoch % validate_every == 0 and state.epoch < recipe.epochs):
            miou = evaluate_network(state.evaluated(), validation, normalization)["miou"]
            say(f"epoch {state.epoch}: {validation.split} mIoU {_written(miou)}")
    checkpoint = folder / f"{name}.safetensors"
    metrics: dict[str, Any] = {}

    def save() -> None:
        save_checkpoint(
            checkpoint, state.evaluated(), network=recipe.network, arguments=recipe.arguments,
            class_names=classes.names, normalization=normalization, dataset=recipe.dataset,
            recipe={**recipe.to_json(), "command": command, "torch": str(torch.__version__)}, metrics=metrics,
        )  # fmt: skip

    save()  # before evaluating: whatever happens there, the weights are kept
    for split in (validation, test):
        if split is None:
            continue
        scores = evaluate_network(state.evaluated(), split, normalization)
        if scores["miou"] is None:
            say(f"{split.dataset} {split.split} has no labels (its owners may keep them): not evaluated")
            continue
        metrics[f"{split.dataset}:{split.split}"] = scores
        say(f"{split.split} mIoU {_written(scores['miou'])} on {len(split)} frames")
    save()
    return checkpoint


def _written(miou: float | None) -> str:
    return "not defined (no labels)" if miou is None else f"{miou:.4f}"


def _check_device(device: str) -> None:
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, ValueError) as error:  # torch's three ways to say no
        raise TrainingError(
            f"--device {device} cannot be used by this PyTorch: choose cpu, or cuda with its CUDA build"
        ) from error


def class_weights(index: list[tuple[int, int, int]], path: Path, classes: int, balance: float) -> Tensor | None:
    """Loss weights [C] from the training frames' own pixel counts, mean 1 over the pixels; None without balancing.

    Raises:
        TrainingError: a class that never occurs, which no weight could teach.
    """
    if not balance:
        return None
    data = np.memmap(path, np.uint8, "r")
    counts = np.zeros(256, np.int64)
    for offset, height, width in index:
        counts += np.bincount(data[offset + 3 : offset + height * width * 4 : 4], minlength=256)
    counts = counts[:classes]
    if (counts == 0).any():
        raise TrainingError(
            f"class {int(np.flatnonzero(counts == 0)[0])} never occurs in the training frames: train without --class-balance, or on more frames"
        )
    weights = (np.median(counts) / counts) ** balance
    return torch.from_numpy((weights * counts.sum() / (weights * counts).sum()).astype(np.float32))


def _diverged(what: str, state: _State, folder: Path) -> TrainingError:
    kept = f"; the state after epoch {state.epoch} is kept in {folder}" if state.epoch else ""
    return TrainingError(f"{what}: lower --learning-rate (now {state.recipe.learning_rate}){kept}")


def segmentation_loss(logits: Tensor, labels: Tensor, stride: int, weights: Tensor | None = None) -> Tensor:
    """Pixel cross-entropy (section 4.5): logits [N, C, h, w] upsampled bilinearly to the labels' every ``stride``-th pixel."""
    truth = labels[:, stride // 2 :: stride, stride // 2 :: stride].long()
    logits = F.interpolate(logits.float(), size=truth.shape[-2:], mode="bilinear", align_corners=False)
    if not (truth != IGNORE).any():
        return logits.sum() * 0.0  # a crop of nothing but void: cross_entropy would give NaN
    return F.cross_entropy(logits, truth, weight=weights, ignore_index=IGNORE)


def evaluate_network(module: nn.Module, split: Split, normalization: Normalization) -> Mapping[str, Any]:
    """Scores of a network on a split at the frames' own size, as plain values; ``miou`` is None without labels."""
    logits = Logits(module, len(split.classes)).eval()
    device = next(module.parameters()).device
    counts = []
    with torch.inference_mode():
        for reference in split.references:
            frame = reference.load()
            x = normalize(torch.from_numpy(frame.image[None].copy()), normalization).to(device)
            labels = reference_labels(logits(x), Size(*frame.labels.shape))[0].to(torch.uint8).cpu().numpy()
            counts.append(count_frame(labels, frame.labels, frame.instances, split.classes))
    document = score(add_counts(counts), split.classes).to_json()
    return {**document, "frames": len(split)}


def _learning_rate(recipe: TrainingRecipe, step: int, total: int) -> float:
    warm = min(1.0, (step + 1) / recipe.warmup_steps) if recipe.warmup_steps else 1.0
    return recipe.learning_rate * warm * float((1.0 - step / total) ** recipe.power)


class _State:
    """Everything a resumed run needs: weights, average, optimizer, epoch and step."""

    def __init__(self, module: nn.Module, recipe: TrainingRecipe) -> None:
        self.module = module
        self.recipe = recipe
        self.epoch = 0
        self.step = 0
        self.average: dict[str, Tensor] | None = None
        if recipe.average:
            self.average = {key: value.clone() for key, value in module.state_dict().items()}
        parameters = module.parameters()
        self.optimizer: torch.optim.Optimizer
        if recipe.optimizer == "sgd":
            self.optimizer = torch.optim.SGD(
                parameters, recipe.learning_rate, momentum=recipe.momentum, weight_decay=recipe.weight_decay
            )
        else:
            self.optimizer = torch.optim.AdamW(parameters, recipe.learning_rate, weight_decay=recipe.weight_decay)

    def update_average(self) -> None:
        if self.average is None:
            return
        # Early weights are forgotten quickly: the decay grows to its value over the first steps.
        decay = min(self.recipe.average, (1 + self.step) / (10 + self.step))
        for key, value in self.module.state_dict().items():
            if value.is_floating_point():
                self.average[key].lerp_(value, 1 - decay)
            else:
                self.average[key].copy_(value)

    def evaluated(self) -> nn.Module:
        """The network to evaluate and ship: the averaged weights where there are some."""
        if self.average is None:
            return self.module
        module = build_network(self.recipe.network, len(class_set(self.recipe.dataset)), self.recipe.arguments)
        module.load_state_dict(self.average)
        return channels_last(module.to(next(self.module.parameters()).device))

    def save(self, path: Path) -> None:
        import io

        buffer = io.BytesIO()
        torch.save(
            {
                "recipe": self.recipe.to_json(), "epoch": self.epoch, "step": self.step, "average": self.average,
                "module": self.module.state_dict(), "optimizer": self.optimizer.state_dict(),
            },
            buffer,
        )  # fmt: skip
        write_bytes(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        try:
            stored = torch.load(path, map_location=next(self.module.parameters()).device, weights_only=True)
        except Exception as error:  # damaged in any way: the user must decide what to do with it
            raise TrainingError(f"{path} is damaged ({type(error).__name__}): delete it to start over") from error
        if not isinstance(stored, Mapping) or not isinstance(stored.get("recipe"), Mapping):
            raise TrainingError(f"{path} is not a training state: delete it to start over")
        mine = plain(self.recipe.to_json())
        differing = [key for key in mine if stored["recipe"].get(key) != mine[key]]
        if differing:
            key = differing[0]
            raise TrainingError(
                f"{path.parent} holds a run with {key} = {stored['recipe'].get(key)}, not {mine[key]}: "
                "use the same settings to go on, or another --out to start anew"
            )
        try:
            self.module.load_state_dict(stored["module"])
            self.optimizer.load_state_dict(stored["optimizer"])
        except (RuntimeError, ValueError, KeyError) as error:  # the source of a network of the user's own has changed
            raise TrainingError(
                f"{path} does not fit network '{self.recipe.network}' as it is now: delete it to start over"
            ) from error
        self.average = cast("dict[str, Tensor] | None", stored["average"])
        self.epoch, self.step = int(stored["epoch"]), int(stored["step"])
