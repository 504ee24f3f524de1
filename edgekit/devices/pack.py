"""The agent as one file, made of edgekit's own modules: the same modules give the same bytes."""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from edgekit import __version__
from edgekit.core.files import sha256_bytes

ROOT = Path(__file__).parents[1]
PARTS = (
    "core", "decoder", "metrics", "runtimes", "devices/__init__.py", "devices/environment.py", "devices/lifeline.py",
    "devices/local.py", "devices/worker.py", "devices/agent",
)  # fmt: skip
"""What the agent is made of: files, or folders without what lies in their folders."""
START = "from edgekit.devices.agent.main import main\nmain()\n"


@dataclass(frozen=True)
class Packed:
    """The file's bytes and their sha256."""

    data: bytes
    sha256: str

    @property
    def name(self) -> str:
        """The file's name on a device."""
        return f"agent-{self.sha256[:16]}.pyz"


@cache
def pack_agent() -> Packed:
    """A zip that Python runs."""
    files = {"__main__.py": START.encode(), "edgekit/__init__.py": f"__version__ = {__version__!r}\n".encode()}
    for part in PARTS:
        path = ROOT / part
        found = sorted(entry for entry in path.iterdir() if entry.is_file()) if path.is_dir() else [path]
        for file in found:
            if file.suffix in (".py", ".h"):
                files[f"edgekit/{file.relative_to(ROOT).as_posix()}"] = file.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(files):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), files[name], zipfile.ZIP_DEFLATED, 9)
    return Packed(buffer.getvalue(), sha256_bytes(buffer.getvalue()))
