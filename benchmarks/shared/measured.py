"""Where benchmarks keep what they measured, with the machine and the time, for ``docs/results.md``."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from edgekit.core.files import read_json, write_json
from edgekit.devices.environment import local_environment

FOLDER = Path(__file__).parents[1] / "measured"


def keep(name: str, result: Any) -> None:
    """Write ``benchmarks/measured/<name>.json``."""
    created = datetime.now(UTC).isoformat(timespec="seconds")
    write_json(FOLDER / f"{name}.json", {"created": created, "environment": local_environment(), "result": result})


def gpu() -> dict[str, str]:
    """The GPU that PyTorch computes on, which an environment does not name, and its PyTorch."""
    import torch

    return {"device": torch.cuda.get_device_name(), "torch": str(torch.__version__)}


def kept(name: str) -> Any:
    """What :func:`keep` wrote, or None when it never ran."""
    path = FOLDER / f"{name}.json"
    return read_json(path) if path.is_file() else None
