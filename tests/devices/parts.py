"""The real parts that device tests need, and which command brings them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import sshd


def missing(part: str) -> str | None:
    """Why tests that need ``sshd`` or ``adb`` are left out; None where ``make test-devices`` runs them and the part is there."""
    if not os.environ.get("EDGEKIT_TEST_DEVICES"):
        return f"a real {part} is needed: make test-devices runs this"
    there = Path(sshd.SSHD).is_file() if part == "sshd" else shutil.which(part) is not None
    return None if there else f"there is no {part} here: make test-devices installs it"
