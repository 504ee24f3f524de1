"""Nothing is reported to anybody: what is done with tools that report their use."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgekit.core.registry import load_target

TELEMETRY = """
import sys
from pathlib import Path
from openvino_telemetry.utils.sender import TelemetrySender
from edgekit.core.registry import load_target
from edgekit.core.values import DeployableGraph, Normalization, Recipe, Size
from edgekit.export.graph import export_aten
import torch

sent = []
TelemetrySender.send = lambda self, backend, message: sent.append(message)
network = torch.nn.Conv2d(3, 2, 3, 8, 1).eval()
if sys.argv[1] == "edgekit":
    module = export_aten(network, torch.zeros(1, 3, 64, 64))
    graph = DeployableGraph(module, Size(64, 64), Size(8, 8), ("one", "other"), Normalization(), "")
    load_target("openvino").convert(graph, Recipe("fp32", output="logits"), None, Path.cwd())
else:
    import openvino
    openvino.convert_model(network, example_input=torch.zeros(1, 3, 64, 64))
print(len(sent))
"""


@pytest.mark.parametrize("by", ["edgekit", "OpenVINO itself"])
def test_nobody_is_told_of_a_conversion(by: str, tmp_path: Path) -> None:
    if (sentence := load_target("openvino").missing()) is not None:
        pytest.skip(sentence)
    unset = ("CI", "TF_BUILD", "JENKINS_URL")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY, by],
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout.splitlines()[-1]) > 0) == (by != "edgekit")
