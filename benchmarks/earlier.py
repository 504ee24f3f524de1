"""SPSSN on CamVid after exactly the training that the two others had, before it was trained on: a row of Table 5.

Run: python benchmarks/equal_budget.py CHECKPOINT, the checkpoint that the first two commands of ``spssn-camvid``'s history gave.
Nothing is evaluated again: ``edgekit train`` did that on the test frames, and wrote it into the checkpoint.
"""

from __future__ import annotations

import sys

from measured import keep

from edgekit.networks.checkpoint import load_checkpoint


def main() -> None:
    """Keep what the checkpoint says of itself."""
    checkpoint = load_checkpoint(sys.argv[1])
    keep("equal_budget", {"checkpoint": checkpoint.describe(), "scores": checkpoint.metrics["camvid:test"]})


if __name__ == "__main__":
    main()
