"""Trains the small networks of tests/kinds.py on streets, for a few minutes each, and keeps what the tests load.

``python -m benchmarks.training.train_kinds [NAME...]`` writes ``tests/trained/NAME.safetensors`` where it is not there yet.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from calibration.classes import CITYSCAPES
from calibration.datasets import open_split
from edgekit.core.values import Size
from edgekit.metrics.scores import add_counts, count_frame, score
from edgekit.networks.checkpoint import Description, save_checkpoint

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from kinds import KINDS, SCALES  # noqa: E402  the tests' folder is put on the path above

SIZE = Size(128, 256)
FRAMES, STEPS, BATCH, RATE = 160, 700, 6, 4e-3


def frames(split: str, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [N, 3, H, W] and int64 [N, H, W]."""
    loaded = [reference.load() for reference in open_split("streets", split, size=SIZE).references[:count]]
    images = torch.from_numpy(np.stack([frame.image for frame in loaded])).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(np.stack([frame.labels for frame in loaded])).long()


def main() -> None:
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(KINDS)
    images, labels = frames("train", FRAMES)
    others, truth = frames("val", 24)
    for name in wanted:
        path = ROOT / "tests" / "trained" / f"{name}.safetensors"
        if path.is_file():
            continue
        torch.manual_seed(0)
        network, normalization = KINDS[name](19), SCALES[name]
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (normalization.mean, normalization.std))
        optimizer = torch.optim.AdamW(network.parameters(), RATE, weight_decay=1e-4)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, STEPS)
        started = time.monotonic()
        for step in range(STEPS):
            chosen = torch.randint(0, FRAMES, (BATCH,))
            x, y = (images[chosen].float() / 255 - mean) / std, labels[chosen]
            if step % 2:
                x, y = x.flip(3), y.flip(2)
            logits = F.interpolate(network(x), y.shape[1:], mode="bilinear", align_corners=False)
            loss = F.cross_entropy(logits, y, ignore_index=255)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            found = [network((one[None].float() / 255 - mean) / std) for one in others]
            predicted = [F.interpolate(one, truth.shape[1:], mode="bilinear").argmax(1)[0] for one in found]
        counts = [
            count_frame(one.numpy().astype(np.uint8), two.numpy().astype(np.uint8), None, CITYSCAPES)
            for one, two in zip(predicted, truth, strict=True)
        ]
        miou = score(add_counts(counts), CITYSCAPES).miou
        factory = f"kinds:{type(network).__name__}"
        metrics = {"streets:val": {"miou": miou, "frames": len(counts)}}
        recipe = {
            "dataset": "streets",
            "split": "train",
            "command": f"python -m benchmarks.training.train_kinds {name}",
        }
        path.parent.mkdir(exist_ok=True)
        save_checkpoint(
            path, network, Description(factory, {}, CITYSCAPES.names, normalization, "streets", recipe, metrics)
        )
        print(f"{name}: loss {loss:.3f}, mIoU {miou:.3f}, {time.monotonic() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
