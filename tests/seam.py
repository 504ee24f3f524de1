"""What the tests at the command-line seam share: edgekit as a process or a call, plug-ins, and a small network."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

TESTS = Path(__file__).parent
NETWORK_SOURCE = '''"""A user's own network: logits at stride 4 in a tuple, with two channels more than the dataset has classes."""

import torch
from torch import nn


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, 21, 1)

    def forward(self, x):
        features = self.body(self.stem(x))
        return self.head(features), features


def factory():
    return Network()
'''

MOMENT = """
from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract
LATENCY_CONTRACTS["quick"] = LatencyContract(1, 0.0, 64, 0.0, 1)
"""


@dataclass(frozen=True)
class Done:
    """What a command left behind."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The whole of standard output as one JSON document, with nothing JSON does not know."""

        def refuse(name: str) -> None:
            raise ValueError(f"{name} is not JSON")

        return json.loads(self.out, parse_constant=refuse)

    @property
    def sentence(self) -> str:
        """edgekit's own last word on standard error; there must be one, and no traceback."""
        assert "Traceback" not in self.err, self.err
        lines = [line for line in self.err.splitlines() if line.startswith("edgekit: ")]
        assert len(lines) == 1, self.err
        return lines[0]


def environment(*paths: Path, **more: str) -> dict[str, str]:
    """A clean environment with folders to import from; the edgekit in it is the one that these tests lie beside."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("CITYSCAPES", "CAMVID", "EDGEKIT"))}
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(map(str, [*paths, TESTS.parent])), **more}


def start(*arguments: object, cwd: Path, env: Mapping[str, str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "edgekit", *map(str, arguments)], cwd=cwd, env=dict(env), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def edgekit(*arguments: object, cwd: Path, env: Mapping[str, str] | None = None) -> Done:
    """The command in a process of its own."""
    process = start(*arguments, cwd=cwd, env=env or environment())
    out, err = process.communicate(timeout=300)
    return Done(process.returncode, out, err)


def call(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object) -> Done:
    """The command in this process, where a test can reach into it: the same entry, streams and exit code."""
    from edgekit.cli.app import main

    monkeypatch.setattr(sys, "argv", ["edgekit", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as exit_:
        main()
    out, err = capfd.readouterr()
    return Done(int(exit_.value.code or 0), out, err)


def short_latency(monkeypatch: pytest.MonkeyPatch) -> None:
    """A measurement of a moment, for tests that do not look at the times."""
    from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract

    monkeypatch.setitem(LATENCY_CONTRACTS, "quick", LatencyContract(1, 0.0, 8, 0.0, 1))


def plug_in(folder: Path, package: str, target: str) -> None:
    """Lay out a package of tests/plugin as pip would install it."""
    (folder / package).symlink_to(TESTS / "plugin" / package)
    information = folder / f"{package}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package.replace('_', '-')}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(f"[edgekit.targets]\n{target} = {package}:TARGET\n")


def files(folder: Path) -> dict[str, int]:
    """Every file below a folder with its time of change."""
    return {str(path.relative_to(folder)): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.name.endswith(".partial")]


def own_network(folder: Path) -> Path:
    """``ownnet.py`` and its state dict in a folder; the labels it gives vary over a frame."""
    (folder / "ownnet.py").write_text(NETWORK_SOURCE)
    names: dict[str, Any] = {}
    exec(compile(NETWORK_SOURCE, "ownnet.py", "exec"), names)
    torch.manual_seed(3)
    network = names["factory"]()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.0)
        network.head.bias.zero_()
    torch.save(network.state_dict(), folder / "own.pth")
    return folder / "own.pth"
