"""The linter of TensorRT's parser rules: what edgekit writes is clean, and each broken rule is found."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
helper, numpy_helper, TensorProto = onnx.helper, onnx.numpy_helper, onnx.TensorProto

from targets.onnx_graph.rules import check  # noqa: E402  (onnx must be known to be there first)


def model(**changes: np.ndarray | str | None) -> onnx.ModelProto:
    """frame -> Cast -> Q -> DQ -> Conv(int8 weights -> DQ) -> Relu, with parts replaced."""
    values = {
        "scale": np.float32(0.1), "zero": np.int8(0), "weight": np.ones((4, 3, 3, 3), np.int8),
        "weight_scale": np.full(4, 0.01, np.float32), "weight_zero": np.zeros(4, np.int8), "bias": np.zeros(4, np.float32),
    }  # fmt: skip
    values.update({key: value for key, value in changes.items() if isinstance(value, np.ndarray | np.generic)})
    nodes = [
        helper.make_node("Cast", ["frame"], ["x"], to=TensorProto.FLOAT, name="cast"),
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], name="quantize"),
        helper.make_node(
            "DequantizeLinear", ["q", changes.get("dequantize_scale_name", "scale"), "zero"], ["d"], name="dequantize"
        ),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale", "weight_zero"], ["w"], axis=0, name="weights"),
        helper.make_node("Conv", ["d", "w", "bias"], ["y"], name="conv"),
        helper.make_node(str(changes.get("last", "Relu")), ["y"], ["z"], name="last"),
    ]
    if "other_scale" in values:
        values["other"] = values.pop("other_scale")
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("frame", TensorProto.UINT8, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 6, 6])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])


def errors(built: onnx.ModelProto) -> str:
    return " | ".join(finding.text for finding in check(built) if finding.level == "error")


def test_clean_graph() -> None:
    assert check(model()) == []


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"zero": np.int8(3)}, "zero point is not 0"),
        ({"zero": np.uint8(0)}, "not int8"),
        ({"scale": np.float32(0.0)}, "not above zero"),
        ({"scale": np.float32(np.nan)}, "not above zero"),
        ({"scale": np.full(3, 0.1, np.float32), "zero": np.zeros(3, np.int8)}, "scale per channel"),
        ({"weight_scale": np.full(3, 0.1, np.float32)}, "3 scales on axis 0"),
        ({"dequantize_scale_name": "other", "other_scale": np.float32(0.2)}, "another scale"),
        ({"last": "Col2Im"}, "operator Col2Im"),
    ],
)
def test_broken_rules(changes: dict[str, object], text: str) -> None:
    assert text in errors(model(**changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("operator", "attributes", "text"),
    [
        ("Resize", {"mode": "cubic"}, "cubic"),
        ("Resize", {"mode": "linear", "antialias": 1}, "antialiasing"),
        ("MaxPool", {"kernel_shape": [3, 3], "dilations": [2, 2]}, "dilated"),
        ("MaxPool", {"kernel_shape": [3, 3], "dilations": [1, 1]}, ""),
        ("AveragePool", {"kernel_shape": [3, 3], "dilations": [2, 2]}, "dilated"),
        ("ScatterND", {"reduction": "add"}, "adds up"),
        ("ScatterND", {}, ""),
        ("LSTM", {"hidden_size": 4}, ""),
        ("LSTM", {"hidden_size": 4, "input_forget": 1}, "coupled"),
        ("GRU", {"layout": 1}, "batch first"),
        ("RNN", {}, ""),
        ("Hardmax", {}, ""),
    ],
)
def test_attributes_that_the_parser_refuses(operator: str, attributes: dict[str, object], text: str) -> None:
    built = model()
    built.graph.node.pop()
    built.graph.node.append(helper.make_node(operator, ["y"], ["z"], name="last", **attributes))
    assert text in errors(built) and bool(text) == bool(errors(built))


@pytest.mark.parametrize(("count", "is_sorted", "text"), [(4, 1, ""), (3840, 1, "topk of 3840"), (4, 0, "not sorted")])
def test_what_topk_may_not_be(count: int, is_sorted: int, text: str) -> None:
    built = model()
    built.graph.initializer.append(numpy_helper.from_array(np.array([count]), "count"))
    built.graph.node.append(helper.make_node("TopK", ["z", "count"], ["values", "places"], sorted=is_sorted))
    assert text in errors(built) and bool(text) == bool(errors(built))


def test_places_of_the_maxima() -> None:
    built = model()
    built.graph.node.pop()
    built.graph.node.append(helper.make_node("MaxPool", ["y"], ["z", "places"], kernel_shape=[2, 2], name="last"))
    assert errors(built) == ""
    built.graph.node.append(helper.make_node("Cast", ["places"], ["read"], to=TensorProto.FLOAT))
    assert "places of the maxima" in errors(built)


def test_quantized_bias_and_uint8_input() -> None:
    built = model()
    built.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int32), "bias8"))
    built.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.int32), "bias_zero"))
    built.graph.node.insert(
        4, helper.make_node("DequantizeLinear", ["bias8", "weight_scale", "bias_zero"], ["b"], axis=0)
    )
    built.graph.node[5].input[2] = "b"
    assert "bias" in errors(built)
    direct = model()
    direct.graph.node[0].op_type = "Relu"
    assert "a Cast to float must follow" in errors(direct)


def test_scale_computed_at_run_time() -> None:
    built = model()
    built.graph.node.insert(0, helper.make_node("Identity", ["scale"], ["computed"]))
    built.graph.node[2].input[1] = "computed"
    assert "computed at run time" in errors(built)


def test_vendor_default_breaks_the_rules(tmp_path: Path) -> None:
    """ONNX Runtime's own defaults are refused (non-zero zero points, int32 bias): the linter sees it."""
    quantization = pytest.importorskip("onnxruntime.quantization")
    weight = numpy_helper.from_array(np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float32), "w")
    bias = numpy_helper.from_array(np.ones(4, np.float32), "b")
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"]), helper.make_node("Relu", ["y"], ["z"])], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4, 6, 6])], [weight, bias],
    )  # fmt: skip
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10), tmp_path / "a.onnx")

    class Reader(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.left = 2

        def get_next(self) -> dict[str, np.ndarray] | None:
            self.left -= 1
            return {"x": np.random.default_rng(1).random((1, 3, 8, 8), np.float32)} if self.left >= 0 else None

    quantization.quantize_static(tmp_path / "a.onnx", tmp_path / "b.onnx", Reader())
    found = errors(onnx.load(tmp_path / "b.onnx"))
    assert "bias" in found or "zero point" in found
