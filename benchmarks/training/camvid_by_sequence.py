"""CamVid's training and validation frames split anew, by street sequence; frames of test are not in it.

All of val is of a sequence that train holds as well, three quarters of test are of one that no other frame shows. Here val is
sequence 0006R0, which train then lacks: what holds there may hold on test.

Run: python -m benchmarks.training.camvid_by_sequence; needs CAMVID_ROOT. Train by it with CAMVID_ROOT=runs/camvid-by-sequence.
"""

from __future__ import annotations

import os
from pathlib import Path

FOLDER = Path("runs/camvid-by-sequence")
HELD_OUT = "0006R0"


def by_sequence(root: Path) -> Path:
    """A tree of links to the frames and labels of ``root``, in the same layout."""
    for kind in ("", "annot"):
        for split in ("train", "val"):
            (FOLDER / f"{split}{kind}").mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            for source in sorted((root / f"{split}{kind}").iterdir()):
                place = "val" if source.name.startswith(HELD_OUT) else "train"
                link, frame = FOLDER / f"{place}{kind}" / source.name, source.resolve()
                link.unlink(missing_ok=True)  # only now: ``source`` is ``link`` where the root is this tree already
                link.symlink_to(frame)
    return FOLDER


if __name__ == "__main__":
    print(by_sequence(Path(os.environ["CAMVID_ROOT"])))
