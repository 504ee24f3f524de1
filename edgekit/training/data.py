"""Training samples: frames decoded once into one file, augmented by a seed that depends only on epoch and position."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageStat
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from calibration.datasets import Split
from edgekit.core.errors import EdgekitError
from edgekit.core.files import disk_errors, make_folder, read_sealed, sha256_path, write_sealed
from edgekit.core.values import IGNORE, Size, UInt8
from edgekit.training.recipe import TrainingRecipe


def decoded_frames(
    split: Split, folder: Path, report: Callable[[int, int], None] | None = None, identity: str | None = None
) -> tuple[list[tuple[int, int, int]], Path]:
    """Decode a split once: pixels and labels of all frames, 4 bytes a pixel, in one file that workers map.

    Decoding (or drawing) a frame costs more than a training step on a crop of it. The file is kept for as long as the
    frames' identity stays the same. Returns (offset, height, width) per frame and the file.

    Args:
        identity: the split's, of a caller that has it: to find it, every file is read.
    """
    index_path, data_path = folder / "frames.json", folder / "frames.bin"
    identity = split.identity() if identity is None else identity
    if index_path.is_file() and data_path.is_file():
        with suppress(EdgekitError):  # edited or damaged since: decoded again
            stored = read_sealed(index_path)
            if stored["identity"] == identity and stored["data"] == sha256_path(data_path):
                return [tuple(entry) for entry in stored["index"]], data_path
    make_folder(folder)
    index_path.unlink(missing_ok=True)
    index: list[tuple[int, int, int]] = []
    offset, digest = 0, hashlib.sha256()
    try:
        with disk_errors(data_path), data_path.open("wb") as file:
            for number, reference in enumerate(split.references):
                if report is not None:
                    report(number, len(split))
                frame = reference.load()
                height, width = frame.labels.shape
                packed = np.ascontiguousarray(np.dstack([frame.image, frame.labels]))
                file.write(packed.data)
                digest.update(packed.data)
                index.append((offset, height, width))
                offset += packed.nbytes
            file.flush()
            os.fsync(file.fileno())
    except BaseException:  # many gigabytes that nothing would use
        data_path.unlink(missing_ok=True)
        raise
    write_sealed(index_path, {"identity": identity, "data": digest.hexdigest(), "index": index})
    return index, data_path


def holds_a_class(index: list[tuple[int, int, int]], path: Path) -> bool:
    """Whether any pixel of the decoded frames has a class; looks no further than the first that has."""
    if not index:
        return False
    data = np.memmap(path, np.uint8, "r")
    return any((data[offset + 3 : offset + height * width * 4 : 4] != IGNORE).any() for offset, height, width in index)


def augment(packed: UInt8, recipe: TrainingRecipe, generator: np.random.Generator) -> tuple[UInt8, UInt8]:
    """Random scale, crop, flip and colours of one frame.

    uint8 [H, W, 4] (RGB and label) -> uint8 [h, w, 3] and uint8 [h, w]. What the crop holds beyond the frame is mean grey,
    label 255. The crop is cut before it is scaled, so that its cost does not depend on the frame's size.
    """
    crop = Size.parse(recipe.crop)
    height, width = packed.shape[:2]
    low, high = recipe.scale
    factor = float(np.exp(generator.uniform(np.log(low), np.log(high))))
    meant = Size.parse(recipe.frame_size) if recipe.frame_size else Size(height, width)
    down, across = factor * meant.height / height, factor * meant.width / width
    need = (min(height, math.ceil(crop.height / down)), min(width, math.ceil(crop.width / across)))
    top = int(generator.integers(0, height - need[0] + 1))
    left = int(generator.integers(0, width - need[1] + 1))
    window = packed[top : top + need[0], left : left + need[1]]
    new = (min(crop.width, max(1, round(need[1] * across))), min(crop.height, max(1, round(need[0] * down))))
    image = Image.fromarray(np.ascontiguousarray(window[..., :3])).resize(new, Image.Resampling.BILINEAR)
    labels = Image.fromarray(np.ascontiguousarray(window[..., 3])).resize(new, Image.Resampling.NEAREST)
    if recipe.colour_jitter or recipe.white_balance:
        image = image.convert("RGB", _colours(image, recipe, generator))
    if recipe.flip and generator.random() < 0.5:
        image, labels = (plane.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for plane in (image, labels))
    whole = (crop.width, crop.height)
    if image.size != whole:
        y, x = int(generator.integers(0, crop.height - new[1] + 1)), int(generator.integers(0, crop.width - new[0] + 1))
        grey, unlabelled = Image.new("RGB", whole, (124, 124, 124)), Image.new("L", whole, IGNORE)
        grey.paste(image, (x, y))
        unlabelled.paste(labels, (x, y))
        image, labels = grey, unlabelled
    return np.array(image), np.array(labels)


def _colours(image: Image.Image, recipe: TrainingRecipe, generator: np.random.Generator) -> tuple[float, ...]:
    """A random change of brightness, contrast, saturation and each channel's gain: 3 x 4, as Pillow reads it.

    All four are affine in a pixel's colour, so that one pass does, and what leaves 0..255 is cut off once, at its end.
    """
    brightness = contrast = saturation = 1.0
    gains = np.ones(3)
    if amount := recipe.colour_jitter:
        brightness, contrast, saturation = generator.uniform(1 - amount, 1 + amount, 3)
    if recipe.white_balance:
        gains = generator.uniform(1 - recipe.white_balance, 1 + recipe.white_balance, 3)
    mean = brightness * float(np.mean(ImageStat.Stat(image).mean))
    mixing = contrast * brightness * (saturation * np.eye(3) + (1 - saturation) / 3)
    offset = np.full((3, 1), (1 - contrast) * mean)
    return tuple((gains[:, None] * np.hstack([mixing, offset])).ravel().tolist())


def paste_classes(
    crop: tuple[UInt8, UInt8], other: tuple[UInt8, UInt8], generator: np.random.Generator
) -> tuple[UInt8, UInt8]:
    """Lay every pixel of half the classes that ``other`` shows, drawn at random, over a crop of the same size.

    ClassMix (Olsson et al. 2021, https://arxiv.org/abs/2007.07936), here with true labels on both sides. Pixels without a
    class are never laid over others.
    """
    image, labels = crop
    counts = np.bincount(other[1].ravel(), minlength=256)
    counts[IGNORE] = 0
    classes = np.flatnonzero(counts)
    chosen = np.zeros(256, bool)
    chosen[generator.permutation(classes)[: (len(classes) + 1) // 2]] = True
    laid = chosen[other[1]]
    return np.where(laid[..., None], other[0], image), np.where(laid, other[1], labels)


class Crops(Dataset[tuple[Tensor, Tensor]]):
    """Augmented crops, indexed by ``epoch * frames + frame``: uint8 [h, w, 3] and uint8 [h, w]."""

    def __init__(self, index: list[tuple[int, int, int]], path: Path, recipe: TrainingRecipe) -> None:
        self.index = index
        self.path = path
        self.recipe = recipe
        self._data: UInt8 | None = None

    def __len__(self) -> int:
        return len(self.index) * self.recipe.epochs

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor]:
        generator = np.random.default_rng([self.recipe.seed, position])
        image, labels = self._augmented(position % len(self.index), generator)
        if self.recipe.class_mix and generator.random() < self.recipe.class_mix:
            other = self._augmented(int(generator.integers(0, len(self.index))), generator)
            image, labels = paste_classes((image, labels), other, generator)
        return torch.from_numpy(image), torch.from_numpy(labels)

    def _augmented(self, frame: int, generator: np.random.Generator) -> tuple[UInt8, UInt8]:
        if self._data is None:  # mapped in the worker, not carried there
            self._data = np.memmap(self.path, np.uint8, "r")
        offset, height, width = self.index[frame]
        packed = self._data[offset : offset + height * width * 4].reshape(height, width, 4)
        return augment(packed, self.recipe, generator)


def epoch_order(frames: int, recipe: TrainingRecipe, epoch: int) -> list[int]:
    """Positions of one epoch in :class:`Crops`, in a seeded order of its own."""
    order = np.random.default_rng([recipe.seed, 1 << 40, epoch]).permutation(frames)
    positions: list[int] = (order + epoch * frames).tolist()
    return positions


class BatchOrder(Sampler[list[int]]):
    """The positions of each batch from an epoch on, to the last: the share of process ``rank`` of ``size``.

    Of each batch it takes every ``size``-th position, so that all together see what one alone would. Epochs follow on one
    another, so that nobody waits for the first crops of the next. Of a last incomplete batch one process might hold a frame
    more than the others: nobody trains on it, unless it is all there is.
    """

    def __init__(self, frames: int, recipe: TrainingRecipe, epoch: int = 0, rank: int = 0, size: int = 1) -> None:
        self.frames, self.recipe, self.epoch = frames, recipe, epoch
        self.rank, self.size = rank, size
        self.steps = max(1, frames // recipe.batch)

    def __len__(self) -> int:
        return self.steps * (self.recipe.epochs - self.epoch)

    def __iter__(self) -> Iterator[list[int]]:
        for epoch in range(self.epoch, self.recipe.epochs):
            positions = epoch_order(self.frames, self.recipe, epoch)
            for first in range(0, self.steps * self.recipe.batch, self.recipe.batch):
                yield positions[first : first + self.recipe.batch][self.rank :: self.size]
