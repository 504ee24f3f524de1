"""Image files as strangers have them: what is opened, what labels mean, and one sentence for the rest."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from calibration.classes import CAMVID_VALUES, CITYSCAPES_VALUES
from calibration.datasets import open_split
from calibration.images import FORMATS, images_in, read_image, read_plane
from edgekit.core.errors import DataError
from edgekit.core.values import IGNORE

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n0 0 moveto\nshowpage\n%%EOF\n"


def sentence(action: Callable[[], object]) -> str:
    with pytest.raises(DataError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Pillow hands it to Ghostscript where that is installed; here anything called gs leaves a trace."""
    trace = tmp_path / "it-ran"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {trace}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    path = tmp_path / f"frame.{suffix}"
    path.write_bytes(POSTSCRIPT)
    for read in (read_image, read_plane):
        assert "none of the image formats" in sentence(lambda read=read: read(path))
    assert not trace.exists()
    proof = "from PIL import EpsImagePlugin, Image; EpsImagePlugin.gs_binary = None; Image.open({!r}).load()"
    subprocess.run([sys.executable, "-c", proof.format(str(path))], capture_output=True, check=False)
    assert trace.exists(), "the attack itself must work, or this test proves nothing"


@pytest.mark.parametrize("kind", ["DDS", "GIF", "ICO", "PCX", "SGI", "TGA"])
def test_formats_that_are_not_named_are_not_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "frame.png"
    Image.new("RGB", (64, 64)).save(path, kind)
    assert "none of the image formats that edgekit reads (PNG, JPEG" in sentence(lambda: read_image(path))


def test_every_named_format_is_read(tmp_path: Path) -> None:
    for kind in FORMATS:
        path = tmp_path / f"{kind}.bin"
        Image.new("RGB", (64, 64), (10, 200, 30)).save(path, kind)
        assert abs(read_image(path)[0, 0].astype(int) - [10, 200, 30]).max() <= 4


def test_heic_is_told_what_to_become(tmp_path: Path) -> None:
    path = tmp_path / "IMG_0001.png"
    path.write_bytes(struct.pack(">I", 24) + b"ftypheic" + bytes(4) + b"mif1heic" + bytes(100))
    assert "is HEIC, which edgekit does not read: save it as JPEG" in sentence(lambda: read_image(path))


@pytest.mark.timeout(20)
def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    path = tmp_path / "pipe.png"
    os.mkfifo(path)
    assert "is no file" in sentence(lambda: read_image(path))


@pytest.mark.timeout(20)
def test_a_huge_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    """13000x13000 took 40 s and 5.4 GB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "huge.png"
    header = struct.pack(">IIBBBBB", 13000, 13000, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )
    assert "13000x13000, more than 64 million pixels" in sentence(lambda: read_image(path))


def test_a_mode_that_pillow_lacks(tmp_path: Path) -> None:
    """A BMP of a compression that Pillow does not have: it was called a bug of edgekit's."""
    path = tmp_path / "odd.bmp"
    Image.new("RGB", (64, 64)).save(path)
    data = bytearray(path.read_bytes())
    data[30] = 4  # JPEG inside BMP
    path.write_bytes(data)
    assert "odd.bmp" in sentence(lambda: read_image(path))


LABELS = np.arange(64 * 64).reshape(64, 64) // 372  # 0 to 11


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_labels_of_few_bits(tmp_path: Path, bits: int) -> None:
    """Pillow spreads such greys over a byte: label 1 of four bits is 17 to it."""
    labels = (LABELS % 2**bits).astype(np.uint8)
    rows = np.packbits(np.unpackbits(labels[..., None], axis=2)[..., 8 - bits :].reshape(64, -1), axis=1)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    path = tmp_path / "labels.png"
    body = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", 64, 64, bits, 0, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")
    )
    assert (read_plane(path, CAMVID_VALUES) == labels).all()


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(12)))
def test_a_palette_of_greys_in_any_order(tmp_path_factory: pytest.TempPathFactory, order: list[int]) -> None:
    """As a tool that saves space writes a grey label image: the greys are the labels, whatever their indices."""
    path = tmp_path_factory.mktemp("palette") / "labels.png"
    index_of = np.argsort(order).astype(np.uint8)
    image = Image.fromarray(index_of[LABELS])
    image.putpalette([grey for label in order for grey in (label, label, label)])
    image.save(path)
    assert (read_plane(path, CAMVID_VALUES) == LABELS).all()


def test_palettes_that_make_labels_visible(tmp_path: Path) -> None:
    """Colours as VOC has them, or greys over the whole byte: the indices are the labels."""
    path = tmp_path / "labels.png"
    image = Image.fromarray(LABELS.astype(np.uint8))
    for palette in ([23 * label for label in range(12) for _ in range(3)], [(41 * value) % 256 for value in range(36)]):
        image.putpalette(palette)
        image.save(path)
        assert (read_plane(path, CITYSCAPES_VALUES) == LABELS).all()


def test_jpeg_masks_are_refused_with_the_reason(tmp_path: Path) -> None:
    path = tmp_path / "labels.png"
    Image.fromarray(LABELS.astype(np.uint8)).save(path, "JPEG")
    assert "is a JPEG, whose compression changes the labels" in sentence(lambda: read_plane(path))


def test_labels_that_are_fractions(tmp_path: Path) -> None:
    path = tmp_path / "labels.tif"
    Image.fromarray(LABELS.astype(np.float32) / 2).save(path)
    assert "fractions" in sentence(lambda: read_plane(path))


def test_what_a_desktop_leaves_is_passed_over(camvid_tree: Path, cityscapes_tree: Path) -> None:
    """macOS writes a ._ file beside each on a foreign disk; it is no damaged frame."""
    for folder in (*camvid_tree.iterdir(), *cityscapes_tree.glob("*/val/aachen")):
        for path in list(folder.iterdir()):
            (folder / f"._{path.name}").write_bytes(b"\x00\x05\x16\x07" + bytes(60))
        (folder / ".DS_Store").write_bytes(b"Bud1")
    for dataset, root in (("camvid", camvid_tree), ("cityscapes", cityscapes_tree)):
        split = open_split(dataset, "val", root)
        assert len(split) == 2
        for reference in split.references:
            reference.load()
    assert len(images_in(camvid_tree / "val")) == 2


def test_camvid_as_cambridge_names_its_masks_and_255_for_void(camvid_tree: Path) -> None:
    expected = [reference.load().labels for reference in open_split("camvid", "val", camvid_tree).references]
    for path in list((camvid_tree / "valannot").iterdir()):
        labels = np.asarray(Image.open(path)).copy()
        labels[labels == 11] = 255
        labels[:4] = 255
        path.unlink()
        Image.fromarray(labels).save(path.with_name(f"{path.stem}_L.png"))
    for reference, labels in zip(open_split("camvid", "val", camvid_tree).references, expected, strict=True):
        found = reference.load().labels
        assert (found[:4] == IGNORE).all()
        assert (found[4:] == labels[4:]).all()


@pytest.mark.parametrize("value", [-5, 256_000])
def test_odd_instance_ids(cityscapes_tree: Path, value: int) -> None:
    reference = open_split("cityscapes", "val", cityscapes_tree).references[0]
    path = next((cityscapes_tree / "gtFine" / "val").glob(f"*/{reference.name}_gtFine_instanceIds.png"))
    instances = np.asarray(Image.open(path)).astype(np.int32)
    instances[0, 0] = value
    Image.fromarray(instances).save(path, "TIFF")
    assert str(value) in sentence(reference.load)
