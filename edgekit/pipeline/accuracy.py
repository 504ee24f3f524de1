"""Accuracy: float PyTorch once, then every artifact on the same frames, counted frame by frame."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, local

import numpy as np
from PIL import Image

from calibration.datasets import Frame, Split, resize_image, resize_labels
from calibration.images import png, read_plane
from edgekit import __version__
from edgekit.core.ahead import in_order
from edgekit.core.errors import ArtifactError, CheckpointError, DataError, EdgekitError, TargetError
from edgekit.core.files import new_folder, read_sealed, sha256_json, sha256_path, write_bytes, write_sealed
from edgekit.core.measurement import Accuracy
from edgekit.core.progress import Progress
from edgekit.core.registry import versions
from edgekit.core.seam import Target
from edgekit.core.values import Artifact, Provenance, Size, UInt8
from edgekit.devices.environment import processor
from edgekit.devices.local import Subject, Worker
from edgekit.metrics.scores import FrameCounts, add_counts, count_frame, score, sparse
from edgekit.networks.checkpoint import Checkpoint
from edgekit.runtimes.common import bounded_threads

MEMORY_FOR_FRAMES = 1 << 30
FRAMES_AT_ONCE = 8
"""More are not labelled side by side however many cores there are: each holds its activations."""
PICTURES = 4
"""Frames whose labels are kept to be shown."""


@dataclass(frozen=True)
class Labeller:
    """What labels frames: uint8 [1, H, W, 3] -> uint8 [1, H, W].

    Attributes:
        label: the function.
        at_once: frames that it may be called with at a time, from threads of their own.
        prepare: called in each such thread before its first frame.
    """

    label: Callable[[UInt8], UInt8]
    at_once: int = 1
    prepare: Callable[[], None] = lambda: None

    def __call__(self, frame: UInt8) -> UInt8:
        return self.label(frame)


class Frames:
    """A split's frames, kept in memory up to 1 GiB, since every artifact sees them again."""

    def __init__(self, split: Split) -> None:
        self.split = split
        self._kept: dict[int, Frame] = {}
        self._bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> Frame:
        if index in self._kept:
            return self._kept[index]
        frame = self.split.references[index].load()
        size = frame.image.nbytes + frame.labels.nbytes + (frame.instances.nbytes if frame.instances is not None else 0)
        with self._lock:
            if index not in self._kept and self._bytes + size <= MEMORY_FOR_FRAMES:
                self._kept[index] = frame
                self._bytes += size
        return frame


@contextmanager
def pytorch_labeller(
    checkpoint: Checkpoint, size: Size, threads: int | None = None, say: Callable[[str], None] = lambda _: None
) -> Iterator[Labeller]:
    """The float reference: the checkpoint's own network in PyTorch, float32, no rewrites.

    Args:
        say: is told once what the network gives besides its logits.
    """
    import torch

    from edgekit.export.graph import Logits, check_classes, normalize, reference_labels, why_it_does_not_run
    from edgekit.networks.blocks import channels_last
    from edgekit.networks.checkpoint import load_network
    from edgekit.networks.subnormals import flush_subnormals

    check_classes(len(checkpoint.class_names))
    flush_subnormals()
    # Whole frames side by side, decoding and counting included, keep cores busier than layers split over them.
    cores = bounded_threads(threads)
    at_once = min(cores, FRAMES_AT_ONCE)

    def prepare() -> None:
        torch.set_num_threads(cores // at_once)  # of the calling thread
        flush_subnormals()

    layouts = [torch.channels_last, torch.contiguous_format]  # the faster first
    own, making, told = local(), Lock(), list[bool]()

    def network_of(layout: torch.memory_format) -> Logits:
        """The calling thread's own: a network may keep a map in a hook, for a module that comes later."""
        if getattr(own, "layout", None) != layout:
            with making:
                network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
            own.network, own.layout = channels_last(network) if layout == torch.channels_last else network, layout
        made: Logits = own.network
        return made

    def logits_of(x: torch.Tensor) -> torch.Tensor:
        layout = layouts[0]
        network = network_of(layout)
        try:
            given = network.network(x.to(memory_format=layout))
        except RuntimeError as error:  # a view() of the network's own, which those strides do not allow
            if layout != torch.channels_last or "view size is not compatible" not in str(error):
                raise CheckpointError(
                    f"network '{checkpoint.network}' does not run at {size}: {why_it_does_not_run(error, size)}"
                ) from error
            layouts[:] = [torch.contiguous_format]
            return logits_of(x)
        with making:
            for sentence in () if told else network.left_out(given):
                say(f"{checkpoint.name}: {sentence}")
            told.append(True)
        return network.reduced(given)

    def label(frame: UInt8) -> UInt8:
        with torch.inference_mode():
            logits = logits_of(normalize(torch.from_numpy(frame), checkpoint.normalization))
            if logits.isnan().any():
                raise CheckpointError(
                    f"network '{checkpoint.network}' of {checkpoint.path} gives logits that are NaN on a frame, so that its labels mean "
                    "nothing: look for such weights, a logarithm or a division in it"
                )
            labels: UInt8 = reference_labels(logits, size).to(torch.uint8).numpy()
        return labels

    yield Labeller(label, at_once, prepare)


@contextmanager
def artifact_labeller(target: Target, artifact: Artifact, threads: int | None, log: Path) -> Iterator[Labeller]:
    """An artifact opened in a process of its own, which may crash without this one; what its runtime prints goes to the log.

    Raises:
        ArtifactError: it cannot be opened, or fails or crashes on a frame.
        TargetError: its runtime is not installed.
    """
    size = artifact.size
    frame_bytes = size.height * size.width * 3
    with tempfile.NamedTemporaryFile(prefix="edgekit-", suffix=".frame") as file:
        file.truncate(frame_bytes + size.height * size.width)
        shared = np.memmap(file.name, np.uint8, "r+")
        try:
            subject = Subject(artifact.folder, artifact.title, described=artifact.described())
            worker = Worker(subject, None, threads, "frame-to-labels", log)
        except ArtifactError as error:
            if (sentence := target.missing()) is not None:
                raise TargetError(f"{artifact.title} cannot run here: {sentence}") from error
            raise

        def label(frame: UInt8) -> UInt8:
            shared[:frame_bytes] = frame.reshape(-1)
            worker.ask({"do": "label", "shared": file.name, "size": [size.height, size.width]})
            return np.array(shared[frame_bytes:]).reshape(1, size.height, size.width)

        try:
            yield Labeller(label)
        finally:
            worker.stop()


def labelled(frames: Frames, size: Size, labeller: Labeller) -> Iterator[tuple[Frame, UInt8]]:
    """Every frame with its labels (uint8 ``size``), in order; frames are decoded ahead of the one that is labelled.

    Raises:
        ArtifactError: labels of another size.
        DataError: a frame that cannot be read.
    """

    def load(index: int) -> tuple[Frame, UInt8]:
        frame = frames[index]
        return frame, resize_image(frame.image, size)[None].copy()

    def work(index: int) -> tuple[Frame, UInt8]:
        frame, image = load(index)
        return frame, labeller(image)

    side_by_side = labeller.at_once > 1
    workers = labeller.at_once if side_by_side else 1
    prepare = labeller.prepare if side_by_side else None
    done = in_order(work if side_by_side else load, range(len(frames)), workers, 2 * workers, prepare)
    with closing(done):  # at once, where whoever takes the labels stops early
        for frame, result in done:
            labels = result if side_by_side else labeller(result)
            if labels.shape != (1, size.height, size.width):
                raise ArtifactError(
                    f"labels {labels.shape} came back for input {size}: this target breaks the session contract"
                )
            yield frame, labels[0]


def reference_labels_folder(
    checkpoint: Checkpoint, size: Size, frames: Frames, run_folder: Path, progress: Progress, threads: int | None
) -> Path:
    """A folder of float PyTorch's labels at the input size, one PNG a frame, made once."""
    made_by = [__version__, versions("torch", "numpy", "pillow"), processor()]
    key = sha256_json([checkpoint.identity(), str(size), frames.split.identity(), "pytorch", made_by])
    folder = run_folder / "cache" / f"pytorch-{size}-{key[:16]}"
    seal = folder.with_name(f"{folder.name}.json")
    if folder.is_dir():
        with suppress(EdgekitError, OSError):
            if read_sealed(seal) == {"folder": sha256_path(folder)}:
                return folder
        progress.say(f"float PyTorch's labels in {folder} were damaged: made again")
        shutil.rmtree(folder)
    started = time.monotonic()
    with new_folder(folder) as temporary, pytorch_labeller(checkpoint, size, threads) as label:
        for index, (_, labels) in enumerate(labelled(frames, size, label)):
            progress.count("labelling with float PyTorch", index, len(frames), started)
            Image.fromarray(labels).save(temporary / f"{index:05d}.png")
        write_sealed(seal, {"folder": sha256_path(temporary)})  # first: a folder without it is made again
    progress.say(f"float PyTorch labelled {len(frames)} frames at {size}")
    return folder


def read_reference(folder: Path, index: int) -> UInt8:
    """Float PyTorch's labels of one frame: uint8 [H, W] at the input size."""
    return read_plane(folder / f"{index:05d}.png").astype(np.uint8)


def stored_labeller(folder: Path, frames: int) -> Labeller:
    """Float PyTorch's labels again, frame after frame, from the folder that :func:`reference_labels_folder` made."""
    position = iter(range(frames))
    return Labeller(lambda _: read_reference(folder, next(position))[None])


def measure_accuracy(
    title: str,
    label: Labeller,
    size: Size,
    frames: Frames,
    progress: Progress,
    *,
    reference: Path | None = None,
    pictures: Path | None = None,
) -> Accuracy:
    """Counts and agreement per frame; whoever gave the labels says so in the provenance.

    Labels are compared at the truth's own size: where the input is smaller, labels are repeated up to it, as the
    datasets' scripts ask.

    Args:
        reference: folder of float PyTorch's labels, for the agreement.
        pictures: folder that receives the labels of the first ``PICTURES`` frames, for the report's strips.
    """
    counts, agreement = [], []
    started = time.monotonic()
    for index, (frame, labels) in enumerate(labelled(frames, size, label)):
        progress.count(f"{title}: evaluating", index, len(frames), started)
        counts.append(_count(labels, frame, frames.split))
        if reference is not None:
            agreement.append(float((labels == read_reference(reference, index)).mean()))
        if pictures is not None and index < PICTURES:
            write_bytes(pictures / f"{index:05d}.png", png(labels))
    if not sum(int(count.confusion.sum()) for count in counts):
        raise DataError(
            f"no labelled pixel in {frames.split.dataset} {frames.split.split}: evaluate on a split that has labels"
        )
    total = score(add_counts(counts), frames.split.classes)
    progress.say(f"{title}: mIoU {total.miou:.4f} on {len(frames)} frames in {time.monotonic() - started:.0f} s")
    return Accuracy(
        tuple(reference_.name for reference_ in frames.split.references),
        tuple(map(sparse, counts)),
        Provenance("measured"),
        frames.split.dataset,
        frames.split.split,
        tuple(agreement) if reference is not None else None,
    )


def _count(labels: UInt8, frame: Frame, split: Split) -> FrameCounts:
    native = resize_labels(labels, Size(*frame.labels.shape))
    return count_frame(native, frame.labels, frame.instances, split.classes)
