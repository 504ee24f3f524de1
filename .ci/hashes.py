"""Writes constraints-hashed.txt: the pins of constraints.txt with the sha256 of every file that PyPI has of each for Python 3.11.

Run it after constraints.txt changed: python .ci/hashes.py. It needs PyPI and the packages ``packaging`` and ``pip``.
"""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

ROOT = Path(__file__).parent.parent
FORM = "application/vnd.pypi.simple.v1+json"
CPU_TORCH = "6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"
"""torch-2.13.0+cpu-cp311-cp311-manylinux_2_28_x86_64.whl, of PyTorch's own index, which PyPI does not list: the file that was tested."""
HEAD = """\
# The pins of constraints.txt with the hashes of their files for Python 3.11, written by .ci/hashes.py. Use with:
# pip install --require-hashes --extra-index-url https://download.pytorch.org/whl/cpu -r constraints-hashed.txt && pip install --no-deps .
"""


def fits(name: str) -> bool:
    """Whether a file is a wheel that Python 3.11 takes, or a source archive."""
    if not name.endswith(".whl"):
        return name.endswith((".tar.gz", ".zip"))
    try:
        tags = parse_wheel_filename(name)[3]
    except InvalidWheelFilename:
        return False
    return any(
        tag.interpreter in ("py3", "py311", "cp311") or (tag.abi == "abi3" and int(tag.interpreter[3:] or 0) <= 11)
        for tag in tags
    )


def hashes(name: str, version: str) -> list[str]:
    """sha256 of each fitting file of a release, sorted."""
    request = urllib.request.Request(f"https://pypi.org/simple/{canonicalize_name(name)}/", headers={"Accept": FORM})
    with urllib.request.urlopen(request, timeout=60) as answer:
        files = json.load(answer)["files"]
    wanted, found = Version(version), []
    for file in files:
        match = re.match(r".+?-([^-]+?)(?:-.*\.whl|\.tar\.gz|\.zip)$", file["filename"][len(name) - 1 :])
        try:
            same = match is not None and Version(match[1]) == wanted
        except ValueError:
            same = False
        if same and fits(file["filename"]):
            found.append(file["hashes"]["sha256"])
    return sorted(found)


def main() -> None:
    """Write the file; ends with an error where a release has no file."""
    lines, missing = [], []
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        name, _, version = line.partition(";")[0].strip().partition("==")
        found = hashes(name, version) + ([CPU_TORCH] if name == "torch" else [])
        if not found:
            missing.append(line)
        lines.append(" \\\n    ".join([line, *(f"--hash=sha256:{digest}" for digest in found)]))
    if missing:
        sys.exit(f"PyPI has no file of {', '.join(missing)}")
    (ROOT / "constraints-hashed.txt").write_text(HEAD + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
