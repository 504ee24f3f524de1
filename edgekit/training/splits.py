"""Frames that a training learns from, and those that may judge it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from calibration.datasets import Split, join_splits, open_split
from edgekit.core.errors import DataError
from edgekit.core.values import Size
from edgekit.networks.checkpoint import Checkpoint, trained_on
from edgekit.training.recipe import TrainingRecipe


@dataclass(frozen=True)
class Splits:
    """Frames to train on, to report mIoU on along the way, and to judge the end by; None where none may."""

    training: Split
    validation: Split | None
    test: Split | None


def training_splits(
    recipe: TrainingRecipe,
    root: Path | None,
    others: Sequence[Checkpoint],
    say: Callable[[str], None],
    *,
    with_test: bool,
) -> Splits:
    """The splits of a recipe's dataset. What the training saw judges nothing, nor what led to it: ``others``.

    Args:
        root: the dataset's folder.
        others: checkpoints that it starts from or learns from.
        say: is told of a split that is left out, or may prove nothing.
        with_test: whether the test split is looked at.

    Raises:
        DataError: there are no training frames.
    """
    drawn = Size.parse(recipe.draw_size)
    parts = recipe.split.split("+")
    training = join_splits([open_split(recipe.dataset, part, root, drawn) for part in parts]).first(recipe.frames)
    found: dict[str, Split] = {}
    for name in ("val", "test") if with_test else ("val",):
        try:
            opened = open_split(recipe.dataset, name, root, drawn)
            opened.references[0].load()
        except DataError:  # a dataset may keep its test labels to itself, and a sample of it may have one split only
            continue
        if name in parts:
            continue
        saw = {one.name: trained_on(one.recipe, recipe.dataset, name) for one in others}
        if seen := [one for one, answer in saw.items() if answer]:
            say(f"{name} is not evaluated: {' and '.join(seen)} saw it in training")
            continue
        if unknown := [one for one, answer in saw.items() if answer is None]:
            say(f"{name} may prove nothing: whether {' and '.join(unknown)} saw it in training is not known")
        found[name] = opened
    return Splits(training, found.get("val"), found.get("test"))
