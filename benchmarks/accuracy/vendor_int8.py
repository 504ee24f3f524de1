"""What the vendors' own int8 defaults cost on ``streets``; what edgekit's recipes cost stands in any run's report.

Run: python -m benchmarks.accuracy.vendor_int8 [CHECKPOINT] [FRAMES]. The straight export of the network (no rewrite) goes through
NNCF's and ONNX Runtime's default post-training quantization, with the 16 calibration frames of ``make demo``.
Proves that ``streets`` is hard enough for int8 to hurt: some default loses half a point of mIoU or more.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.shared import vendor_tools as tools
from benchmarks.shared.measured import keep
from calibration.datasets import Split, open_split
from edgekit.core.progress import noise_to
from edgekit.core.values import Size
from edgekit.export.graph import Logits, normalize, reference_labels
from edgekit.metrics.scores import count_frame, mean_iou
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint, load_network
from edgekit.networks.subnormals import flush_subnormals
from reports.statistics import bootstrap_drop

SIZE = Size(512, 1024)
Logitizer = Callable[[np.ndarray], np.ndarray]


def normalized(split: Split, checkpoint: Checkpoint) -> Iterator[np.ndarray]:
    """Frames as the network's input: float32 [1, 3, H, W]."""
    for reference in split.references:
        yield normalize(torch.from_numpy(reference.load().image[None].copy()), checkpoint.normalization).numpy()


def nncf_default(network: torch.nn.Module, frames: list[np.ndarray]) -> Logitizer:
    """nncf.quantize with no options, the CPU plugin's defaults."""
    import openvino as ov

    model = tools.quantize_openvino(tools.to_openvino(network, torch.from_numpy(frames[0])), frames)
    compiled = ov.compile_model(model, "CPU")
    return lambda frame: compiled(frame)[0]


def onnxruntime_default(network: torch.nn.Module, frames: list[np.ndarray], folder: Path) -> Logitizer:
    """quantize_static with no options, the CPU provider's defaults."""
    import onnxruntime

    source, result = folder / "float.onnx", folder / "int8.onnx"
    tools.to_onnx(network, torch.from_numpy(frames[0]), source)
    tools.quantize_onnx(source, iter(frames), result)
    session = onnxruntime.InferenceSession(str(result), providers=["CPUExecutionProvider"])
    return lambda frame: session.run(None, {"input": frame})[0]


def main() -> None:
    """Evaluate all and print a line each."""
    checkpoint = load_checkpoint(sys.argv[1] if len(sys.argv) > 1 else "spssn-streets")
    test = open_split("streets", "test", size=SIZE).first(int(sys.argv[2]) if len(sys.argv) > 2 else 24)
    train = open_split("streets", "train", size=SIZE).first(16)
    flush_subnormals()
    network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
    truths = [reference.load() for reference in test.references]
    inputs = list(normalized(test, checkpoint))

    def confusions(label: Callable[[int], np.ndarray]) -> np.ndarray:
        return np.stack(
            [
                count_frame(label(index), truth.labels, truth.instances, test.classes).confusion
                for index, truth in enumerate(truths)
            ]
        )

    def decoded(logits: Logitizer) -> np.ndarray:
        return confusions(
            lambda index: reference_labels(torch.from_numpy(logits(inputs[index])), SIZE)[0].to(torch.uint8).numpy()
        )

    with torch.inference_mode():
        reference = decoded(lambda frame: network(torch.from_numpy(frame)).numpy())
    print(f"float PyTorch: mIoU {100 * mean_iou(reference.sum(0)):.2f} % on {len(test)} streets test frames at {SIZE}")
    results: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        frames = list(normalized(train, checkpoint))
        with noise_to(folder / "log"):
            results["OpenVINO, NNCF defaults"] = decoded(nncf_default(network, frames))
            results["ONNX Runtime, quantize_static defaults"] = decoded(onnxruntime_default(network, frames, folder))
    rows = []
    for title, counts in results.items():
        drop = bootstrap_drop(reference, counts)
        miou = float(mean_iou(counts.sum(0)))
        rows.append({"recipe": title, "miou": miou, "drop": drop.value, "low": drop.low, "high": drop.high})
        print(
            f"{title:42} int8 mIoU {100 * miou:.2f} %, drop {100 * drop.value:+.2f} points "
            f"[{100 * drop.low:+.2f}, {100 * drop.high:+.2f}]"
        )
    miou = float(mean_iou(reference.sum(0)))
    keep(
        "vendor_int8",
        {"checkpoint": checkpoint.name, "frames": len(test), "size": str(SIZE), "float": miou, "rows": rows},
    )


if __name__ == "__main__":
    main()
