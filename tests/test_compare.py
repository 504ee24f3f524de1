"""``edgekit compare``: a fault in an artifact is found by the layer's name, and sound artifacts do not part."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from seam import Done, call

from edgekit.core.files import sha256_path, write_json

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
