"""What a command works on: checkpoints beside their classes, splits, calibration frames, targets and precisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from calibration.choice import Choice, choose_frames
from calibration.datasets import CLASS_SETS, Split, class_set, open_split, root_of
from edgekit.core.errors import CheckpointError, DataError, TargetError, UsageError
from edgekit.core.registry import load_target, target_names
from edgekit.core.seam import Target
from edgekit.core.values import IGNORE, Precision, Size
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.accuracy import Frames
from edgekit.pipeline.quantization import Calibration, check_calibration

AGREEMENT_FRAMES = 8
DEFAULT_SPLITS: Mapping[str, str] = {"cityscapes": "val"}
"""Where accuracy is measured by default, test elsewhere; Cityscapes keeps the labels of its test split to itself."""
DEFAULT_SIZES: Mapping[str, Size] = {
    "streets": Size(512, 1024),
    "cityscapes": Size(1024, 2048),
    "camvid": Size(360, 480),
}


def default_size(checkpoint: Checkpoint) -> Size:
    """The size that a checkpoint was trained for, else that its dataset is usually labelled at."""
    drawn = checkpoint.recipe.get("draw_size") if checkpoint.dataset == "streets" else ""
    if meant := checkpoint.recipe.get("frame_size") or drawn:
        return Size.parse(str(meant))
    return DEFAULT_SIZES.get(checkpoint.dataset, DEFAULT_SIZES["streets"])


def open_evaluation(dataset: str, split: str | None, root: Path | None, size: Size, frames: int | None) -> Split:
    """Frames to measure accuracy on; ``split`` None means the dataset's usual one, ``frames`` None all of them."""
    return open_split(dataset, split or DEFAULT_SPLITS.get(dataset, "test"), root, size).first(frames)


def check_classes(checkpoint: Checkpoint, dataset: str) -> None:
    """Raise CheckpointError unless the checkpoint's classes are the dataset's."""
    if checkpoint.class_names != class_set(dataset).names:
        raise CheckpointError(
            f"checkpoint '{checkpoint.name}' has {len(checkpoint.class_names)} classes of "
            f"{checkpoint.dataset or 'an unknown dataset'}, not those of {dataset}: evaluate it on its own dataset"
        )


def open_calibration(dataset: str, root: Path | None, samples: int, size: Size) -> Calibration:
    """Calibration frames from the training split, chosen by class coverage."""
    calibration = Calibration(choose_frames(open_split(dataset, "train", root, size), samples), size)
    check_calibration(calibration)
    return calibration


def chosen_targets(names: Sequence[str] | None) -> tuple[str, ...]:
    """The asked targets, or all installed ones.

    Raises:
        UsageError: one does not exist.
    """
    known = target_names()
    for name in names or ():
        if name not in known:
            raise UsageError(f"there is no target '{name}': choose from {', '.join(known)}")
    return tuple(dict.fromkeys(names)) if names else known


def precisions_of(target: Target, asked: tuple[Precision, ...] | None) -> tuple[Precision, ...]:
    """What to make for a target: the asked ones that it has, or its first float one and int8."""
    if asked is not None:
        return tuple(precision for precision in asked if precision in target.precisions)
    floats = [precision for precision in target.precisions if precision != "int8"]
    return (*floats[:1], *(("int8",) if "int8" in target.precisions else ()))


def check_precisions(targets: Sequence[str], asked: tuple[Precision, ...] | None) -> None:
    """Raise UsageError when none of the targets has any of the asked precisions, so that there is nothing to do."""
    for name in targets:
        try:
            if precisions_of(load_target(name), asked):
                return
        except TargetError:  # stands in the report as a failure
            return
    raise UsageError(f"{', '.join(targets)}: no precision is {' or '.join(asked or ())}: see edgekit targets")


def check_labelled(frames: Frames) -> None:
    """Raise DataError when no frame has a labelled pixel, before hours are spent on them; looks no further than the first that has."""
    if not any((reference.load_labels() != IGNORE).any() for reference in frames.split.references):
        raise DataError(
            f"{frames.split.dataset} {frames.split.split} has no labels (its owners may keep them): choose another --split"
        )


def split_for_agreement(split: Split, samples: int) -> tuple[Choice, Split]:
    """Calibration frames, and others of the same split on which int8 and float are compared.

    With fewer frames than twice ``samples`` each takes half, so that no frame does both.
    """
    total = len(split)
    if total < 2:
        raise DataError(
            f"{split.dataset} {split.split} has {total} frame: at least two are needed, one to calibrate and one to compare on"
        )
    chosen = choose_frames(split, min(samples, total // 2))
    names = {reference.name for reference in chosen.frames.references}
    rest = tuple(reference for reference in split.references if reference.name not in names)
    return chosen, replace(split, references=rest).first(min(AGREEMENT_FRAMES, len(rest)))


def evaluation_split(
    checkpoint: Checkpoint,
    text: str | None,
    default: str,
    root: Path | None,
    calibration_dataset: str,
    size: Size,
    frames: int | None,
) -> tuple[Split | None, str]:
    """The split behind ``DATA:SPLIT``, or the checkpoint's own ``default`` split where its frames are at hand.

    Returns:
        The split, or None and the reason.

    Raises:
        UsageError, DataError: a split was named and cannot be had.
    """
    if text is not None:
        dataset, separator, split_name = text.partition(":")
        if not separator:
            raise UsageError(f"'{text}' must be DATA:SPLIT, for example streets:val")
        check_classes(checkpoint, dataset)
        return open_split(dataset, split_name, root_of(dataset, calibration_dataset, root), size).first(frames), ""
    if checkpoint.dataset not in CLASS_SETS:
        return None, "the checkpoint does not say which dataset it belongs to: give --eval DATA:SPLIT"
    if (checkpoint.dataset, default) == ("cityscapes", "test"):
        return None, "Cityscapes keeps the labels of its test split to itself"
    try:
        own_root = root_of(checkpoint.dataset, calibration_dataset, root)
        return open_split(checkpoint.dataset, default, own_root, size).first(frames), ""
    except DataError as error:
        return None, str(error)


def verification_split(
    checkpoint: Checkpoint,
    text: str | None,
    guide: Split,
    root: Path | None,
    calibration_dataset: str,
    size: Size,
    frames: int | None,
) -> tuple[Split | None, str]:
    """The frames that prove a budget, like :func:`evaluation_split`: by default of test, else of val those that do not guide."""
    found, why_not = evaluation_split(checkpoint, text, "test", root, calibration_dataset, size, frames)
    if found is not None:
        return found, ""
    val, _ = evaluation_split(checkpoint, None, "val", root, calibration_dataset, size, None)
    if val is None:
        return None, why_not
    guiding = guide.images()
    others = tuple(reference for reference in val.references if reference.image_identity() not in guiding)
    if not others:
        return (
            None,
            f"{why_not}, and all frames of val guide it: leave some by --frames, or name others by --verify DATA:SPLIT",
        )
    return replace(val, references=others).first(frames), ""


def refuse_guided(guide: Split, verification: Split) -> None:
    """Raise UsageError when a frame would both guide a repair and prove it: what was chosen to hold there holds there."""
    guiding = guide.images()
    for reference in verification.references:
        if reference.image_identity() in guiding:
            raise UsageError(
                f"frame '{reference.name}' of {verification.dataset} {verification.split} would both guide what stays in float "
                "and prove the budget: name other frames with --verify DATA:SPLIT, or with --eval"
            )
