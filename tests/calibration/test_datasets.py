"""Datasets at the seam: what a frame holds, and which file or setting an error names."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from calibration import streets
from calibration.choice import choose_frames
from calibration.classes import CAMVID, CAMVID_MAP, CITYSCAPES, CITYSCAPES_LABEL_IDS, CITYSCAPES_MAP
from calibration.datasets import (
    STREETS_FRAMES,
    class_set,
    open_split,
    resize_image,
    resize_labels,
    unlabelled,
)
from calibration.images import read_image
from edgekit.core.errors import DataError, EdgekitError, UsageError
from edgekit.core.values import IGNORE, Size

SMALL = Size(128, 256)


def refused(action: Callable[[], Any], kind: type[EdgekitError], *words: str) -> None:
    with pytest.raises(EdgekitError) as caught:
        action()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert caught.value.exit_code == (2 if kind is UsageError else 1)
    assert "\n" not in message
    for word in words:
        assert word in message, f"'{word}' is not in: {message}"


# Streets


def test_streets_split_sizes() -> None:
    for split, frames in STREETS_FRAMES.items():
        assert len(open_split("streets", split)) == frames
    assert open_split("streets", "val").references[0].load().image.shape == (512, 1024, 3)


def test_streets_are_deterministic_and_identified() -> None:
    first, second = (open_split("streets", "train", size=SMALL).references[5] for _ in range(2))
    a, b = first.load(), second.load()
    assert (a.name, a.image.dtype, a.labels.dtype, a.instances.dtype) == (b.name, np.uint8, np.uint8, np.int32)
    assert np.array_equal(a.image, b.image)
    assert np.array_equal(a.labels, b.labels)
    assert np.array_equal(a.instances, b.instances)
    assert first.identity() == second.identity()
    assert first.identity() != open_split("streets", "train", size=Size(128, 258)).references[5].identity()
    assert first.identity() != open_split("streets", "val", size=SMALL).references[5].identity()


DRAWN: list[tuple[str, int, int, int, str, str, list[float]]] = [
    ("train", 0, 64, 128, "5d9fb29020720c49", "3bd93dbf770db298", [
        61.1, 69.1, 63.3, 80.7, 91.7, 71.9, 87.9, 102.5, 85.8, 68.4, 81.0, 60.4, 69.2, 69.5, 60.6, 74.4, 79.7, 71.9, 72.3,
        78.0, 71.5, 57.6, 57.7, 52.8,
    ]),
    ("val", 3, 96, 160, "09598c608433f6ef", "ff94eacfb37db7eb", [
        82.4, 85.7, 78.2, 72.1, 75.0, 71.5, 86.2, 77.7, 65.5, 72.1, 72.1, 62.2, 66.1, 65.4, 53.9, 65.3, 63.4, 52.0, 69.3,
        63.7, 54.1, 81.0, 80.8, 62.0,
    ]),
    ("test", 7, 128, 256, "2608cd58c22f1faf", "55e15deec2fec236", [
        97.9, 93.1, 91.8, 105.9, 96.0, 91.7, 145.7, 139.5, 139.0, 87.7, 83.0, 78.2, 99.6, 89.1, 86.8, 100.2, 94.8, 88.7, 91.7,
        87.5, 86.4, 79.3, 78.7, 73.5,
    ]),
]  # fmt: skip
"""What version 1 draws: hashes of labels and instances, and the mean colours of 2 x 4 blocks."""


@pytest.mark.parametrize("drawn", DRAWN, ids=lambda drawn: drawn[0])
def test_what_streets_draws_belongs_to_its_version(drawn: tuple[str, int, int, int, str, str, list[float]]) -> None:
    """What was measured on a scene is found again by the version: whoever changes a scene raises it, and these values."""
    split, index, height, width, labels, instances, colours = drawn
    assert streets.VERSION == 1
    scene = streets.draw(split, index, height, width)
    assert hashlib.sha256(scene.labels.tobytes()).hexdigest()[:16] == labels
    assert hashlib.sha256(np.asarray(scene.instances).astype("<i4").tobytes()).hexdigest()[:16] == instances
    # Processors differ in the last digit of a float32 power, so that a colour here and there is one off.
    means = scene.image.astype(float).reshape(2, height // 2, 4, width // 4, 3).mean((1, 3)).ravel()
    assert np.abs(means - colours).max() < 0.5


def test_streets_splits_are_disjoint() -> None:
    names, identities, pictures = set(), set(), set()
    for split in ("train", "val", "test"):
        for reference in open_split("streets", split, size=Size(64, 128)).references[:8]:
            frame = reference.load()
            names.add(frame.name)
            identities.add(reference.identity())
            pictures.add(frame.labels.tobytes())
    assert len(names) == len(identities) == len(pictures) == 24


def test_streets_same_scene_at_other_sizes() -> None:
    agreements, strangers = [], []
    for index in range(4):
        large = streets.draw("val", index, 256, 512).labels
        small = streets.draw("val", index, 128, 256).labels
        other = streets.draw("val", index + 20, 128, 256).labels
        shrunk = resize_labels(large, SMALL)
        agreements.append(float((shrunk == small).mean()))
        strangers.append(float((shrunk == other).mean()))
    assert min(agreements) > 0.85
    assert min(agreements) > max(strangers)


def test_streets_instances_agree_with_labels(streets_frames: Callable[..., Any]) -> None:
    things = {CITYSCAPES.names.index(name) for name in CITYSCAPES.instance_pixels}
    seen = 0
    for frame in streets_frames(8, 128, 256):
        inside = frame.instances >= 0
        assert np.array_equal(frame.instances[inside] // 1000, frame.labels[inside])
        assert set(np.unique(frame.labels[inside]).tolist()) <= things
        assert not np.isin(frame.labels[~inside], list(things)).any()
        seen += len(np.unique(frame.instances[inside]))
    assert seen > 10


def test_all_19_classes_occur(streets_frames: Callable[..., Any]) -> None:
    found: set[int] = set()
    for frame in streets_frames(32, 128, 256):
        found |= set(np.unique(frame.labels).tolist())
    assert found - {IGNORE} == set(range(19))


@pytest.mark.parametrize("size", [Size(64, 64), Size(77, 203)])
def test_streets_at_odd_sizes(size: Size) -> None:
    frame = open_split("streets", "test", size=size).references[0].load()
    assert frame.image.shape == (size.height, size.width, 3)
    assert frame.labels.shape == frame.instances.shape == (size.height, size.width)


def test_streets_instance_weights_follow_the_area() -> None:
    full, small = open_split("streets", "val", size=Size(1024, 2048)), open_split("streets", "val", size=Size(512, 512))
    assert full.classes.instance_pixels == CITYSCAPES.instance_pixels
    assert small.classes.instance_pixels["car"] == pytest.approx(CITYSCAPES.instance_pixels["car"] / 8)


def test_first_spreads_over_the_split() -> None:
    split = open_split("streets", "val")
    assert [reference.name for reference in split.first(4).references] == [
        "val-0000",
        "val-0016",
        "val-0032",
        "val-0048",
    ]
    assert split.first(None) is split
    assert split.first(1000) is split
    assert split.first(4).identity() != split.identity()


# Cityscapes


def test_cityscapes_layout(cityscapes_tree: Path) -> None:
    split = open_split("cityscapes", "train", cityscapes_tree)
    assert [reference.name for reference in split.references] == [
        "aachen_000000_000019", "aachen_000002_000019", "bochum_000001_000019",
    ]  # fmt: skip
    assert len(open_split("cityscapes", "val", cityscapes_tree)) == 2
    assert split.classes is CITYSCAPES
    for index, position in ((0, 0), (2, 1), (1, 2)):
        scene = streets.draw("train", index, 128, 256)
        frame = split.references[position].load()
        assert np.array_equal(frame.image, scene.image)
        expected = scene.labels.copy()
        expected[90:100, 20:60], expected[90:110, 180:230] = 13, IGNORE
        assert np.array_equal(frame.labels, expected)
        assert (frame.instances[90:110, 180:230] == -1).all(), "a caravan is not evaluated"
        assert (frame.instances[90:100, 20:60] == -1).all(), "a group is no instance"
        inside = frame.instances >= 0
        assert inside.any()
        assert np.array_equal(frame.instances[inside] // 1000, frame.labels[inside])
        assert np.array_equal(frame.instances[inside] % 1000, scene.instances[inside] % 1000)


def test_cityscapes_label_map() -> None:
    assert len(CITYSCAPES_LABEL_IDS) == 19
    assert [CITYSCAPES_MAP[label] for label in CITYSCAPES_LABEL_IDS] == list(range(19))
    assert (CITYSCAPES_MAP == IGNORE).sum() == 256 - 19


def test_cityscapes_without_instances(cityscapes_tree: Path) -> None:
    for path in cityscapes_tree.glob("gtFine/val/*/*_instanceIds.png"):
        path.unlink()
    assert open_split("cityscapes", "val", cityscapes_tree).references[0].load().instances is None


@pytest.mark.parametrize("part", ["leftImg8bit", "labelIds", "instanceIds"])
def test_cityscapes_identity_follows_every_file(cityscapes_tree: Path, part: str) -> None:
    before = open_split("cityscapes", "val", cityscapes_tree).identity()
    assert open_split("cityscapes", "val", cityscapes_tree).identity() == before
    path = next(cityscapes_tree.glob(f"*/val/*/*_{part}.png"))
    with path.open("ab") as file:
        file.write(b"\0")
    assert open_split("cityscapes", "val", cityscapes_tree).identity() != before


# CamVid


def test_camvid_layout(camvid_tree: Path) -> None:
    split = open_split("camvid", "train", camvid_tree)
    assert [reference.name for reference in split.references] == [f"frame_{index:03d}" for index in range(4)]
    assert [len(open_split("camvid", name, camvid_tree)) for name in ("val", "test")] == [2, 1]
    assert split.classes is CAMVID
    found: set[int] = set()
    for index, reference in enumerate(split.references):
        frame = reference.load()
        scene = streets.draw("train", index, 96, 128)
        assert frame.image.shape == (96, 128, 3)
        assert frame.instances is None
        assert np.abs(frame.image.astype(int) - scene.image).mean() < 20, "JPEG loses, but it is the same picture"
        assert np.array_equal(frame.labels == IGNORE, scene.labels == 255)
        found |= set(np.unique(frame.labels).tolist())
    assert found <= {*range(11), IGNORE}
    assert len(found) > 5


def test_camvid_label_map() -> None:
    assert CAMVID_MAP[:11].tolist() == list(range(11))
    assert set(CAMVID_MAP[11:].tolist()) == {IGNORE}
    assert len(CAMVID) == 11


def test_camvid_identity_follows_the_label(camvid_tree: Path) -> None:
    before = open_split("camvid", "val", camvid_tree).identity()
    Image.fromarray(np.zeros((96, 128), np.uint8)).save(camvid_tree / "valannot" / "frame_000.png")
    assert open_split("camvid", "val", camvid_tree).identity() != before


def test_files_that_are_no_images_are_passed_over(camvid_tree: Path) -> None:
    (camvid_tree / "val" / "Thumbs.db").write_bytes(b"x")
    (camvid_tree / "val" / "list.txt").write_text("frame_000\n")
    assert len(open_split("camvid", "val", camvid_tree)) == 2


def test_palette_labels_are_read_as_values(camvid_tree: Path) -> None:
    path = camvid_tree / "valannot" / "frame_000.png"
    plane = np.asarray(Image.open(path))
    palette = Image.fromarray(plane, "L").convert("P")
    palette.putpalette([7] * 768)
    palette.putdata(plane.ravel().tolist())
    palette.save(path)
    assert np.array_equal(open_split("camvid", "val", camvid_tree).references[0].load().labels, CAMVID_MAP[plane])


# Roots


@pytest.mark.parametrize(("dataset", "variable"), [("cityscapes", "CITYSCAPES_DATASET"), ("camvid", "CAMVID_ROOT")])
def test_roots_from_the_environment(
    dataset: str, variable: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    tree = request.getfixturevalue(f"{dataset}_tree")
    monkeypatch.setenv(variable, str(tree))
    assert len(open_split(dataset, "val")) == 2
    refused(lambda: open_split(dataset, "val", tmp_path / "elsewhere"), DataError, "elsewhere", "--data-root")
    monkeypatch.setenv(variable, str(tmp_path / "gone"))
    refused(lambda: open_split(dataset, "val"), DataError, "gone", variable)
    monkeypatch.setenv(variable, "")
    refused(lambda: open_split(dataset, "val"), DataError, variable, "--data-root", "streets")
    monkeypatch.delenv(variable)
    refused(lambda: open_split(dataset, "val"), DataError, variable)


@pytest.mark.parametrize("dataset", ["cityscapes", "camvid"])
def test_a_folder_of_something_else(dataset: str, tmp_path: Path) -> None:
    refused(lambda: open_split(dataset, "train", tmp_path), DataError, str(tmp_path), "--data-root")
    file = tmp_path / "a-file"
    file.write_text("")
    refused(lambda: open_split(dataset, "train", file), DataError, str(file))


@pytest.mark.parametrize("dataset", ["cityscapes", "camvid"])
def test_empty_split(dataset: str, request: pytest.FixtureRequest) -> None:
    tree = request.getfixturevalue(f"{dataset}_tree")
    for path in tree.rglob("*"):
        if path.is_file() and "val" in str(path.relative_to(tree)):
            path.unlink()
    refused(lambda: open_split(dataset, "val", tree), DataError, "val", "--data-root")


def test_unknown_names() -> None:
    refused(lambda: open_split("kitti", "train"), UsageError, "kitti", "streets", "camvid")
    refused(lambda: class_set("kitti"), UsageError, "kitti")
    refused(lambda: open_split("streets", "training"), UsageError, "training", "train, val, test")


# Damaged files


def files(dataset: str, tree: Path) -> tuple[Path, Path]:
    """Image and label of the first val frame."""
    if dataset == "camvid":
        return tree / "val" / "frame_000.png", tree / "valannot" / "frame_000.png"
    stem = "aachen_000000_000019"
    return (
        tree / "leftImg8bit" / "val" / "aachen" / f"{stem}_leftImg8bit.png",
        tree / "gtFine" / "val" / "aachen" / f"{stem}_gtFine_labelIds.png",
    )


def truncate(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def text(path: Path) -> None:
    path.write_text("version https://git-lfs.github.com/spec/v1\n")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def other_size(path: Path) -> None:
    plane = np.asarray(Image.open(path))
    Image.fromarray(plane[:-3]).save(path)


def colours(path: Path) -> None:
    plane = np.asarray(Image.open(path))
    Image.fromarray(np.dstack([plane] * 3)).save(path)


def with_value(value: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        plane = np.asarray(Image.open(path)).astype(np.uint16 if value > 255 else np.uint8)
        plane[3, 4] = value
        Image.fromarray(plane).save(path)

    damage.__name__ = f"value_{value}"
    return damage


@pytest.mark.parametrize("dataset", ["cityscapes", "camvid"])
@pytest.mark.parametrize("damage", [truncate, text, empty, Path.unlink])
def test_bad_images(dataset: str, damage: Callable[[Path], None], request: pytest.FixtureRequest) -> None:
    tree = request.getfixturevalue(f"{dataset}_tree")
    image, _ = files(dataset, tree)
    reference = open_split(dataset, "val", tree).references[0]
    damage(image)
    refused(reference.load, DataError, str(image))


@pytest.mark.parametrize("dataset", ["cityscapes", "camvid"])
@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (truncate, "damaged"), (text, "damaged"), (empty, "damaged"), (Path.unlink, "missing"), (other_size, "x"),
        (colours, "dimensions"), (with_value(34), "34"), (with_value(200), "200"), (with_value(26001), "26001"),
    ],
)  # fmt: skip
def test_bad_labels(dataset: str, damage: Callable[[Path], None], word: str, request: pytest.FixtureRequest) -> None:
    tree = request.getfixturevalue(f"{dataset}_tree")
    _, label = files(dataset, tree)
    reference = open_split(dataset, "val", tree).references[0]
    damage(label)
    refused(reference.load, DataError, str(label), word)


def test_cityscapes_labels_are_not_camvids(camvid_tree: Path) -> None:
    with_value(12)(camvid_tree / "valannot" / "frame_000.png")
    refused(open_split("camvid", "val", camvid_tree).references[0].load, DataError, "frame_000.png", "12", "--data")


@pytest.mark.parametrize("damage", [truncate, text, other_size])
def test_bad_instances(cityscapes_tree: Path, damage: Callable[[Path], None]) -> None:
    path = files("cityscapes", cityscapes_tree)[1]
    path = path.with_name(path.name.replace("labelIds", "instanceIds"))
    damage(path)
    refused(open_split("cityscapes", "val", cityscapes_tree).references[0].load, DataError, str(path))


def test_a_bad_image_to_predict(tmp_path: Path) -> None:
    refused(lambda: read_image(tmp_path / "none.png"), DataError, "none.png")
    refused(lambda: read_image(tmp_path), DataError, str(tmp_path))


def test_images_of_other_modes_are_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "CMYK", "1"):
        path = tmp_path / f"{mode}.tif"
        Image.new(mode, (70, 65)).save(path)
        image = read_image(path)
        assert image.shape == (65, 70, 3)
        assert image.dtype == np.uint8


def test_images_of_other_modes_keep_their_colours(tmp_path: Path) -> None:
    """Grey stands for itself, palettes for their colours, and what is under transparency for what it is."""
    for mode, colour in (("L", (90, 90, 90)), ("LA", (90, 90, 90)), ("P", (10, 90, 200)), ("RGBA", (10, 90, 200))):
        whole = Image.new("RGBA", (70, 65), (*colour, 40))
        path = tmp_path / f"{mode}.png"
        (
            whole.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE) if mode == "P" else whole.convert(mode)
        ).save(path)
        assert (read_image(path) == colour).all(), mode


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_images_without_a_fixed_white_are_refused(mode: str, tmp_path: Path) -> None:
    """As RGB they would be white wherever they are over 255, and a calibration that saw them would not notice."""
    path = tmp_path / ("deep.png" if mode == "I;16" else "deep.tif")
    Image.new(mode, (70, 65), 1000).save(path)
    refused(lambda: read_image(path), DataError, "deep", "more than 8 bits", "mode", "save it with 8 bits")


def test_resizing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8)
    labels = image[..., 0] % 19
    assert resize_image(image, Size(64, 96)) is image
    assert resize_labels(labels, Size(64, 96)) is labels
    assert resize_image(image, Size(70, 100)).shape == (70, 100, 3)
    assert set(np.unique(resize_labels(labels, Size(33, 77)))) <= set(np.unique(labels))


# Real data


def test_real_camvid(camvid_root: Path) -> None:
    assert [len(open_split("camvid", split, camvid_root)) for split in ("train", "val", "test")] == [367, 101, 233]
    frame = open_split("camvid", "test", camvid_root).references[0].load()
    assert frame.image.shape == (*frame.labels.shape, 3)
    assert len(np.unique(frame.labels)) > 5


def test_real_cityscapes(cityscapes_root: Path) -> None:
    split = open_split("cityscapes", "train", cityscapes_root)
    assert len(split) == 8
    frame = split.references[0].load()
    assert frame.image.shape == (*frame.labels.shape, 3)
    assert frame.instances is not None
    inside = frame.instances >= 0
    assert np.array_equal(frame.instances[inside] // 1000, frame.labels[inside])


# Frames to calibrate with


def test_frames_are_chosen_for_what_is_rare(camvid_tree: Path) -> None:
    for index in range(12):  # grey road everywhere, a bicyclist in two frames
        labels = np.full((96, 128), 3, np.uint8)
        labels[:20, :20] = 10 if index in (4, 9) else 3
        Image.fromarray(np.full((96, 128, 3), index, np.uint8)).save(camvid_tree / "train" / f"plain_{index:02d}.png")
        Image.fromarray(labels).save(camvid_tree / "trainannot" / f"plain_{index:02d}.png")
    for path in (camvid_tree / "train").glob("frame_*"):
        path.unlink()
    choice = choose_frames(open_split("camvid", "train", camvid_tree), 3)
    names = [reference.name for reference in choice.frames.references]
    assert {"plain_04", "plain_09"} < set(names)
    assert names == sorted(names)
    assert choice.shares["bicyclist"] == pytest.approx(2 * 400 / (3 * 96 * 128))
    assert "class coverage among 12" in choice.why


def test_frames_are_chosen_without_labels_too(camvid_tree: Path) -> None:
    for path in (camvid_tree / "trainannot").iterdir():
        path.unlink()
    choice = choose_frames(open_split("camvid", "train", camvid_tree), 2)
    assert len(choice.frames) == 2
    assert choice.shares == {}
    assert "no labels" in choice.why
    assert len(choose_frames(open_split("camvid", "train", camvid_tree), 9).frames) == 4


def test_a_calibration_says_which_sizes_its_frames_had(camvid_tree: Path) -> None:
    from edgekit.pipeline.quantization import Calibration

    for index in range(2):
        Image.new("RGB", (70, 65)).save(camvid_tree / "train" / f"small_{index}.png")
    calibration = Calibration(choose_frames(open_split("camvid", "train", camvid_tree), 9), Size(64, 96))
    assert all(frame.shape == (1, 64, 96, 3) for frame in calibration.batches()())
    assert calibration.sizes() == {"96x128": 4, "65x70": 2}


def test_small_drawings_show_the_same_classes() -> None:
    split = open_split("streets", "train", size=Size(512, 1024))
    for reference in split.references[:3]:
        small, whole = reference.load_labels(), reference.load().labels
        assert small.shape == (128, 256)
        shares = [np.bincount(labels.ravel(), minlength=256)[:19] / labels.size for labels in (small, whole)]
        assert np.abs(shares[0] - shares[1]).max() < 0.02


def test_a_frame_that_is_evaluated_may_not_calibrate(camvid_tree: Path) -> None:
    from edgekit.pipeline.quantization import Calibration, refuse_evaluated

    train, val = (open_split("camvid", split, camvid_tree) for split in ("train", "val"))
    calibration = Calibration(choose_frames(train, 2), Size(96, 128))
    refuse_evaluated(calibration, val)
    name = calibration.frames.references[0].name
    refused(lambda: refuse_evaluated(calibration, train), UsageError, name, "camvid train", "another split")
    copied = camvid_tree / "val" / "copied.png"  # under another name, too
    copied.write_bytes(
        (camvid_tree / "train" / next(p.name for p in (camvid_tree / "train").iterdir() if p.stem == name)).read_bytes()
    )
    refused(lambda: refuse_evaluated(calibration, open_split("camvid", "val", camvid_tree)), UsageError, "copied")


def test_images_without_labels_are_frames_too(camvid_tree: Path) -> None:
    """To compare two networks on: all void, and known by their images alone."""
    shutil.rmtree(camvid_tree / "trainannot")
    split = open_split("camvid", "train", camvid_tree)
    with pytest.raises(DataError):
        split.references[0].load()
    without = unlabelled(split)
    assert without.identity() == split.image_identity()
    for before, after in zip(split.references, without.references, strict=True):
        frame = after.load()
        assert np.array_equal(frame.image, before.load_image())
        assert frame.name == before.name
        assert frame.labels.shape == frame.image.shape[:2] == after.load_labels().shape
        assert (frame.labels == IGNORE).all()
