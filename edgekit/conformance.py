"""The suite every target passes, edgekit's own and those of other packages.

A plug-in's test is one line: ``assert edgekit.check_target(TARGET, tmp_path) == []``.
"""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np

from calibration.choice import choose_frames
from calibration.datasets import open_split
from edgekit.core.errors import EdgekitError
from edgekit.core.progress import Progress
from edgekit.core.seam import Target
from edgekit.core.values import PRECISIONS, Artifact, OutputKind, Precision, Recipe, SessionOptions, Size, UInt8
from edgekit.networks.checkpoint import DEFAULT_CHECKPOINT, Checkpoint, load_checkpoint
from edgekit.pipeline.accuracy import Labeller, pytorch_labeller
from edgekit.pipeline.artifacts import lazy_graph, load_artifact, make_artifact
from edgekit.pipeline.plans import Order
from edgekit.pipeline.quantization import Calibration

AGREEMENT: dict[Precision, float] = {"fp32": 0.999, "fp16": 0.99, "int8": 0.8}
"""Smallest share of pixels labelled as float PyTorch does; int8's only catches what is broken, not what is lossy."""

SIZE = Size(192, 384)
"""Large enough for the shipped network to be sure of most pixels; far below the scale it was trained at, int8 flips many."""


def check_target(
    target: Target,
    folder: Path,
    checkpoint: Checkpoint | None = None,
    size: Size = SIZE,
    precisions: tuple[Precision, ...] | None = None,
) -> list[str]:
    """Convert, quantize, open and run; returns what is wrong, one sentence each, empty when all is well.

    Args:
        target: under test.
        folder: an empty folder for artifacts.
        checkpoint: the network to use; ``spssn-streets`` by default.
        size: input size.
        precisions: of the target's; all by default.
    """
    try:
        findings = _check_description(target)
        sentence = target.missing()
        if sentence is not None:
            return [*findings, f"it is missing something here: {sentence}"]
        engine = target.engine()
    except Exception as error:  # a plug-in may raise anything; its author needs a finding
        return [f"describing itself, it raised {type(error).__name__}: {error}"]
    if not (precisions or target.precisions):
        return findings
    if engine.kind not in ("measured", "reference") or not engine.by:
        findings.append("engine() does not say what runs its artifacts")
    if engine.kind == "reference" and not engine.no_latency:
        findings.append("a reference engine's times do not count: engine().no_latency must say why and how to measure")
    used = checkpoint or load_checkpoint(DEFAULT_CHECKPOINT)
    frames = [open_split("streets", "val", size=size).references[index].load().image[None].copy() for index in range(3)]
    calibration = Calibration(choose_frames(open_split("streets", "train", size=size), 4), size)
    progress = Progress(silent=True)
    graph = lazy_graph(used, size, progress)
    order = Order(used, size, folder, "conformance", calibration)
    with pytorch_labeller(used, size) as reference:
        for recipe in _recipes(target, precisions or target.precisions):
            name = recipe.precision if recipe.output == target.output else f"{recipe.precision} as {recipe.output}"
            try:
                artifact = make_artifact(target, order, recipe, graph, progress)
            except EdgekitError as error:
                findings.append(f"{name}: {error}")
                continue
            try:
                findings += [f"{name}: {text}" for text in _check_artifact(target, artifact, frames, reference)]
            except Exception as error:  # a plug-in may raise anything; its author needs a finding
                findings.append(f"{name}: opening or running it raised {type(error).__name__}: {error}")
    return findings


def _recipes(target: Target, precisions: tuple[Precision, ...]) -> list[Recipe]:
    """Every precision in the target's own form, the first one in both."""
    other: OutputKind = "labels" if target.output == "logits" else "logits"
    return [*(Recipe(precision, target.output) for precision in precisions), Recipe(precisions[0], other)]


def _check_description(target: Target) -> list[str]:
    findings = []
    if not target.name or target.name != target.name.lower() or " " in target.name:
        findings.append(f"its name '{target.name}' is not a lower-case word")
    if not target.precisions or any(precision not in PRECISIONS for precision in target.precisions):
        findings.append(f"its precisions {target.precisions} are not among {PRECISIONS}")
    if not any(precision != "int8" for precision in target.precisions):
        findings.append("it has no float precision, so that nothing tells what int8 costs")
    if target.output not in get_args(OutputKind):
        findings.append(f"its usual output '{target.output}' is not among {get_args(OutputKind)}")
    if not target.tools():
        findings.append("tools() names no version, so that an upgrade would not be noticed")
    return findings


def _check_artifact(target: Target, artifact: Artifact, frames: list[UInt8], reference: Labeller) -> list[str]:
    findings = []
    again = load_artifact(artifact.folder)
    if again.manifest != artifact.manifest:
        findings.append("its manifest does not survive being read again")
    with target.open(artifact, SessionOptions(threads=1)) as session:
        shape = (1, artifact.size.height, artifact.size.width)
        labels = []
        for frame in frames:
            before = frame.copy()
            result = session.run(frame)
            labels.append(result)
            if result.dtype != np.uint8 or result.shape != shape:
                return [*findings, f"a session gave {result.dtype} {result.shape} instead of uint8 {shape}"]
            if not np.array_equal(before, frame):
                findings.append("a session changed the frame it was given")
        kept = labels[0].copy()
        if not np.array_equal(session.run(frames[0]), kept):
            findings.append("the same frame got other labels the second time")
        session.run(frames[1])
        if not np.array_equal(labels[0], kept):
            findings.append("labels that were handed out changed with the next frame: a session must give its own copy")
        session.run_graph()
        if max(int(result.max()) for result in labels) >= len(artifact.class_names):
            findings.append("a label is no class")
        share = float(
            np.mean([(result == reference(frame)).mean() for result, frame in zip(labels, frames, strict=True)])
        )
        if share < AGREEMENT[artifact.precision]:
            findings.append(
                f"only {share:.4f} of the pixels are labelled as float PyTorch does ({AGREEMENT[artifact.precision]} asked)"
            )
        try:
            session.run(frames[0][:, :-1])
            findings.append("a frame of another size was not refused")
        except EdgekitError:
            pass
        except Exception as error:  # a plug-in may raise anything
            findings.append(f"a frame of another size raised {type(error).__name__} instead of edgekit.TargetError")
        if not isinstance(dict(session.settings), dict) or not session.settings:
            findings.append("settings do not say what the engine used")
    return findings
