"""The training loop: one code path, resumable after every epoch or every few, stopping before a bad number spoils a good checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sized
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from calibration.datasets import Split, class_set, resize_image, resize_labels
from edgekit.core.errors import TrainingError, first_line
from edgekit.core.files import write_json
from edgekit.core.values import Int64, Normalization, Size
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.metrics.scores import add_counts, count_frame, score
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import (
    NETWORKS,
    Checkpoint,
    Description,
    build_network,
    check_finite,
    load_network,
    load_state,
    read_metadata,
    save_checkpoint,
)
from edgekit.networks.subnormals import flush_subnormals
from edgekit.runtimes.common import available_cores, bounded_threads
from edgekit.training import mixed
from edgekit.training.capture import capture
from edgekit.training.data import BatchOrder, Crops, decoded_frames
from edgekit.training.distributed import Group, distribute, join_group
from edgekit.training.losses import (
    at_labels,
    class_weights,
    cross_entropy,
    lovasz_softmax,
    pixel_counts,
    taught_cross_entropy,
)
from edgekit.training.recipe import TrainingRecipe
from edgekit.training.state import STATE_NAME, TrainingState

MOST_WORKERS = 16
"""A GPU is given no more workers unasked: each holds four batches in shared memory."""
HISTORY_NAME = "history.json"
"""After each epoch: loss (mean over its steps), learning rate of its last step, images a second, and val mIoU where measured."""


@dataclass(frozen=True)
class Progress:
    """Where training stands; handed to the caller's callback whenever a loss is read."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Training:
    """What is trained, on what, and how it is kept.

    Attributes:
        recipe: what to train; a resumed run must have the same.
        data: training frames.
        folder: holds the decoded frames, the state after the last epoch, and the checkpoint.
        name: of the checkpoint.
        command: as typed, recorded in the checkpoint.
        validation: frames to report mIoU on along the way and at the end.
        test: frames evaluated once, at the end.
        save_every: epochs between the states that a killed run can go on from; one is kept before each validation, too, and
            at the end.
        workers: processes that prepare crops; None takes 1 for a CPU and, for a GPU, one per core but one, at most 16.
        initial: weights to start from; ``recipe.initial`` is its hash.
        teacher: a trained network to learn from as well; ``recipe.teacher`` is its hash.
        missing_classes: go on although a class never occurs in the training frames.
    """

    recipe: TrainingRecipe
    data: Split
    folder: Path
    name: str
    command: str
    validation: Split | None = None
    test: Split | None = None
    validate_every: int = 10
    save_every: int = 1
    workers: int | None = None
    device: str = "cpu"
    threads: int | None = None
    initial: Checkpoint | None = None
    teacher: Checkpoint | None = None
    missing_classes: bool = False


@dataclass(frozen=True)
class Reports:
    """Who is told: progress per step (on a GPU, every 16 steps), lines worth keeping, and frames decoded, done and total."""

    step: Callable[[Progress], None] = lambda progress: None
    say: Callable[[str], None] = lambda line: None
    decoding: Callable[[int, int], None] | None = None


def train(plan: Training, reports: Reports) -> Path:
    """Train, or go on where a killed run stopped, and write the plan's ``folder/name.safetensors``.

    Started by ``torchrun``, each process takes its share of every batch; the first one writes.

    Raises:
        TrainingError: another recipe or a run on other frames lies in the folder, the loss is not finite, a class never
            occurs, or the teacher knows other classes or reads other pixels.
    """
    recipe, data, folder = plan.recipe, plan.data, plan.folder
    initial, teacher, validation, test = plan.initial, plan.teacher, plan.validation, plan.test
    say = reports.say
    recipe.check()
    flush_subnormals()
    if plan.threads:
        torch.set_num_threads(bounded_threads(plan.threads))
    with join_group(plan.device) as group:
        if recipe.batch % group.size:
            raise TrainingError(f"--batch {recipe.batch} cannot be shared by {group.size} processes: use a multiple")
        validates = validation is not None
        if not group.leads:  # it trains, and leaves speaking, evaluating and writing to the first
            reports, validation, test = Reports(), None, None
            say = reports.say
        torch.manual_seed(recipe.seed)
        normalization = Normalization() if initial is None else initial.normalization
        state_path = folder / STATE_NAME
        guide = None if teacher is None else _guide(teacher, data, normalization, group)
        frames = data.identity()
        logits, state = _network(recipe, frames, initial if not state_path.is_file() else None, group, say)
        if state_path.is_file():
            state.restore(state_path)
            say(f"resuming after epoch {state.epoch} of {recipe.epochs}")
            if state.source_changed:
                say(
                    f"the source of {recipe.network} has changed since this run began: its weights go on with what it is"
                )
        index, path = _decoded(plan, frames, group, say, reports.decoding)
        counts = pixel_counts(index, path, len(data.classes))
        _check_frames(plan, index, counts, group, say)
        weights = class_weights(counts, recipe.class_balance)
        batches = _Batches(Crops(index, path, recipe), recipe, normalization, state.epoch, group, plan.workers)

        def due() -> bool:
            return validates and state.epoch % plan.validate_every == 0 and 0 < state.epoch < recipe.epochs

        def validate() -> None:
            """Measure the epoch that was kept last, and keep the result beside it."""
            assert validation is not None
            miou: float | None = evaluate_network(state.evaluated(), validation, normalization, recipe.frame_size)[
                "miou"
            ]
            say(f"epoch {state.epoch}: {validation.split} mIoU {_written(miou)}")
            if miou is not None:
                state.history[-1]["miou"] = miou
                state.save(state_path)
                write_json(folder / HISTORY_NAME, state.history)

        if group.leads and due() and "miou" not in state.history[-1]:  # killed after it was kept
            validate()
        group.wait()

        if state.epoch < recipe.epochs:
            state.trains_on(group.device)
            if recipe.network in NETWORKS:  # one of the user's may decide by a value
                logits = capture(logits.train(), group, recipe, batches.images)
        checkpoint = folder / f"{plan.name}.safetensors"
        # What a finished run has been evaluated on stays, whatever it is evaluated on now.
        known = state.epoch == recipe.epochs and checkpoint.is_file()
        metrics = dict((read_metadata(checkpoint) or {}).get("metrics", {})) if known else {}
        clock = _Clock(time.monotonic(), state.step, reports.step)
        student = _Student(logits, guide, None if weights is None else weights.to(group.device))
        while state.epoch < recipe.epochs:
            seen = _train_epoch(state, student, batches, group, folder, clock)
            state.epoch += 1
            state.history.append(seen)
            last = state.epoch == recipe.epochs
            if state.epoch % plan.save_every == 0 or due() or last:
                if group.leads:
                    state.save(state_path)
                state.kept = state.epoch
            if group.leads:
                write_json(folder / HISTORY_NAME, state.history)
                if due():  # the epoch was kept first
                    validate()
            group.wait()
        if group.leads:
            described = recipe.to_json() | {"command": plan.command, "devices": list(state.devices)}
            for role, other in (("initial", initial), ("teacher", teacher)):
                if other is not None:
                    described[f"{role}_checkpoint"] = {"name": other.name, "recipe": dict(other.recipe)}
            splits = [split for split in (validation, test) if split is not None]
            _finish(checkpoint, state, normalization, described, metrics, splits, say)
        group.wait()
        return checkpoint


def _network(
    recipe: TrainingRecipe, frames: str, initial: Checkpoint | None, group: Group, say: Callable[[str], None]
) -> tuple[nn.Module, TrainingState]:
    """The network on its device, wrapped for its group, and the state around the bare one."""
    classes = len(class_set(recipe.dataset))
    module = build_network(recipe.network, classes, recipe.arguments)
    if recipe.network not in NETWORKS:
        _check_network(module, classes, recipe)
    if initial is not None:
        say(f"starting from {start_from(module, initial)} of the weights of {initial.name}")
    module = channels_last(module.to(group.device))
    if group.device.type == "cpu" and recipe.precision == "bfloat16":
        mixed.prepare(module)
    # A user's network may give a tuple, or channels beyond the classes.
    logits = distribute(Logits(module, classes), group, every_parameter_used=recipe.network in NETWORKS)
    return logits, TrainingState(module, recipe, frames)


def _check_network(module: nn.Module, classes: int, recipe: TrainingRecipe) -> None:
    """Raise TrainingError unless a network of the user's can be trained on the recipe's crops."""
    parameters = list(module.parameters())
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in parameters):
        raise TrainingError(
            f"network {recipe.network} has lazy layers without weights: have its factory call it once, or give their sizes"
        )
    if not any(parameter.requires_grad for parameter in parameters):
        raise TrainingError(
            f"network {recipe.network} has no weight to train: leave requires_grad on where training is to move it"
        )
    crop = Size.parse(recipe.crop)
    try:
        with torch.inference_mode():
            _logits_of(module, classes)(torch.zeros(1, 3, crop.height, crop.width))
    except Exception as error:  # the user's code may raise anything
        raise TrainingError(
            f"network {recipe.network} fails on a crop of {crop} ({type(error).__name__}: {first_line(error)}): "
            "choose a --crop that it takes, or mend it"
        ) from error


def _guide(teacher: Checkpoint, data: Split, normalization: Normalization, group: Group) -> nn.Module:
    """The teacher on its device, which only looks."""
    if teacher.class_names != data.classes.names:
        raise TrainingError(
            f"--teacher {teacher.path} knows {len(teacher.class_names)} classes that are not the {len(data.classes)} of "
            f"{data.dataset}, or not in their order: give one that was trained on {data.dataset}"
        )
    if teacher.normalization != normalization:
        raise TrainingError(
            f"--teacher {teacher.path} reads pixels normalized by {teacher.normalization}, this training by {normalization}: "
            "give one that reads the same"
        )
    network = load_network(teacher, "--teacher-network")
    module = channels_last(network.to(group.device)).requires_grad_(False)
    return _logits_of(module, len(data.classes))


def _decoded(
    plan: Training,
    identity: str,
    group: Group,
    say: Callable[[str], None],
    decoding: Callable[[int, int], None] | None,
) -> tuple[list[tuple[int, int, int]], Path]:
    """The decoded frames, made by the first process and found by the others."""
    if group.leads:
        say(f"decoding {len(plan.data)} frames")
        decoded_frames(plan.data, plan.folder, decoding, identity)
    group.wait()
    return decoded_frames(plan.data, plan.folder, decoding, identity)


class _Batches:
    """This process's share of every batch from an epoch on: float32 [n, 3, h, w] and uint8 [n, h, w] on its device."""

    def __init__(
        self,
        crops: Crops,
        recipe: TrainingRecipe,
        normalization: Normalization,
        epoch: int,
        group: Group,
        workers: int | None,
    ) -> None:
        if workers is None:
            cores = available_cores() // group.here
            workers = 1 if group.device.type == "cpu" else min(MOST_WORKERS, max(1, cores - 1))
        order = BatchOrder(len(crops.index), recipe, epoch, group.rank, group.size)
        self.device = group.device
        self.normalization = normalization
        self.steps = order.steps
        self.images = min(len(crops.index), recipe.batch) // group.size
        self.loader = DataLoader(
            crops,
            batch_sampler=order,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
            pin_memory=group.device.type == "cuda",
            # Its own: workers' seeds, drawn once a process, must not move the dropout of a resumed run.
            generator=torch.Generator(),
        )

    @cached_property
    def loaded(self) -> Iterator[Any]:
        """All batches to come; made where the first is asked for."""
        return iter(self.loader)

    def epoch(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the next epoch."""
        for pixels, labels in islice(self.loaded, self.steps):
            on_device = pixels.to(self.device, non_blocking=True)
            images = normalize(on_device, self.normalization, torch.channels_last)
            yield images, labels.to(self.device, non_blocking=True)


def read_every(device: torch.device) -> int:
    """Steps after which losses are read: a GPU, asked after each, would wait for the next step to be launched."""
    return 1 if device.type == "cpu" else 16


@dataclass(frozen=True)
class _Student:
    """What is trained: the network, its teacher (None without), and the weights of the classes, float32 [C]."""

    logits: nn.Module
    guide: nn.Module | None
    weights: Tensor | None


@dataclass(frozen=True)
class _Clock:
    """When this process began, and at which step; and who is told how it goes."""

    started: float
    first_step: int
    report: Callable[[Progress], None]


def _train_epoch(
    state: TrainingState, student: _Student, batches: _Batches, group: Group, folder: Path, clock: _Clock
) -> dict[str, float]:
    """One pass over the frames. Returns the epoch's history entry.

    Raises:
        TrainingError: a loss or, after the last step, a logit that is not finite; ``folder`` keeps the last good state.
    """
    recipe, epoch = state.recipe, state.epoch
    logits, guide = student.logits, student.guide
    # Dropout, on every device, whether resumed or not.
    torch.manual_seed((recipe.seed << 20) + epoch + 1 + (group.rank << 40))
    logits.train()
    losses: list[float] = []
    unread: list[Tensor] = []
    for step, (images, labels) in enumerate(batches.epoch(), 1):
        rate = recipe.learning_rate_at(state.step, batches.steps)
        for parameters in state.optimizer.param_groups:
            parameters["lr"] = rate
        with mixed.autocast(group.device, recipe.precision):
            output = logits(images)
            with torch.no_grad():
                taught = None if guide is None else guide(images)
        loss = group_loss(output, labels, recipe, student.weights, group, taught)
        unread.append(group.sum(loss))
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own annotation is incomplete
        state.optimizer.step()
        state.step += 1
        state.update_average()
        if step % read_every(group.device) and step < batches.steps:
            continue
        for value in (torch.stack(unread) / group.size).tolist():
            losses.append(value)
            if not math.isfinite(value):
                raise _diverged(f"the loss became {value} in epoch {epoch + 1}, step {len(losses)}", state, folder)
        unread.clear()
        pace = (time.monotonic() - clock.started) / (state.step - clock.first_step)
        left = pace * (batches.steps * recipe.epochs - state.step)
        speed = len(images) * group.size / pace  # of fewer frames than a batch, a step sees all there are
        clock.report(Progress(epoch + 1, recipe.epochs, step, batches.steps, losses[-1], speed, left))
    # The last step's update has met no loss yet: it must not replace a good state unseen.
    bare = _logits_of(state.module, len(class_set(recipe.dataset)))
    with torch.inference_mode(), mixed.autocast(group.device, recipe.precision):
        finite = torch.isfinite(bare(images)).all()
    if float(group.sum(finite.float())) < group.size:
        raise _diverged(f"the logits are not finite after epoch {epoch + 1}", state, folder)
    return {
        "epoch": epoch + 1, "loss": sum(losses) / batches.steps, "learning_rate": rate, "images_per_second": speed
    }  # fmt: skip


def _finish(
    checkpoint: Path,
    state: TrainingState,
    normalization: Normalization,
    described: Mapping[str, Any],
    metrics: dict[str, Any],
    splits: list[Split],
    say: Callable[[str], None],
) -> None:
    """Write the checkpoint, evaluate it, and write it again with what that adds to its metrics."""

    def save() -> None:
        save_checkpoint(
            checkpoint,
            state.evaluated(),
            Description(
                network=state.recipe.network,
                arguments=state.recipe.arguments,
                class_names=class_set(state.recipe.dataset).names,
                normalization=normalization,
                dataset=state.recipe.dataset,
                recipe=described,
                metrics=metrics,
            ),
        )

    save()  # before evaluating: whatever happens there, the weights are kept
    for split in splits:
        scores = evaluate_network(state.evaluated(), split, normalization, state.recipe.frame_size)
        if scores["miou"] is None:
            say(f"{split.dataset} {split.split} has no labels (its owners may keep them): not evaluated")
            continue
        metrics[f"{split.dataset}:{split.split}"] = scores
        say(f"{split.split} mIoU {_written(scores['miou'])} on {len(split)} frames")
    save()


def _written(miou: float | None) -> str:
    return "not defined (no labels)" if miou is None else f"{miou:.4f}"


def _logits_of(module: nn.Module, classes: int) -> nn.Module:
    return Logits(module, classes).eval()


def start_from(module: nn.Module, initial: Checkpoint) -> str:
    """Copy every weight of ``initial`` that fits; returns how many did, as "n of m".

    Raises:
        TrainingError: none does.
        CheckpointError: it holds NaN or infinity.
    """
    own = module.state_dict()
    stored = load_state(initial.path, initial.file_sha256)
    check_finite(initial, stored)
    fitting = {key: value for key, value in stored.items() if key in own and own[key].shape == value.shape}
    if not any(value.is_floating_point() for value in fitting.values()):
        raise TrainingError(f"--initial {initial.path} has no weight that fits the network: give one of its own kind")
    module.load_state_dict(fitting, strict=False)
    return f"{len(fitting)} of {len(own)}"


def _check_frames(plan: Training, index: Sized, counts: Int64, group: Group, say: Callable[[str], None]) -> None:
    data, recipe = plan.data, plan.recipe
    where = f"the {len(index)} frames of {data.dataset} {data.split}"
    if not counts.sum():
        raise TrainingError(f"none of {where} holds a class: check the label images")
    missing = [name for name, count in zip(data.classes.names, counts, strict=True) if not count]
    if missing and not plan.missing_classes:
        raise TrainingError(
            f"{', '.join(missing)} never occur{'s' if len(missing) == 1 else ''} in {where}: "
            "train on more frames, or add --missing-classes to train without"
        )
    if min(recipe.batch, len(index)) < 2 and recipe.network in NETWORKS:
        raise TrainingError(
            f"--batch {recipe.batch} with {len(index)} frames makes steps of one image, on whose one-bin pooling "
            "batch norm cannot be trained: use at least 2 of both"
        )
    if group.size > 1 and len(index) < recipe.batch:
        raise TrainingError(f"--batch {recipe.batch} is more than {where}: use fewer")
    for asked, option in ((recipe.batch, "--batch"), (recipe.frames or 0, "--frames")):
        if asked > len(index):
            say(f"{option} {asked} is more than {where}: it is {len(index)}")


def group_loss(
    logits: Tensor,
    labels: Tensor,
    recipe: TrainingRecipe,
    weights: Tensor | None,
    group: Group,
    taught: Tensor | None = None,
) -> Tensor:
    """This process's part of the loss, such that the mean over all processes is the loss of the whole batch.

    That is exact for cross-entropy and for what a teacher says. Lovász-Softmax is no sum over pixels: there each process
    counts its own frames.

    Args:
        taught: the teacher's logits of the same images, of any stride.
    """
    upsampled, truth = at_labels(logits, labels, recipe.loss_stride)
    loss = _mean(cross_entropy(upsampled, truth, weights), group)
    if recipe.lovasz:
        loss = loss + recipe.lovasz * lovasz_softmax(upsampled, truth)
    if taught is None:
        return loss
    taught, _ = at_labels(taught, labels, recipe.loss_stride)
    part = _mean(taught_cross_entropy(upsampled, taught, weights), group)
    return (1 - recipe.distillation) * loss + recipe.distillation * part


def _mean(parts: tuple[Tensor, Tensor], group: Group) -> Tensor:
    """What this process gives to a mean over processes, so that it becomes the sum over all divided by the weight over all."""
    total, weight = parts
    # A batch of nothing but void has weight 0, and no gradient.
    return total * group.size / group.sum(weight.float()).clamp_min(1e-12)


def _diverged(what: str, state: TrainingState, folder: Path) -> TrainingError:
    kept = f"; the state after epoch {state.kept} is kept in {folder}" if state.kept else ""
    return TrainingError(f"{what}: lower --learning-rate (now {state.recipe.learning_rate}){kept}")


def evaluate_network(
    module: nn.Module, split: Split, normalization: Normalization, frame_size: str = ""
) -> Mapping[str, Any]:
    """Scores of a network on a split as plain values, labels compared at the frames' own size.

    Args:
        frame_size: size that frames are brought to before the network sees them; "" leaves them.

    Returns:
        the scores' JSON form and ``frames``; ``miou`` is None without labels.
    """
    logits = _logits_of(module, len(split.classes))
    device = next(module.parameters()).device
    counts = []
    with torch.inference_mode():
        for reference in split.references:
            frame = reference.load()
            native = Size(*frame.labels.shape)
            size = Size.parse(frame_size) if frame_size else native
            image = resize_image(frame.image, size)
            x = normalize(torch.from_numpy(image[None].copy()).to(device), normalization)
            labels = reference_labels(logits(x), size)[0].to(torch.uint8).cpu().numpy()
            counts.append(count_frame(resize_labels(labels, native), frame.labels, frame.instances, split.classes))
    document = score(add_counts(counts), split.classes).to_json()
    return {**document, "frames": len(split)}
