"""A run's folder: held by one command at a time, and of one checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from edgekit.core.errors import EdgekitError
from edgekit.core.files import read_json
from edgekit.core.hold import held
from edgekit.core.values import MANIFEST
from edgekit.networks.checkpoint import Checkpoint

_OF_ONE_CHECKPOINT = ("artifacts", "measurements", "report", "sensitivity", "compare", "cache/pictures")
"""What a folder holds of its checkpoint; logs and the rest of the cache are known by content."""


@contextmanager
def run_folder(folder: Path, checkpoint: Checkpoint, command: str, *, replace: bool) -> Iterator[Path]:
    """A folder to put a checkpoint's artifacts, measurements and report into, held alone for the block.

    Args:
        replace: what another checkpoint left there is removed first.

    Raises:
        EdgekitError: another command works there, or it belongs to another checkpoint and ``replace`` was not asked for.
    """
    with held(folder, command):
        other = _owner(folder, checkpoint)
        if other is not None:
            if not replace:
                raise EdgekitError(
                    f"{folder} belongs to another checkpoint, '{other.get('name')}' ({str(other.get('sha256'))[:8]}), not to {checkpoint.path} "
                    f"({checkpoint.sha256[:8]}): give this one another --out, or --replace to remove what is there"
                )
            (folder / "run.json").unlink(missing_ok=True)
            for part in _OF_ONE_CHECKPOINT:
                shutil.rmtree(folder / part, ignore_errors=True)
        yield folder


def _owner(folder: Path, checkpoint: Checkpoint) -> Mapping[str, Any] | None:
    """Another checkpoint than this one that something in the folder was made of, as its manifest or ``run.json`` says."""
    for path in (folder / "run.json", *sorted((folder / "artifacts").glob(f"*/{MANIFEST}"))):
        if not path.is_file():
            continue
        try:
            document = read_json(path)
        except EdgekitError:  # damaged, and made again
            continue
        said = document.get("checkpoint") if isinstance(document, dict) else None
        if not isinstance(said, dict) or "sha256" not in said:
            continue
        # Of a network of the user's own the source may have changed; it is the same file of weights all the same.
        if said["sha256"] != checkpoint.sha256 and said.get("file_sha256") != checkpoint.file_sha256:
            return said
    return None
