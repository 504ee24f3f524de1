"""Datasets as sequences of frames: where they lie, what their labels mean, and clear words for what is wrong with them."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image

from calibration import streets
from calibration.classes import (
    CAMVID,
    CAMVID_MAP,
    CAMVID_VALUES,
    CITYSCAPES,
    CITYSCAPES_LABEL_IDS,
    CITYSCAPES_MAP,
    CITYSCAPES_VALUES,
)
from calibration.images import images_in, is_stray, read_image, read_plane
from edgekit.core.errors import DataError, UsageError
from edgekit.core.files import sha256_json, sha256_path
from edgekit.core.values import IGNORE, ClassSet, Int32, Size, UInt8

DatasetName = Literal["streets", "cityscapes", "camvid"]
DATASETS: tuple[DatasetName, ...] = ("streets", "cityscapes", "camvid")
SPLITS = ("train", "val", "test")
CLASS_SETS: Mapping[str, ClassSet] = {"streets": CITYSCAPES, "cityscapes": CITYSCAPES, "camvid": CAMVID}
ROOT_VARIABLES: Mapping[str, str] = {"cityscapes": "CITYSCAPES_DATASET", "camvid": "CAMVID_ROOT"}
STREETS_FRAMES: Mapping[str, int] = {"train": 2000, "val": 64, "test": 64}
STREETS_DEFAULT_SIZE = Size(512, 1024)
LABELS_SIDE = 128
"""The shorter side at which scenes are drawn only to see which classes they show."""
NO_INSTANCE = -1


@dataclass(frozen=True)
class Frame:
    """One labelled frame at its native size.

    Attributes:
        name: short, unique within its split.
        image: uint8 [H, W, 3] RGB.
        labels: uint8 [H, W] train ids, 255 where no metric counts.
        instances: int32 [H, W], train id * 1000 + n, -1 where there is no instance; None for datasets without.
    """

    name: str
    image: UInt8
    labels: UInt8
    instances: Int32 | None = None


@dataclass(frozen=True)
class FrameReference:
    """A frame not yet loaded; its functions can be pickled, since conversions run in processes of their own.

    Attributes:
        name: as in :class:`Frame`.
        identity: a hash that changes when its pixels or labels do.
        load: image, labels and instances.
        image_identity, load_image: the same of the image alone, for calibration, which needs no labels.
        load_labels: train ids alone, uint8 [h, w] of any size, for counting.
    """

    name: str
    identity: Callable[[], str]
    load: Callable[[], Frame]
    image_identity: Callable[[], str]
    load_image: Callable[[], UInt8]
    load_labels: Callable[[], UInt8]


@dataclass(frozen=True)
class Split:
    """An ordered part of a dataset.

    Attributes:
        dataset, split: their names.
        classes: of the dataset; ``instance_pixels`` fitted to the frames' size.
        references: the frames.
    """

    dataset: str
    split: str
    classes: ClassSet
    references: tuple[FrameReference, ...]

    def __len__(self) -> int:
        return len(self.references)

    def first(self, count: int | None) -> Split:
        """The first ``count`` frames (all for None), spread evenly over the split."""
        total = len(self.references)
        if count is None or count >= total:
            return self
        return replace(self, references=tuple(self.references[index * total // count] for index in range(count)))

    def identity(self) -> str:
        """Hash of all frames' identities, in order."""
        return sha256_json([reference.identity() for reference in self.references])

    def images(self) -> frozenset[str]:
        """Identities of the frames' images: whether two splits share one."""
        return frozenset(reference.image_identity() for reference in self.references)

    def image_identity(self) -> str:
        """Hash of all frames' images, in order, labels left out."""
        return sha256_json([reference.image_identity() for reference in self.references])


def unlabelled(split: Split) -> Split:
    """The same images, without a label that would have to be there: all void."""
    return replace(
        split,
        references=tuple(
            replace(
                reference,
                identity=reference.image_identity,
                load=partial(_load_unlabelled, reference.name, reference.load_image),
                load_labels=partial(_load_void, reference.load_image),
            )
            for reference in split.references
        ),
    )


def _load_unlabelled(name: str, load_image: Callable[[], UInt8]) -> Frame:
    image = load_image()
    return Frame(name, image, np.full(image.shape[:2], IGNORE, np.uint8))


def _load_void(load_image: Callable[[], UInt8]) -> UInt8:
    return np.full(load_image().shape[:2], IGNORE, np.uint8)


def class_set(dataset: str) -> ClassSet:
    """Classes of a dataset by name.

    Raises:
        UsageError: no such dataset.
    """
    if dataset not in CLASS_SETS:
        known = ", ".join(f"{name} ({len(CLASS_SETS[name])} classes)" for name in DATASETS)
        own = "; classes of your own cannot be named yet" if "," in dataset else ""
        raise UsageError(f"there is no dataset '{dataset}': choose from {known}{own}")
    return CLASS_SETS[dataset]


def open_split(dataset: str, split: str, root: Path | None = None, size: Size | None = None) -> Split:
    """The frames of one split.

    Args:
        dataset: ``streets``, ``cityscapes`` or ``camvid``.
        split: ``train``, ``val`` or ``test``.
        root: the dataset's folder; by default from ``CITYSCAPES_DATASET`` or ``CAMVID_ROOT``.
        size: size at which ``streets`` are drawn; the others have their own.

    Raises:
        UsageError: unknown dataset or split.
        DataError: no root, or no frames there.
    """
    class_set(dataset)
    if split not in SPLITS:
        raise UsageError(f"there is no split '{split}': choose from {', '.join(SPLITS)}")
    if dataset == "streets":
        return _streets(split, size or STREETS_DEFAULT_SIZE)
    folder = find_root(dataset, root)
    return _cityscapes(folder, split) if dataset == "cityscapes" else _camvid(folder, split)


def join_splits(splits: Sequence[Split]) -> Split:
    """Several splits of one dataset as one, named like ``train+val``."""
    references = tuple(reference for split in splits for reference in split.references)
    return replace(splits[0], split="+".join(split.split for split in splits), references=references)


def root_of(dataset: str, first: str, root: Path | None) -> Path | None:
    """The folder given to a command that reads two datasets, as far as it is ``dataset``'s: it is the ``first`` one's, or the
    other's where the first is drawn and has none."""
    return root if dataset == first or first not in ROOT_VARIABLES else None


def find_root(dataset: str, root: Path | None) -> Path:
    """Folder of a dataset, from the argument or its environment variable.

    Raises:
        DataError: neither given, or not a folder.
    """
    variable = ROOT_VARIABLES[dataset]
    if root is None:
        value = os.environ.get(variable)
        if not value:
            raise DataError(
                f"no {dataset} folder is given: pass --data-root PATH or set {variable}; --calib streets (or --data streets) needs none"
            )
        root = Path(value)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give the {dataset} folder with --data-root PATH or {variable}")
    return root


def _streets(split: str, size: Size) -> Split:
    area = size.height * size.width / (1024 * 2048)
    classes = replace(
        CITYSCAPES, instance_pixels={name: pixels * area for name, pixels in CITYSCAPES.instance_pixels.items()}
    )

    def reference(index: int) -> FrameReference:
        identity = partial(_streets_identity, split, index, size)
        load = partial(_load_streets, split, index, size)
        labels = partial(_labels_of_streets, split, index, size)
        return FrameReference(f"{split}-{index:04d}", identity, load, identity, partial(_image_of, load), labels)

    return Split("streets", split, classes, tuple(reference(index) for index in range(STREETS_FRAMES[split])))


def _streets_identity(split: str, index: int, size: Size) -> str:
    return sha256_json(["streets", streets.VERSION, split, index, str(size)])


def _load_streets(split: str, index: int, size: Size) -> Frame:
    scene = streets.draw(split, index, size.height, size.width)
    return Frame(f"{split}-{index:04d}", scene.image, scene.labels, _instances(scene.instances))


def _image_of(load: Callable[[], Frame]) -> UInt8:
    return load().image


def _labels_of_streets(split: str, index: int, size: Size) -> UInt8:
    """The same scene, drawn small."""
    scale = min(1.0, LABELS_SIDE / min(size.height, size.width))
    return streets.draw(split, index, round(size.height * scale), round(size.width * scale)).labels


def _files_identity(*paths: Path) -> str:
    return sha256_json([sha256_path(path) for path in paths if path.is_file()])


def _cityscapes(root: Path, split: str) -> Split:
    found = sorted((root / "leftImg8bit" / split).glob("*/*_leftImg8bit.png"))
    images = [path for path in found if not is_stray(path)]
    if not images:
        raise DataError(
            f"no frames under {root / 'leftImg8bit' / split}: --data-root must hold leftImg8bit/ and gtFine/ with split {split}"
        )

    def reference(image: Path) -> FrameReference:
        stem = image.name.removesuffix("_leftImg8bit.png")
        labels = root / "gtFine" / split / image.parent.name / f"{stem}_gtFine_labelIds.png"
        instances = labels.with_name(f"{stem}_gtFine_instanceIds.png")

        return FrameReference(
            stem, partial(_files_identity, image, labels, instances), partial(_load_cityscapes, image, labels, instances),
            partial(sha256_path, image), partial(read_image, image), partial(_train_ids, labels, CITYSCAPES_MAP, CITYSCAPES_VALUES),
        )  # fmt: skip

    return Split("cityscapes", split, CITYSCAPES, tuple(reference(image) for image in images))


def _load_cityscapes(image: Path, labels: Path, instances: Path) -> Frame:
    pixels = read_image(image)
    train_ids = CITYSCAPES_MAP[read_labels(labels, pixels, CITYSCAPES_VALUES)]
    found = _instances(_read_instances(instances, pixels)) if instances.is_file() else None
    return Frame(image.name.removesuffix("_leftImg8bit.png"), pixels, train_ids, found)


def _camvid(root: Path, split: str) -> Split:
    folder, labels_folder = root / split, root / f"{split}annot"
    images = images_in(folder)
    if not images:
        raise DataError(f"no frames in {folder}: --data-root must hold {split}/ and {split}annot/ (the SegNet layout)")
    # Cambridge's own masks are named after their frame with "_L" behind.
    annotations = {path.stem.removesuffix("_L"): path for path in images_in(labels_folder)}

    def reference(image: Path) -> FrameReference:
        labels = annotations.get(image.stem, labels_folder / f"{image.stem}.png")
        return FrameReference(
            image.stem, partial(_files_identity, image, labels), partial(_load_camvid, image, labels),
            partial(sha256_path, image), partial(read_image, image), partial(_train_ids, labels, CAMVID_MAP, CAMVID_VALUES),
        )  # fmt: skip

    return Split("camvid", split, CAMVID, tuple(reference(image) for image in images))


def _load_camvid(image: Path, labels: Path) -> Frame:
    pixels = read_image(image)
    return Frame(image.stem, pixels, CAMVID_MAP[read_labels(labels, pixels, CAMVID_VALUES)])


def _train_ids(labels: Path, to_train_ids: UInt8, values: frozenset[int]) -> UInt8:
    return to_train_ids[read_plane(labels, values).clip(0, 255).astype(np.uint8)]


def read_labels(path: Path, image: UInt8, values: frozenset[int]) -> UInt8:
    """A label image of one byte a pixel, as stored: uint8 [H, W].

    Raises:
        DataError: missing, damaged, of another size than its frame, or with a value the dataset does not define.
    """
    labels = _read_plane(path, image, values)
    if labels.min() < 0 or labels.max() > 255:
        raise DataError(
            f"{path} holds label {int(labels.max())}, outside one byte: it is not this dataset's label image"
        )
    present = np.flatnonzero(np.bincount(labels.ravel(), minlength=256)).tolist()
    unknown = [value for value in present if value not in values]
    if unknown:
        raise DataError(
            f"{path} holds label {unknown[0]}, which this dataset does not define: check the file or the --data name"
        )
    return labels.astype(np.uint8)


def _read_instances(path: Path, image: UInt8) -> Int32:
    instances = _read_plane(path, image)
    if instances.min() < 0 or instances.max() >= 256_000:
        odd = int(instances.min() if instances.min() < 0 else instances.max())
        raise DataError(
            f"{path} holds {odd}, and an instance id is labelId * 1000 + n: use the dataset's instanceIds images"
        )
    return instances


def _read_plane(path: Path, image: UInt8, values: frozenset[int] | None = None) -> Int32:
    plane = read_plane(path, values)
    if plane.shape != image.shape[:2]:
        raise DataError(
            f"{path} is {Size(*plane.shape)} but its frame is {Size(*image.shape[:2])}: use the label image that belongs to the frame"
        )
    return plane


def _instances(instance_ids: Int32) -> Int32:
    """Cityscapes' instanceIds (labelId * 1000 + n, plain labelId elsewhere) -> train id * 1000 + n, else -1."""
    label_ids = instance_ids // 1000
    train_ids = np.full(int(max(label_ids.max(), 33)) + 1, IGNORE, np.int32)
    train_ids[list(CITYSCAPES_LABEL_IDS)] = np.arange(len(CITYSCAPES_LABEL_IDS))
    train = train_ids[label_ids]
    # The official evaluation counts ids above 1000; groups (plain labelIds of things) are no instances.
    return np.where((instance_ids > 1000) & (train != IGNORE), train * 1000 + instance_ids % 1000, NO_INSTANCE).astype(
        np.int32
    )


def resize_image(image: UInt8, size: Size) -> UInt8:
    """uint8 [H, W, 3] -> uint8 [size, 3], bilinear with antialiasing; unchanged when the size is right already."""
    if image.shape[:2] == (size.height, size.width):
        return image
    resized = Image.fromarray(image).resize((size.width, size.height), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.uint8)


def resize_labels(labels: UInt8, size: Size) -> UInt8:
    """uint8 [H, W] -> uint8 [size], nearest; unchanged when the size is right already."""
    if labels.shape == (size.height, size.width):
        return labels
    resized = Image.fromarray(labels).resize((size.width, size.height), Image.Resampling.NEAREST)
    return np.asarray(resized, np.uint8)
