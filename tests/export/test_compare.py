"""``edgekit compare``: a fault in an artifact is found by the layer's name, and sound artifacts do not part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from graphs import graph_of
from numpy.typing import NDArray
from onnx import numpy_helper
from seam import Done, call
from torch import Tensor, nn
from torch.fx import Node

from edgekit.core.files import sha256_path, write_json
from edgekit.core.values import Size
from edgekit.export.compare import (
    LayerDistance,
    Parting,
    Samples,
    compare_layers,
    float_samples,
    map_shapes,
    parting,
)
from edgekit.export.values import visit_values

FLOAT, INT8 = ("onnxruntime-fp32-96x160", "openvino-fp32-96x160"), ("onnxruntime-int8-96x160", "openvino-int8-96x160")
Compare = Callable[..., Done]


@pytest.fixture
def artifacts(whole: tuple[Path, Callable[[], Done], Done]) -> Path:
    out, _, done = whole
    assert done.code == 0, done.err
    return out / "artifacts"


@pytest.fixture
def compare(
    small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Compare:
    """``compare(a, b, ...)`` of one frame, in this process."""
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(
        monkeypatch,
        capfd,
        "compare",
        *arguments,
        "--checkpoint",
        small_checkpoint,
        "--frames",
        1,
        "--out",
        "page",
        "--json",
    )


def damaged(artifact: Path, folder: Path, fault: Callable[[onnx.ModelProto], None]) -> Path:
    """A copy of an ONNX artifact with a fault that its manifest does not betray."""
    shutil.copytree(artifact, folder)
    path = folder / "model.onnx"
    model = onnx.load(str(path))
    fault(model)
    onnx.save(model, str(path))
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["files"]["model.onnx"] = sha256_path(path)
    write_json(folder / "manifest.json", manifest)
    return folder


def change(model: onnx.ModelProto, name: str, by: Callable[[np.ndarray], np.ndarray]) -> None:
    """Change a constant of a model."""
    (constant,) = (tensor for tensor in model.graph.initializer if tensor.name == name)
    value = numpy_helper.to_array(constant)
    constant.CopyFrom(numpy_helper.from_array(by(value).astype(value.dtype), name))


def layers(done: Done) -> dict[str, dict[str, float | None]]:
    return {row["layer"]: row for row in done.document["layers"]}


@pytest.mark.parametrize(("pair", "furthest"), [(FLOAT, 1e-4), (INT8, 0.2)], ids=["float", "int8"])
def test_sound_artifacts_do_not_part(artifacts: Path, compare: Compare, pair: tuple[str, str], furthest: float) -> None:
    done = compare(*(artifacts / name for name in pair))
    assert done.code == 0, done.err
    found = done.document
    assert found["parting"]["layer"] is None
    assert found["sentence"].startswith("They do not part")
    assert found["labels_alike"] > 0.9
    apart = [row["apart"] for row in found["layers"] if row["apart"] is not None]
    assert len(apart) > 0.9 * len(found["layers"])
    assert 0 < max(apart) < furthest
    assert found["layers"][-1]["apart"] is not None
    page = Path("page/index.md").read_text()
    assert found["sentence"].split(":")[0] in page
    assert Path("page/layers.svg").read_bytes().startswith(b"<?xml")
    assert json.loads(Path("page/compare.json").read_text())["layers"] == found["layers"]


FAULTS = {
    "channels in another order": lambda weights: np.roll(weights, 1, 0),
    "a sign": lambda weights: -weights,
    "a factor": lambda weights: 1.5 * weights,
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_layer_is_named(artifacts: Path, compare: Compare, tmp_path: Path, fault: str) -> None:
    """Whatever happened to a convolution's weights, it is found in the first layer that the fault reaches."""
    broken = damaged(
        artifacts / FLOAT[0], tmp_path / "broken", lambda model: change(model, "folded_weight_21", FAULTS[fault])
    )
    done = compare(artifacts / FLOAT[1], broken)
    assert done.code == 0, done.err
    where = done.document["parting"]
    assert (*where["unseen"], where["layer"])[0] == "units.1.2.block.1.0"
    before = done.document["layers"][: [row["layer"] for row in done.document["layers"]].index("units.1.2.block.1.0")]
    assert all(row["apart"] < 1e-4 for row in before if row["apart"] is not None)
    assert "units.1.2.block.1.0" in done.document["sentence"]


def test_a_wrong_scale_in_int8_is_named(artifacts: Path, compare: Compare, tmp_path: Path) -> None:
    """The scale that one activation is read with: where float and int8 differ anyway."""

    def fault(model: onnx.ModelProto) -> None:
        reader = next(node for node in model.graph.node if node.op_type == "Conv" and node.name == "node_conv2d_21")
        source = next(node for node in model.graph.node if reader.input[0] in node.output)
        assert source.op_type == "DequantizeLinear"
        scale = onnx.TensorProto()
        scale.CopyFrom(next(tensor for tensor in model.graph.initializer if tensor.name == source.input[1]))
        scale.CopyFrom(numpy_helper.from_array((1.5 * numpy_helper.to_array(scale)).astype(np.float32), "wrong_scale"))
        model.graph.initializer.append(scale)
        source.input[1] = "wrong_scale"

    broken = damaged(artifacts / INT8[0], tmp_path / "broken", fault)
    done = compare(broken, artifacts / INT8[1])
    where = done.document["parting"]
    assert where["layer"] is not None
    assert {"units.1.2.block.0.0", "units.1.2.block.1.0"} & {where["layer"], *where["unseen"]}


def test_int8_beside_its_checkpoint(artifacts: Path, compare: Compare, small_checkpoint: Path) -> None:
    """Float PyTorch is no distance from itself, and the other's distance to float is how far they are apart."""
    done = compare(artifacts / INT8[1], small_checkpoint)
    assert done.code == 0, done.err
    for row in done.document["layers"]:
        assert row["second"] == 0.0
        assert row["apart"] == row["first"]
    assert done.document["second"] == "pytorch fp32"


# Models that are not as they should be, or look so ---------------------------------------------------------------------


class Twice(nn.Module):
    """Two sums in one module, the second after a convolution; and a map that is another's multiple."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 8, 3, 2, 1), nn.Conv2d(8, 8, 3, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + x.relu()
        y = self.second(x * (20 / 289))
        return y + x


def parted(change: Callable[[str, NDArray[Any]], NDArray[Any]]) -> tuple[Parting, dict[str, LayerDistance]]:
    """``Twice`` beside itself, its values as ``change`` makes them."""
    graph = graph_of(Twice(), Size(32, 48))
    frame = np.random.default_rng(0).integers(0, 256, (1, 32, 48, 3), np.uint8)
    expected = float_samples(graph, [frame])
    sides = [Samples(frozenset(map_shapes(graph).values()), rescaled=False) for _ in range(2)]

    def look(node: Node, value: Any) -> Any:
        if isinstance(value, Tensor):
            sides[0].look(node.name, value.numpy())
            sides[1].look(node.name, change(node.name, value.numpy().copy()))
        return value

    visit_values(graph, frame, look)
    rows = compare_layers(graph, expected, *sides)
    json.dumps([asdict(row) for row in rows], allow_nan=False)
    return parting(graph, rows, 0.01), {row.layer: row for row in rows}


def test_a_map_and_its_multiple_are_told_apart() -> None:
    """The multiple explains a tensor as well as its own value does, but for rounding."""
    where, rows = parted(lambda name, value: value)
    assert where.layer is None
    assert all(row.apart == 0.0 for row in rows.values())


def test_infinities_are_compared_with_nothing() -> None:
    """As where int8 divided by zero."""

    def infinite(name: str, value: NDArray[Any]) -> NDArray[Any]:
        return np.full_like(value, np.inf) if name == "mul" else value * (1.5 if name == "conv2d_1" else 1.0)

    where, rows = parted(infinite)
    assert rows[":mul"].second is None
    assert (where.layer, where.unseen) == ("second", (":mul",))


def test_what_a_module_does_twice_stands_where_it_was_measured() -> None:
    """Its second sum parts because the convolution before it does."""
    where, rows = parted(lambda name, value: value * (1.5 if name in ("conv2d_1", "add_1") else 1.0))
    assert rows[":add"].apart is not None and rows[":add"].apart > 0.1
    assert where.layer == "second"


# What cannot be compared -----------------------------------------------------------------------------------------------


def test_refusals(artifacts: Path, compare: Compare, tmp_path: Path, small_checkpoint: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(artifacts / FLOAT[0], other)
    manifest = json.loads((other / "manifest.json").read_text())

    def rewritten(**changes: object) -> Path:
        write_json(other / "manifest.json", manifest | changes)
        return other

    done = compare(artifacts / FLOAT[1], rewritten(checkpoint={"name": "x", "sha256": "0" * 64}))
    assert (done.code, "different checkpoints" in done.sentence) == (2, True), done.err
    done = compare(artifacts / FLOAT[1], rewritten(size=[96, 192]))
    assert (done.code, "compare artifacts of one size" in done.sentence) == (2, True), done.err
    done = compare(small_checkpoint, small_checkpoint)
    assert (done.code, "neither is an artifact's folder" in done.sentence) == (2, True), done.err
    done = compare(rewritten(checkpoint={"name": "x", "sha256": "0" * 64}), other)
    assert (done.code, "--checkpoint" in done.sentence) == (2, True), done.err
    (other / "model.onnx").write_bytes(b"changed")
    done = compare(artifacts / FLOAT[1], other)
    assert (done.code, "was changed" in done.sentence) == (1, True), done.err
    assert not Path("page/index.md").exists()
