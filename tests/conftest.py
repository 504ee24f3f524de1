"""Fixtures that several tests share: a checkpoint that is worth converting, drawn frames, and datasets on disk."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from seam import MOMENT, Done, edgekit, environment
from torch.nn import functional as F

from calibration import streets
from calibration.classes import CITYSCAPES
from calibration.datasets import Frame, open_split
from edgekit.core.values import IGNORE, Normalization, Size
from edgekit.export.graph import normalize
from edgekit.networks.checkpoint import SHIPPED_FOLDER, Description, save_checkpoint
from edgekit.networks.spssn import SPSSN

SS_DISABLE = 2
torch.set_num_threads(1)
# Tests call vendors' tools directly too: those report every conversion to their makers, from a fork of this process.
os.environ["CI"] = "true"
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell starts background jobs; commands would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


class _SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2)."""

    _fields_ = (("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@pytest.fixture(autouse=True)
def _signals_arrive() -> None:
    """Signals are handled on this thread's own stack.

    OpenVINO's int8 conversion leaves a stack for signals behind whose memory is gone. A signal that a test then waits for, of a
    timer or of a child that ends, kills the process without a word. edgekit itself converts in processes of their own.
    """
    if not sys.platform.startswith("linux"):
        return
    libc, found = ctypes.CDLL(None), _SignalStack()
    libc.sigaltstack(None, ctypes.byref(found))
    if found.flags != SS_DISABLE and not _is_mapped(found.place or 0):
        found.flags = SS_DISABLE
        libc.sigaltstack(ctypes.byref(found), None)


def _is_mapped(place: int) -> bool:
    spans = (line.split(" ", 1)[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines())
    return any(int(first, 16) <= place < int(end, 16) for first, end in spans)


def _frames(count: int, height: int, width: int, split: str = "val") -> list[Frame]:
    references = open_split("streets", split, size=Size(height, width)).references[:count]
    return [reference.load() for reference in references]


@pytest.fixture(scope="session")
def streets_frames() -> Callable[..., list[Frame]]:
    """``streets_frames(n, h, w, split="val")``: the first n drawn frames of a split."""
    return _frames


@pytest.fixture(scope="session")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An SPSSN of 19 classes whose labels vary over a frame: the shipped one, or one trained for some seconds.

    Randomly initialized weights answer one class everywhere, which any broken artifact would match. Do not write to it.
    """
    shipped = SHIPPED_FOLDER / "spssn-streets.safetensors"
    if shipped.is_file():
        return shipped
    torch.manual_seed(0)
    frames = _frames(8, 64, 128, "train")
    images = normalize(torch.from_numpy(np.stack([frame.image for frame in frames])), Normalization())
    truth = torch.from_numpy(np.stack([frame.labels for frame in frames]))[:, 4::8, 4::8].long()
    network = SPSSN(19)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for step in range(40):
        chosen = slice(4 * (step % 2), 4 * (step % 2) + 4)
        loss = F.cross_entropy(network(images[chosen]), truth[chosen], ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    path = tmp_path_factory.mktemp("checkpoint") / "spssn-small.safetensors"
    save_checkpoint(
        path,
        network.eval(),
        Description(
            network="spssn",
            arguments={},
            class_names=CITYSCAPES.names,
            normalization=Normalization(),
            dataset="streets",
            recipe={},
            metrics={},
        ),
    )
    return path


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, small_checkpoint: Path) -> tuple[Path, Callable[[], Done], Done]:
    """A run of SPSSN on two runtimes in both precisions: its folder, what runs it again, and how it ended. Do not write to it."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "sitecustomize.py").write_text(MOMENT)  # as many queries as the contract asks for, in less time

    def again() -> Done:
        return edgekit(
            "run", small_checkpoint, "--targets", "onnxruntime,openvino", "--size", "96x160", "--frames", 3,
            "--samples", 3, "--threads", 1, "--out", "out", "--json", cwd=folder,
            env=environment(folder),
        )  # fmt: skip

    return folder / "out", again, again()


def _real_root(variable: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names the folder of the real data")
    return Path(value)


@pytest.fixture
def camvid_root() -> Path:
    """The real CamVid."""
    return _real_root("CAMVID_ROOT")


@pytest.fixture
def cityscapes_root() -> Path:
    """The real Cityscapes, or a part of it."""
    return _real_root("CITYSCAPES_DATASET")


def write_png(path: Path, plane: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(plane).save(path)


@pytest.fixture
def cityscapes_tree(tmp_path: Path) -> Path:
    """Drawn frames in Cityscapes' layout: three of train, two of val, 128x256, with what real label images hold.

    Besides the drawn things there are a group (a plain labelId among the instanceIds) and a caravan (not evaluated).
    """
    root = tmp_path / "cityscapes"
    for split, count in (("train", 3), ("val", 2)):
        for index in range(count):
            scene = streets.draw(split, index, 128, 256)
            city = ("aachen", "bochum")[index % 2]
            stem = f"{city}_{index:06d}_000019"
            to_label = np.zeros(256, np.uint8)
            to_label[:19] = streets.LABEL_IDS
            label_ids, instances = to_label[scene.labels], scene.instances.astype(np.uint16)
            label_ids[90:100, 20:60], instances[90:100, 20:60] = 26, 26  # cars too close together to be told apart
            label_ids[90:110, 180:230], instances[90:110, 180:230] = 29, 29000
            write_png(root / "leftImg8bit" / split / city / f"{stem}_leftImg8bit.png", scene.image)
            write_png(root / "gtFine" / split / city / f"{stem}_gtFine_labelIds.png", label_ids)
            write_png(root / "gtFine" / split / city / f"{stem}_gtFine_instanceIds.png", instances)
    return root


CAMVID_OF_STREETS = (3, 4, 1, 1, 7, 2, 6, 6, 5, 5, 0, 9, 10, 8, 8, 8, 8, 10, 10)
"""A CamVid class for each Cityscapes train id."""


@pytest.fixture
def camvid_tree(tmp_path: Path) -> Path:
    """Drawn frames in CamVid's (SegNet's) layout, 96x128, images and labels of several suffixes."""
    root = tmp_path / "camvid"
    to_camvid = np.full(256, 11, np.uint8)
    to_camvid[:19] = CAMVID_OF_STREETS
    suffixes = {"train": ("png", "jpg", "webp", "PNG"), "val": ("png", "bmp"), "test": ("jpeg",)}
    for split, names in suffixes.items():
        for index, suffix in enumerate(names):
            scene = streets.draw(split, index, 96, 128)
            (root / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene.image).save(root / split / f"frame_{index:03d}.{suffix}")
            write_png(
                root / f"{split}annot" / f"frame_{index:03d}.{'png' if index % 2 == 0 else 'bmp'}",
                to_camvid[scene.labels],
            )
    return root
