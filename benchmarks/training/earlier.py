"""What SPSSN had on CamVid's test frames before it was trained further: rows of Table 5.

Run: python -m benchmarks.training.earlier CHECKPOINT WHEN, for example "after 230 epochs". Nothing is evaluated again:
``edgekit train`` did that on the test frames, and wrote it into the checkpoint.
"""

from __future__ import annotations

import sys

from benchmarks.shared.measured import keep, kept
from edgekit.networks.checkpoint import load_checkpoint


def main() -> None:
    """Keep what the checkpoint says of itself beside what others said."""
    checkpoint = load_checkpoint(sys.argv[1])
    before = (kept("earlier") or {"result": {}})["result"]
    keep("earlier", before | {sys.argv[2]: checkpoint.describe()})


if __name__ == "__main__":
    main()
