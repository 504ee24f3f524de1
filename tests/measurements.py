"""Made-up measurements, and the report of them."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any
from unittest import mock

import numpy as np

from edgekit.core.measurement import Counts, read_row
from edgekit.core.record import plain, read
from edgekit.core.values import ClassSet
from edgekit.metrics.scores import FrameCounts, count_frame, dense, sparse
from reports import document as reports_document
from reports import figures
from reports import markdown as reports_markdown
from reports.document import ReportContext, Strip

CLASSES = ClassSet(
    names=("road", "building", "sky", "car", "person"),
    categories=("flat", "construction", "sky", "vehicle", "human"),
    colours=((128, 64, 128), (70, 70, 70), (70, 130, 180), (0, 0, 142), (220, 20, 60)),
    instance_pixels={"car": 400.0, "person": 90.0},
)


FRAMES = 24


HEIGHT, WIDTH = 24, 48


Documents = Sequence[Mapping[str, Any]]


def render(documents: Documents, about: ReportContext) -> dict[str, bytes | str]:
    """The report of measurements as files have them."""
    return reports_markdown.render([read_row(document) for document in documents], about)


def analyse(documents: Documents, about: ReportContext) -> Any:
    return reports_document.analyse([read_row(document) for document in documents], about)


def build_document(documents: Documents, about: ReportContext) -> dict[str, Any]:
    return reports_document.build_document([read_row(document) for document in documents], about)


def counted(document: Any) -> FrameCounts:
    return dense(read(Counts, document, "counts"), len(CLASSES))


def truths(seed: int = 0, frames: int = FRAMES, classes: int = len(CLASSES)) -> list[np.ndarray]:
    """Blocky label maps with some ignored pixels."""
    generator = np.random.default_rng(seed)
    maps = []
    for _ in range(frames):
        blocks = generator.integers(0, classes, (HEIGHT // 4, WIDTH // 4)).astype(np.uint8)
        labels = blocks.repeat(4, 0).repeat(4, 1)
        labels[:2] = 255
        maps.append(labels)
    return maps


def predictions(maps: Sequence[np.ndarray], error: float, seed: int, classes: int = len(CLASSES)) -> list[np.ndarray]:
    """The truth with a share ``error`` of wrong pixels. A larger error's wrong pixels contain a smaller one's."""
    generator = np.random.default_rng(seed)
    result = []
    for labels in maps:
        chance, shift = generator.random(labels.shape), generator.integers(1, classes, labels.shape)
        base = np.where(labels == 255, 0, labels)
        result.append(np.where(chance < error, (base + shift) % classes, base).astype(np.uint8))
    return result


def accuracy(maps: Sequence[np.ndarray], labels: Sequence[np.ndarray], floats: Sequence[np.ndarray], by: str) -> Any:
    counts = [plain(sparse(count_frame(p, t, None, CLASSES))) for p, t in zip(labels, maps, strict=True)]
    return {
        "dataset": "streets", "split": "test", "frames": [f"test-{index:04d}" for index in range(len(maps))],
        "counts": counts, "agreement": [float((a == b).mean()) for a, b in zip(labels, floats, strict=True)],
        "provenance": {"kind": "measured", "by": by, "why": ""},
    }  # fmt: skip


def latency(p50: float, seed: int, by: str, mode: str = "quick", noise: float = 0.01) -> dict[str, Any]:
    generator = np.random.default_rng(seed)
    queries = max(64, int(5200 / p50)) // 8 + 1
    rounds = [(p50 * (1 + noise * generator.standard_normal(queries))).tolist() for _ in range(8)]
    return {
        "provenance": {"kind": "measured", "by": by, "why": ""}, "scope": "frame-to-labels", "mode": mode,
        "rounds_ms": rounds, "warmup_ms": [p50 * 1.2] * max(3, int(1000 / p50) + 1), "first_ms": 2 * p50,
        "load_ms": 310.0, "peak_rss_bytes": 412_000_000,
        "settings": {"threads": 2, "inference_precision": "f32"},
    }  # fmt: skip


UNTIMED = {
    "provenance": {"kind": "not measured", "by": "", "why": "runs only on its own device; run edgekit bench there"}
}


ENVIRONMENT = {
    "cpu": "Example CPU | 2 GHz", "cores": 2, "memory_bytes": 8_000_000_000, "os": "Linux", "python": "3.12.3",
    "governor": "unavailable", "temperature": "unavailable", "packages": {"openvino": "2026.4.1"},
}  # fmt: skip


CALIBRATION = {
    "dataset": "streets", "split": "train", "frames": 32, "chosen": "by class coverage among 128 of the split",
    "scheme": "symmetric", "estimator": "least squares", "equalization": "full", "simulated_frames": 12,
    "expected_drop": {"min-max": 0.0194, "least squares": 0.0078}, "expected_drop_of_halves": [0.0081, 0.0085],
    "left_out": {"percentile 99.999": "8192 values of a map are seen"}, "frame_sizes": {"360x480": 30, "96x128": 2},
}  # fmt: skip


def measurement(target: str, title: str, precision: str, pages: Sequence[str], **more: Any) -> dict[str, Any]:
    return {
        "schema": 1, "artifact": f"{target}-{precision}-{HEIGHT}x{WIDTH}", "target": target, "title": title,
        "precision": precision, "size": [HEIGHT, WIDTH], "output": "labels", "output_stride": 1,
        "model_bytes": {"fp32": 5_240_000, "fp16": 2_650_000, "int8": 1_480_000}[precision], "device": "local",
        "device_pages": list(pages), "kept_float": ["head/conv_1"] if precision == "int8" else [], "notes": {},
        "calibration": CALIBRATION if precision == "int8" else None,
        "environment": ENVIRONMENT, **more,
    }  # fmt: skip


def run(title: str = "OpenVINO") -> list[dict[str, Any]]:
    """Measurements of a run: the float, five targets, one artifact that failed."""
    return copy.deepcopy(made_up(title))


@cache
def made_up(title: str) -> list[dict[str, Any]]:
    maps = truths()
    floats = predictions(maps, 0.10, 7)
    documents = [
        measurement(
            "pytorch",
            "PyTorch",
            "fp32",
            [],
            accuracy=accuracy(maps, floats, floats, "PyTorch 2.9"),
            latency={"provenance": {"kind": "not measured", "by": "", "why": "the float only judges accuracy"}},
        )
    ]
    plan = [
        ("openvino", title, "fp32", [], 0.10, 21.0), ("openvino", title, "int8", [], 0.105, 9.4),
        ("onnxruntime", "ONNX Runtime", "fp32", [], 0.10, 24.2),
        ("onnxruntime", "ONNX Runtime", "int8", [], 0.12, 23.9),
        ("tflite", "TFLite", "fp16", ["android"], 0.1003, 48.0), ("tflite", "TFLite", "int8", ["android"], 0.108, 26.0),
        ("tensorrt", "TensorRT", "fp16", ["jetson"], 0.1002, 0.0), ("coreml", "Core ML", "int8", ["apple"], 0.11, 0.0),
    ]  # fmt: skip
    for index, (target, name, precision, pages, error, p50) in enumerate(plan):
        labels = predictions(maps, error, 7)
        documents.append(
            measurement(
                target,
                name,
                precision,
                pages,
                accuracy=accuracy(maps, labels, floats, f"{name} 1.0"),
                latency=latency(p50, index, f"{name} 1.0") if p50 else copy.deepcopy(UNTIMED),
            )
        )
    documents[-2]["notes"] = {"trtexec": "trtexec --onnx=model.onnx --fp16"}
    documents[-1]["accuracy"]["provenance"] = {"kind": "reference", "by": "edgekit's MIL executor", "why": "stands in"}
    documents.append({
        "target": "ncnn", "title": "ncnn", "precision": "int8", "size": [HEIGHT, WIDTH],
        "failed": "the converter does not know the operator PixelShuffle",
    })  # fmt: skip
    return documents


def context(**more: Any) -> ReportContext:
    maps = truths(frames=1)
    floats = predictions(maps, 0.1, 7)
    image = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    labels = predictions(maps, 0.12, 7)
    shown = Strip("test-0000", image, maps[0], {"PyTorch fp32": floats[0], "OpenVINO int8": labels[0]})
    checkpoint = {
        "name": "spssn-streets", "sha256": "ab" * 32, "network": "spssn", "classes": list(CLASSES.names),
        "dataset": "streets", "recipe": {
            "epochs": 2, "command": "edgekit train --epochs 2",
            "initial_checkpoint": {"name": "first", "recipe": {"command": "edgekit train --epochs 1"}},
        },
        "metrics": {"streets:val": {"miou": 0.694, "frames": 64}},
    }  # fmt: skip
    values: dict[str, Any] = {
        "checkpoint": checkpoint, "dataset": {"name": "streets", "split": "test", "frames": FRAMES},
        "class_names": CLASSES.names, "classes": CLASSES, "command": "edgekit run --targets openvino,tflite",
        "created": "2026-10-05T12:00:00+00:00", "edgekit_version": "0.1.0", "strips": (shown,),
    }  # fmt: skip
    return ReportContext(**(values | more))


def pages(documents: Sequence[Mapping[str, Any]], about: ReportContext) -> dict[str, bytes | str]:
    """A report whose charts are not drawn, for tests of its words."""
    with (
        mock.patch.object(figures, "scatter", return_value=b""),
        mock.patch.object(figures, "class_drops", return_value=b""),
        mock.patch.object(figures, "sustained", return_value=b""),
    ):
        return render(documents, about)


def text(files: Mapping[str, bytes | str], name: str) -> str:
    content = files[name]
    assert isinstance(content, str)
    return content


def tables(page: str) -> list[list[list[str]]]:
    """Tables of a page as lists of rows of cells, header first, rule left out; code blocks skipped."""
    found: list[list[list[str]]] = []
    inside, fenced = False, False
    for line in page.splitlines():
        fenced ^= line.startswith("```")
        if fenced or not line.startswith("|"):
            inside = False
            continue
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not inside:
            found.append([])
        inside = True
        if not all(re.fullmatch(r"-+:?", cell) for cell in cells):
            found[-1].append(cells)
    return found


def phone(said: Callable[[], str]) -> dict[str, Any]:
    """The measurement document of a phone, with what a device may word itself worded by somebody."""
    (document,) = (copy.deepcopy(one) for one in run() if (one["target"], one["precision"]) == ("tflite", "int8"))
    condition = {
        "clock_khz": {said(): 1_800_000}, "temperature_c": {said(): 38.5}, "thermal_status": said(),
        "battery": {"level": 80.0, "celsius": 30.1, "status": said(), "plugged": [said()], "faked": False},
    }  # fmt: skip
    document |= {
        "device": "pixel", "device_pages": [], "stands_for": "android",
        "environment": {"cpu": said(), "board": said(), "clusters": [said()], "events": [said()], "packages": {said(): said()}},
        "latency": {
            "provenance": {"kind": "measured", "by": said(), "why": said()}, "scope": "graph", "mode": "quick",
            "rounds": [{"count": 64, "mean_ms": 8.0, "median_ms": 7.9}] * 4, "first_ms": 9.0, "load_ms": 20.0,
            "statistics": {"p50": 7.9, "p90": None, "p95": 8.4, "mean": 8.0, "cv": 0.01, "first": 9.0, "n": 256},
            "settings": {"tool": said(), "delegates": {said(): said()}}, "conditions": [condition] * 5, "peak_rss_bytes": 1 << 26,
            "compute_units": {"CPU": {"p50": 7.9, "operations": {said(): said()}}, "GPU": {"failed": said()}},
        },
    }  # fmt: skip
    return document
