"""Frames a second of ``edgekit evaluate`` against the loop that anyone would write, with the same numbers.

Run: python -m benchmarks.speed.evaluation_speed [CHECKPOINT] [FRAMES] [ROUNDS]; needs CAMVID_ROOT. The obvious loop: decode a frame,
normalize it in numpy, one forward pass, logits upsampled to full size, argmax, confusion by bincount, next frame. Both run
in turns in one process, from the files; a second pair repeats it with a checkpoint whose weights hold subnormal numbers.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.shared.measured import keep
from calibration.datasets import Split, open_split, resize_image, resize_labels
from edgekit.core.progress import Progress
from edgekit.core.values import IGNORE, Size
from edgekit.devices.environment import available_cores
from edgekit.devices.inventory import THIS_MACHINE
from edgekit.metrics.scores import mean_iou
from edgekit.networks.checkpoint import Checkpoint, Description, load_checkpoint, load_network, save_checkpoint
from edgekit.pipeline.commands import evaluate
from edgekit.pipeline.inputs import default_size
from edgekit.pipeline.plans import Work
from reports.statistics import bootstrap_ratio

SLOW = "obvious loop, subnormal weights not flushed, an eighth of the frames"


def obvious(checkpoint: Checkpoint, split: Split, size: Size, flush: bool) -> float:
    """The loop to beat; returns class mIoU."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(available_cores())
    torch.set_flush_denormal(flush)
    network = load_network(checkpoint).eval()
    classes = len(split.classes)
    confusion = np.zeros((classes, classes), np.int64)
    with torch.no_grad():
        for reference in split.references:
            frame = reference.load()
            image = resize_image(frame.image, size).astype(np.float32) / 255
            image = (image - np.array(checkpoint.normalization.mean, np.float32)) / np.array(
                checkpoint.normalization.std, np.float32
            )
            logits = network(torch.from_numpy(image.transpose(2, 0, 1)[None].copy()))
            logits = F.interpolate(logits, size=(size.height, size.width), mode="bilinear", align_corners=False)
            labels = resize_labels(logits.argmax(1)[0].numpy().astype(np.uint8), Size(*frame.labels.shape))
            known = frame.labels != IGNORE
            pairs = frame.labels[known].astype(np.int64) * classes + labels[known]
            confusion += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)
    return float(mean_iou(confusion))


def with_subnormals(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The same network with a tenth of its convolutions' weights decayed below the smallest normal number."""
    import torch

    network = load_network(checkpoint)
    generator = torch.Generator().manual_seed(0)
    for value in network.parameters():
        if value.ndim == 4:
            chosen = torch.rand(value.shape, generator=generator) < 0.1
            value.data[chosen] *= 1e-39
    path = folder / "subnormal.safetensors"
    save_checkpoint(
        path,
        network,
        Description(
            network=checkpoint.network,
            arguments=checkpoint.arguments,
            class_names=checkpoint.class_names,
            normalization=checkpoint.normalization,
            dataset=checkpoint.dataset,
            recipe=checkpoint.recipe,
            metrics={},
        ),
    )
    return replace(load_checkpoint(str(path)), name="with subnormal weights")


def main() -> None:
    """Time both loops in turns, and keep frames a second."""
    checkpoint = load_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "spssn-camvid")
    frames = int(sys.argv[2]) if len(sys.argv) > 2 else 24
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    split = open_split(checkpoint.dataset, "val").first(frames)
    size = default_size(checkpoint)
    with tempfile.TemporaryDirectory() as name:
        subnormal = with_subnormals(checkpoint, Path(name))

        def ours(which: Checkpoint) -> float:
            result = evaluate(which, split, size, Work(THIS_MACHINE, None, Path(name)), Progress(silent=True))
            return result.scores.miou

        few = split.first(max(2, frames // 8))  # that one takes tens of seconds a frame
        kinds: dict[str, tuple[int, Callable[[], float]]] = {
            "edgekit evaluate": (frames, lambda: ours(checkpoint)),
            "obvious loop": (frames, lambda: obvious(checkpoint, split, size, True)),
            "edgekit evaluate, subnormal weights": (frames, lambda: ours(subnormal)),
            SLOW: (len(few), lambda: obvious(subnormal, few, size, False)),
        }
        seconds: dict[str, list[list[float]]] = {kind: [] for kind in kinds}
        mious: dict[str, float] = {}
        for turn in range(rounds + 1):
            for kind, (_, run) in kinds.items():
                if kind == SLOW and turn:
                    continue
                begun = time.perf_counter()
                mious[kind] = run()
                if turn or kind == SLOW:  # the first warms up
                    seconds[kind].append([time.perf_counter() - begun])
    speeds = {kind: kinds[kind][0] / float(np.median(values)) for kind, values in seconds.items()}
    ratio = bootstrap_ratio(seconds["obvious loop"], seconds["edgekit evaluate"])
    slowed = bootstrap_ratio(seconds["edgekit evaluate, subnormal weights"], seconds["edgekit evaluate"])
    for kind, speed in speeds.items():
        print(f"{kind:72} {speed:6.2f} frames/s, mIoU {100 * mious[kind]:.4f} %")
    print(f"edgekit evaluate: {ratio.value:.2f} times as fast [{ratio.low:.2f}, {ratio.high:.2f}]")
    print(f"subnormal weights cost it a factor of {slowed.value:.2f} [{slowed.low:.2f}, {slowed.high:.2f}]")
    keep(
        "evaluation_speed",
        {"checkpoint": checkpoint.name, "frames": frames, "size": str(size), "frames_per_second": speeds, "miou": mious,
         "ratio": {"value": ratio.value, "low": ratio.low, "high": ratio.high},
         "subnormal": {"value": slowed.value, "low": slowed.low, "high": slowed.high}},
    )  # fmt: skip


if __name__ == "__main__":
    main()
