"""int8 that is not what was simulated is found as it is made: mended at the layer where it breaks, or called collapsed."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from own_targets import missing
from seam import Done, edgekit, environment, plug_in

from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, Converted, DeployableGraph, Quantization, Recipe, Size
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint
from edgekit.pipeline.artifacts import lazy_graph, make_artifact
from edgekit.pipeline.check import WORSE, collapsed, doubt
from edgekit.pipeline.mending import simulated_drop
from edgekit.pipeline.plans import Order
from edgekit.pipeline.quantization import Calibration

SIZE = Size(96, 192)
pytestmark = pytest.mark.skipif(missing("onnxruntime") is not None, reason=str(missing("onnxruntime")))


@pytest.fixture(scope="module")
def checkpoint(small_checkpoint: Path) -> Checkpoint:
    return load_checkpoint(str(small_checkpoint))


def int8(checkpoint: Checkpoint, folder: Path, target: Any) -> Artifact:
    calibration = Calibration(choose_frames(open_split("streets", "train", size=SIZE), 4), SIZE)
    order = Order(checkpoint, SIZE, folder, "edgekit quantize", calibration)
    progress = Progress(silent=True)
    return make_artifact(target, order, Recipe("int8", target.output), lazy_graph(checkpoint, SIZE, progress), progress)


def test_int8_that_is_what_was_simulated_is_left_alone(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = int8(checkpoint, tmp_path, load_target("onnxruntime"))
    seen = made.manifest["check"]
    assert made.manifest["mended"] == [] and collapsed(made.manifest) is None and doubt(made) is None
    assert seen["expected_drop"] - simulated_drop(made.manifest["calibration"]) < WORSE


@pytest.mark.parametrize("share", [0.02, 300.0])
def test_a_tensor_with_a_wrong_range_is_mended_by_its_layer(
    share: float, checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off, or with next to no levels: the layer that reads it stays in float, and few others do."""
    from targets.onnx_graph import build

    ranges = build._ranges

    def spoiled(model: Any, *rest: Any) -> tuple[dict[str, tuple[float, float]], dict[str, str]]:
        found, kept = ranges(model, *rest)
        maps = [name for node in model.graph.node if node.op_type == "Conv" for name in node.input[:1] if name in found]
        name = maps[len(maps) // 2]
        return {**found, name: (found[name][0] * share, found[name][1] * share)}, kept

    monkeypatch.setattr(build, "_ranges", spoiled)
    made = int8(checkpoint, tmp_path, load_target("onnxruntime"))
    assert made.manifest["mended"] and collapsed(made.manifest) is None
    assert len(made.manifest["mended"]) <= 6
    assert made.manifest["check"]["expected_drop"] - simulated_drop(made.manifest["calibration"]) <= WORSE
    assert "int8 broke at" in str(doubt(made))
    assert made.manifest["recipe"]["keep_float"] == []  # what was asked for


@dataclass(frozen=True)
class Blind:
    """ONNX Runtime's target with classes mixed up in int8, which shows nothing of what it computes."""

    own: Any

    def __getattr__(self, name: str) -> Any:
        if name == "show_tensors":
            raise AttributeError(name)
        return getattr(self.own, name)

    def convert(
        self, graph: DeployableGraph, recipe: Recipe, quantization: Quantization | None, folder: Path
    ) -> Converted:
        module = copy.deepcopy(graph.module)
        with torch.no_grad():
            for value in module.buffers():
                if value.ndim == 4 and value.shape[0] == len(graph.class_names):
                    value.copy_(value.roll(3, 0))
        found: Converted = self.own.convert(replace(graph, module=module), recipe, quantization, folder)
        return found


def test_what_cannot_be_mended_has_collapsed(checkpoint: Checkpoint, tmp_path: Path) -> None:
    made = int8(checkpoint, tmp_path, Blind(load_target("onnxruntime")))
    assert "points of mIoU" in str(collapsed(made.manifest)) and "do not ship it" in str(collapsed(made.manifest))
    assert str(doubt(made)).startswith("onnxruntime int8 has collapsed")


def test_commands_refuse_what_collapsed(small_checkpoint: Path, tmp_path: Path) -> None:
    """Exit code 4, a line of its own on the page before any other, and never a recommendation."""
    plug_in(tmp_path, "edgekit_torchscript", "torchscript")
    plug_in(tmp_path, "edgekit_spoiled", "spoiled")

    def run(*arguments: object) -> Done:
        return edgekit(*arguments, cwd=tmp_path, env=environment(tmp_path))

    common = (small_checkpoint, "--size", "96x192", "--frames", 4, "--samples", 4, "--out", "out")
    done = run("quantize", *common, "--calib", "streets", "--target", "spoiled")
    assert done.code == 4 and "collapsed" in done.sentence and "do not ship it" in done.sentence
    assert "collapsed:" in done.out
    done = run("run", *common, "--targets", "spoiled,onnxruntime")
    assert done.code == 4 and "spoiled" in done.sentence.lower()
    index = (tmp_path / "out" / "report" / "index.md").read_text()
    first = next(line for line in index.splitlines() if line.startswith("- "))
    assert first.startswith("- **Spoiled int8 has collapsed**")
    assert "Fastest on local" not in index or "Spoiled" not in index.split("Fastest on local")[1].splitlines()[0]
