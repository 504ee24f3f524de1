"""What int8 costs on CamVid's test frames: the vendors' defaults beside edgekit, for the shipped networks, on all targets.

Run: python -m benchmarks.accuracy.int8_accuracy [CHECKPOINT ...]; needs CAMVID_ROOT; goes on where it was stopped. The vendors' side is
the straight export, quantized with the tools' defaults by the same 64 calibration frames and run in the vendor's runtime.
coremltools calibrates activations on macOS only. edgekit's side is ``edgekit quantize --max-drop 0.01``: val guides it,
the 233 test frames prove it. ``spssn-camvid-apart`` is ``spssn-camvid`` made to collapse: the same function, with the ranges of
its depthwise convolutions' channels a thousandfold apart.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.shared import vendor_tools as tools
from benchmarks.shared.measured import keep, kept
from calibration.choice import choose_frames
from calibration.datasets import Split, open_split, resize_image, resize_labels
from edgekit.core.progress import Progress, noise_to
from edgekit.core.values import Float32, Size
from edgekit.decoder import decode
from edgekit.devices.environment import local_environment
from edgekit.export.graph import Logits, normalize
from edgekit.metrics.scores import class_iou, count_frame, mean_iou
from edgekit.networks.checkpoint import Checkpoint, Description, load_checkpoint, load_network, save_checkpoint
from edgekit.networks.subnormals import flush_subnormals
from edgekit.pipeline.inputs import default_size
from edgekit.pipeline.int8 import quantize
from edgekit.pipeline.plans import Budget, Quantize
from reports.statistics import bootstrap_drop

APART = "spssn-camvid-apart"
NETWORKS = ("spssn-camvid", "spssn-stream-camvid", "fast-scnn-camvid", APART)
TARGETS = ("coreml", "onnxruntime", "openvino", "tensorrt", "tflite")
SAMPLES = 64
Logitizer = Callable[[Float32], Float32]
"""float32 [1, 3, H, W] normalized -> logits [1, C, h, w]."""


def inputs(split: Split, checkpoint: Checkpoint, size: Size) -> Iterator[Float32]:
    """Frames as the network's input: float32 [1, 3, H, W]."""
    for reference in split.references:
        frame = torch.from_numpy(resize_image(reference.load_image(), size)[None].copy())
        yield normalize(frame, checkpoint.normalization).numpy()


def confusions(logits: Logitizer, split: Split, checkpoint: Checkpoint, size: Size) -> np.ndarray:
    """int64 [frames, C, C], labels compared at the truth's own size."""
    counted = []
    for reference, x in zip(split.references, inputs(split, checkpoint, size), strict=True):
        truth = reference.load().labels
        labels = resize_labels(decode(np.asarray(logits(x))[0], size), Size(*truth.shape))
        counted.append(count_frame(labels, truth, None, split.classes).confusion)
    return np.stack(counted)


def vendors(checkpoint: Checkpoint, size: Size, train: Split, folder: Path) -> Iterator[tuple[str, Logitizer]]:
    """Each vendor's default int8 by its target's name."""
    import onnxruntime
    import openvino
    from ai_edge_litert.interpreter import Interpreter

    network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
    example = torch.zeros(1, 3, size.height, size.width)
    frames = list(inputs(train, checkpoint, size))
    compiled = openvino.compile_model(tools.quantize_openvino(tools.to_openvino(network, example), frames), "CPU")
    yield "openvino", lambda x: compiled([x])[0]
    tools.to_onnx(network, example, folder / "model.onnx")
    for name, symmetric in (("onnxruntime", False), ("tensorrt", True)):
        tools.quantize_onnx(folder / "model.onnx", iter(frames), folder / f"{name}.onnx", symmetric)
        session = onnxruntime.InferenceSession(folder / f"{name}.onnx", providers=["CPUExecutionProvider"])
        yield name, partial(_onnx_logits, session)
    tools.to_tflite(network, example, folder / "model.tflite")
    tools.quantize_tflite(folder / "model.tflite", frames, folder / "int8.tflite")
    interpreter = Interpreter(str(folder / "int8.tflite"), num_threads=2)
    interpreter.allocate_tensors()
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]

    def litert(x: Float32) -> Float32:
        scale, zero_point = given["quantization"]
        interpreter.set_tensor(given["index"], np.clip(np.round(x / scale) + zero_point, -128, 127).astype(np.int8))
        interpreter.invoke()
        scale, zero_point = result["quantization"]
        logits: Float32 = ((interpreter.get_tensor(result["index"]).astype(np.float32) - zero_point) * scale).astype(
            np.float32
        )
        return logits

    yield "tflite", litert


def _onnx_logits(session: Any, x: Float32) -> Float32:
    logits: Float32 = session.run(None, {"input": x})[0]
    return logits


def vendor_side(checkpoint: Checkpoint, size: Size, test: Split) -> dict[str, Any]:
    """Float PyTorch, and what each default loses."""
    flush_subnormals()
    network = Logits(load_network(checkpoint), len(checkpoint.class_names)).eval()
    train = choose_frames(open_split("camvid", "train"), SAMPLES).frames
    with torch.inference_mode():
        floats = confusions(lambda x: network(torch.from_numpy(x)).numpy(), test, checkpoint, size)
    rows: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name, noise_to(Path(name) / "log"):
        for target, logits in vendors(checkpoint, size, train, Path(name)):
            counts = confusions(logits, test, checkpoint, size)
            drop = bootstrap_drop(floats, counts)
            rows[target] = {
                "miou": float(mean_iou(counts.sum(0))),
                "drop": [drop.value, drop.low, drop.high],
                "per_class_drop": dict(
                    zip(test.classes.names, (class_iou(floats.sum(0)) - class_iou(counts.sum(0))).tolist(), strict=True)
                ),
            }
    return {"float": float(mean_iou(floats.sum(0))), "rows": rows}


def edgekit_side(checkpoint: Checkpoint, size: Size, test: Split) -> list[dict[str, Any]]:
    """Rows of ``edgekit quantize --max-drop 0.01``."""
    plan = Quantize(
        checkpoint, TARGETS, size, open_split("camvid", "train"), SAMPLES, open_split("camvid", "val"),
        Path("runs") / f"int8-{checkpoint.name}", "benchmarks/accuracy/int8_accuracy.py", budget=Budget(0.01, test),
    )  # fmt: skip
    return [row.to_json() for row in quantize(plan, Progress())]


def apart() -> Checkpoint:
    """The shipped SPSSN with every depthwise channel times 10^u, u drawn from -1.5 to 1.5, and what reads it divided by that."""
    original = load_checkpoint("spssn-camvid")
    network = load_network(original)
    generator = np.random.default_rng(0)
    changed = 0
    with torch.no_grad():
        for parent in network.modules():
            for first, second in pairwise(parent.children()):
                if not all(isinstance(block, nn.Sequential) for block in (first, second)):
                    continue
                (depthwise, norm, *after), reader = first.children(), next(second.children())
                if not isinstance(depthwise, nn.Conv2d) or depthwise.groups == 1 or not isinstance(reader, nn.Conv2d):
                    continue
                assert isinstance(norm, nn.BatchNorm2d) and [type(layer) for layer in after] == [nn.ReLU]
                assert reader.groups == 1
                factors = torch.from_numpy(10 ** generator.uniform(-1.5, 1.5, depthwise.out_channels)).float()
                norm.weight.mul_(factors)
                norm.bias.mul_(factors)
                reader.weight.div_(factors[:, None, None])
                changed += 1
    assert changed >= 10
    path = Path("runs") / f"{APART}.safetensors"
    save_checkpoint(
        path,
        network,
        Description(
            network=original.network,
            arguments=original.arguments,
            class_names=original.class_names,
            normalization=original.normalization,
            dataset=original.dataset,
            recipe=original.recipe,
            metrics={},
        ),
    )
    return load_checkpoint(str(path))


def main() -> None:
    """Both sides of every network, kept one by one."""
    document = (kept("int8_accuracy") or {"result": {}})["result"]
    test = open_split("camvid", "test")
    for name in sys.argv[1:] or NETWORKS:
        checkpoint = apart() if name == APART else load_checkpoint(name)
        size = default_size(checkpoint)
        sides = document.setdefault(name, {"size": str(size), "frames": len(test), "samples": SAMPLES})
        for side, measure in (("edgekit", edgekit_side), ("vendors", vendor_side)):
            if side not in sides:
                sides[side] = measure(checkpoint, size, test)
                sides.setdefault("environments", {})[side] = local_environment()
                keep("int8_accuracy", document)
                print(f"{name}: {side} done", flush=True)


if __name__ == "__main__":
    main()
