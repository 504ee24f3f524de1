"""How ONNX Runtime reads the frame."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from graphs import first, graph_of
from own_targets import missing

from calibration.equalization import equalized
from calibration.ranges import calibrate
from edgekit.core.values import (
    Precision,
    Recipe,
    Size,
)
from edgekit.export.graph import normalize


@pytest.mark.parametrize(
    ("channels", "kernel", "stride", "padding", "dilation", "width", "rows", "folded"),
    [
        (32, (3, 3), (2, 2), 1, 1, 48, True, True),
        (16, (5, 4), (1, 1), 2, 1, 47, True, True),  # four columns of the output at once, an even kernel
        (20, (1, 7), (2, 3), 0, 1, 52, True, True),  # three at once would leave one over
        (8, (3, 3), (2, 2), 1, 1, 49, True, True),  # a width that 2 does not divide
        (24, (2, 2), (3, 3), 0, 1, 48, True, True),  # a stride beyond the kernel
        (16, (3, 3), (1, 1), 2, 2, 40, False, False),  # dilated
        (64, (3, 3), (2, 2), 1, 1, 48, True, False),  # wide enough as it is
        (31, (3, 3), (2, 2), 1, 1, 46, True, False),  # 23 columns do not divide by two
    ],
)
def test_onnxruntime_reads_the_frame_as_it_lies(
    channels: int, kernel: tuple[int, int], stride: tuple[int, int], padding: int, dilation: int, width: int, rows: bool,
    folded: bool, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """In float, planes need not be made; in int8 several columns at once give the same integers as one by one."""
    if (sentence := missing("onnxruntime")) is not None:
        pytest.skip(sentence)
    import onnxruntime

    from edgekit.export import columns
    from targets.onnx_graph.build import build

    network, graph, frame = first(channels, kernel, stride, padding, dilation, width)
    quantization = calibrate(graph, lambda: iter([frame]), 1).quantization
    graph = equalized(graph, quantization.scales)

    def logits(precision: Precision) -> tuple[np.ndarray, Counter[str]]:
        model, _ = build(graph, Recipe(precision, output="logits"), quantization, "asymmetric")
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry(
            "session.x64quantprecision", "1"
        )  # the graph is tested, not overflows on old CPUs
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return session.run(None, {"frame": frame})[0], Counter(node.op_type for node in model.graph.node)

    found, operations = logits("fp32")
    expected = network(normalize(torch.from_numpy(frame), graph.normalization)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert ("Transpose" not in operations) == rows
    together, operations = logits("int8")
    assert ("Reshape" in operations) == folded
    monkeypatch.setattr(columns, "FOLDED_CHANNELS", 0)
    one_by_one, operations = logits("int8")
    assert "Reshape" not in operations
    assert np.array_equal(together, one_by_one)
    assert np.abs(together - expected).max() < 0.1 * np.abs(expected).max()


def test_bright_pixels_do_not_overflow_in_onnxruntime() -> None:
    """Two products of a bright byte and a large int8 do not fit the 16 bits that x86 without VNNI adds them in."""
    if (sentence := missing("onnxruntime")) is not None:
        pytest.skip(sentence)
    import onnx
    import onnxruntime

    from targets.onnx_graph.build import build

    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 16, 3, 2, 1), torch.nn.ReLU()).eval()
    with torch.no_grad():
        network[0].weight.abs_()
    graph = graph_of(network, Size(48, 48))
    frame = np.full((1, 48, 48, 3), 255, np.uint8)
    quantization = calibrate(graph, lambda: iter([frame, frame // 2]), 2).quantization
    graph = equalized(graph, quantization.scales)
    model, _ = build(graph, Recipe("int8", output="logits"), quantization, "asymmetric")
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"frame": frame})[0]
    expected = network(normalize(torch.from_numpy(frame), graph.normalization)).detach().numpy()
    assert np.abs(found - expected).max() < 0.03 * np.abs(expected).max()
    by_pixels = {
        entry.name: entry.data_type for entry in model.graph.initializer if entry.name.startswith("pixel_weight")
    }
    assert onnx.TensorProto.UINT8 in by_pixels.values() and onnx.TensorProto.INT8 not in by_pixels.values()
