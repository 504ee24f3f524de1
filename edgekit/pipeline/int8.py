"""What ``edgekit quantize`` and ``edgekit sensitivity`` do: int8 artifacts, what they lose, and a budget that is kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np

from calibration.choice import choose_frames
from calibration.datasets import Split, resize_image, unlabelled
from edgekit.core.errors import DataError, EdgekitError, TargetError, UsageError
from edgekit.core.files import clean_partials, read_sealed, sha256_json, write_json, write_sealed
from edgekit.core.hold import is_held
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target, require
from edgekit.core.values import Artifact, DeployableGraph, OutputKind, Provenance, Scheme, Size, UInt8
from edgekit.export.layers import nodes_of
from edgekit.metrics.scores import FrameCounts, add_counts, class_iou, counts_from_json, score
from edgekit.networks.checkpoint import Checkpoint, trained_on
from edgekit.pipeline.accuracy import (
    Frames,
    Labeller,
    artifact_labeller,
    measure_accuracy,
    read_reference,
    reference_labels_folder,
    stored_labeller,
)
from edgekit.pipeline.artifacts import lazy_graph, recipe_for
from edgekit.pipeline.conversion import Job, Order, convert_all, is_prepared, preparing
from edgekit.pipeline.here import bench_frames_of, latencies_here
from edgekit.pipeline.inputs import refuse_guided, split_for_agreement
from edgekit.pipeline.pages import write_pages
from edgekit.pipeline.quantization import (
    Calibration,
    equalized_graph,
    prepare,
    quantization_key,
    refuse_evaluated,
)

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
KEPT_AT_MOST = 32
"""So many of the most sensitive layers stay in float at most, to hold a budget: each number tried takes a conversion."""
RANKING_PIXELS = 3 << 20
"""Layers are ranked on frames of about so many pixels together."""

RANKING_SCHEMA = 2
"""Of what a kept ranking holds."""


@dataclass(frozen=True)
class Yardstick:
    """Labelled frames, and what float PyTorch makes of them.

    Attributes:
        frames: the frames.
        reference: folder of float PyTorch's labels.
        counts: float PyTorch's, frame by frame.
        trained_on: the checkpoint saw these frames in training; None where it does not say what it was trained on.
    """

    frames: Frames
    reference: Path
    counts: tuple[FrameCounts, ...]
    trained_on: bool | None


@dataclass(frozen=True)
class Budget:
    """How much mIoU int8 may lose, and where that is proved.

    Attributes:
        max_drop: a fraction; the upper end of the drop's 95 % interval must not exceed it.
        verification: frames that neither calibrated nor guided a repair; None where there are none.
        why_not: the reason, then.
    """

    max_drop: float
    verification: Split | None
    why_not: str = ""


@dataclass(frozen=True)
class Quantizing:
    """What all targets of one ``quantize`` have in common."""

    order: Order
    calibration: Calibration
    compared: Frames
    compared_reference: Path
    guide: Yardstick | None
    verification: Yardstick | None
    threads: int | None
    progress: Progress


def quantize(
    checkpoint: Checkpoint,
    targets: Sequence[str],
    calibration_split: Split,
    samples: int,
    evaluation: Split | None,
    why_not: str,
    size: Size,
    output: OutputKind | None,
    output_stride: int,
    keep_float: tuple[str, ...],
    budget: Budget | None,
    folder: Path,
    threads: int | None,
    command: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """int8 artifacts, one per target, compared with float PyTorch on frames that did not calibrate.

    Args:
        calibration_split: frames to choose from.
        evaluation: labelled frames for mIoU and its drop; None when there are none.
        why_not: the reason, then.
        keep_float: layers that stay in float.
        budget: where it breaks on ``evaluation``, more layers stay in float, the most sensitive first.

    Returns:
        One plain row per target; ``failed`` in it says why there is no more.

    Raises:
        UsageError: what was asked for contradicts itself, on any target.
        EdgekitError: the only target failed.
    """
    clean_partials(folder / "artifacts", alone=is_held(folder))
    clean_partials(folder / "cache", alone=is_held(folder))
    choice, others = split_for_agreement(calibration_split, samples)
    calibration, chosen = Calibration(choice, size), choice.frames
    verified = budget.verification if budget is not None else None
    for split in (evaluation, verified):
        if split is not None:
            refuse_evaluated(calibration, split)
    if evaluation is not None and verified is not None:
        refuse_guided(evaluation, verified)
    for split in (evaluation, verified) if budget is not None else ():
        if split is not None and len(split) < 2:
            raise UsageError(
                f"--max-drop is judged by the spread over frames, and there is one of {split.dataset} {split.split}: "
                "name more by --frames, --eval or --verify"
            )
    fewer = f" ({samples} were asked for, but some are held back to compare on)" if len(chosen) < samples else ""
    progress.say(
        f"calibrating on {len(chosen)} {chosen.dataset} {chosen.split} frames{fewer}, comparing labels on {len(others)} others"
    )
    if keep_float:  # a layer that does not exist is told before anything is computed
        nodes_of(lazy_graph(checkpoint, size, progress)(), keep_float)
    jobs = []
    for name in targets:
        target = require(name)
        if "int8" not in target.precisions:
            if len(targets) == 1:
                raise TargetError(f"{target.title} has no int8: choose another --target")
            progress.say(f"{target.title}: skipped, it has no int8")
            continue
        jobs.append(Job(name, replace(recipe_for(target, "int8", output, output_stride), keep_float=keep_float)))

    def yardstick(split: Split | None) -> Yardstick | None:
        return None if split is None else _yardstick(checkpoint, size, split, folder, threads, progress)

    compared = Frames(unlabelled(others))  # of which only the images are looked at
    common = Quantizing(
        order=Order(checkpoint, size, folder, command, calibration),
        calibration=calibration,
        compared=compared,
        compared_reference=reference_labels_folder(checkpoint, size, compared, folder, progress, threads),
        guide=yardstick(evaluation),
        verification=yardstick(verified),
        threads=threads,
        progress=progress,
    )
    rows: list[dict[str, Any]] = []
    for job, result in zip(jobs, convert_all(common.order, jobs, progress), strict=True):
        try:
            artifact = _made(result)
            row = _row(common, artifact, why_not)
            if budget is not None:
                row = _kept_within(common, budget, job, artifact, row, why_not)
        except EdgekitError as error:
            if isinstance(error, UsageError) or len(jobs) == 1:
                raise
            progress.say(f"{load_target(job.target).title} int8: failed, {error}")
            rows.append(
                {"target": job.target, "precision": "int8", "size": [size.height, size.width], "failed": str(error)}
            )
            continue
        rows.append(row)
        write_sealed(folder / "measurements" / f"{Path(row['artifact']).name}.quantize.json", row)
    return rows


def _made(result: Artifact | EdgekitError) -> Artifact:
    if isinstance(result, EdgekitError):
        raise result
    return result


def _yardstick(
    checkpoint: Checkpoint, size: Size, split: Split, folder: Path, threads: int | None, progress: Progress
) -> Yardstick:
    frames = Frames(split)
    reference = reference_labels_folder(checkpoint, size, frames, folder, progress, threads)
    label = stored_labeller(reference, len(frames))
    taken = measure_accuracy("PyTorch fp32", label, size, frames, progress)
    counts = tuple(counts_from_json(count, len(split.classes)) for count in taken["counts"])
    seen = trained_on(checkpoint.recipe, split.dataset, split.split)
    return Yardstick(frames, reference, counts, seen)


def _loss(common: Quantizing, artifact: Artifact, label: Labeller, yardstick: Yardstick) -> dict[str, Any]:
    """mIoU and its drop on a yardstick's frames, in plain values."""
    from reports.statistics import bootstrap_drop

    split = yardstick.frames.split
    taken = measure_accuracy(
        artifact.title, label, artifact.size, yardstick.frames, common.progress, reference=yardstick.reference
    )
    counts = [counts_from_json(count, len(split.classes)) for count in taken["counts"]]
    floats, ours = (np.stack([count.confusion for count in one]) for one in (yardstick.counts, counts))
    interval = bootstrap_drop(floats, ours)
    by_class = class_iou(floats.sum(0)) - class_iou(ours.sum(0))
    return {
        "miou": score(add_counts(counts), split.classes).miou,
        "miou_float": score(add_counts(yardstick.counts), split.classes).miou,
        "miou_drop": interval.value,
        "miou_drop_ci": [interval.low, interval.high],
        "per_class_drop": {
            name: None if np.isnan(drop) else float(drop)
            for name, drop in zip(split.classes.names, by_class, strict=True)
        },
        "evaluation": {
            "dataset": split.dataset,
            "split": split.split,
            "frames": len(yardstick.frames),
            "trained_on": yardstick.trained_on,
        },
    }


def _row(common: Quantizing, artifact: Artifact, why_not: str) -> dict[str, Any]:
    """An artifact, and what it loses."""
    target = load_target(artifact.target)
    engine, chosen = target.engine(), common.calibration.frames
    row: dict[str, Any] = {
        "target": artifact.target,
        "precision": "int8",
        "size": [artifact.size.height, artifact.size.width],
        "artifact": str(artifact.folder),
        "model_bytes": artifact.manifest["model_bytes"],
        "calibration": {"dataset": chosen.dataset, "split": chosen.split, "frames": len(chosen)},
        "kept_float": artifact.manifest["kept_float"],
        "no_int8": artifact.manifest["no_int8"],
        "agreement": None,
        "agreement_frames": len(common.compared),
        "miou": None,
        "miou_float": None,
        "miou_drop": None,
        "miou_drop_ci": None,
        "evaluation": None,
        "provenance": Provenance(engine.kind, engine.by, engine.why).to_json(),
    }
    log = common.order.folder / "logs" / f"{artifact.folder.name}.log"
    with artifact_labeller(target, artifact, common.threads, log) as label:
        agreement = []
        for index in range(len(common.compared)):
            image = resize_image(common.compared[index].image, artifact.size)
            labels = label(image[None].copy())[0]
            agreement.append(float((labels == read_reference(common.compared_reference, index)).mean()))
        row["agreement"] = float(np.mean(agreement))
        if common.guide is not None:
            row |= _loss(common, artifact, label, common.guide)
        else:
            row["provenance_miou"] = Provenance("not measured", "", why_not).to_json()
    return row


def _holds(loss: dict[str, Any], max_drop: float) -> bool:
    return loss["miou_drop_ci"] is not None and loss["miou_drop_ci"][1] <= max_drop


def fewest(most: int, holds: Callable[[int], bool]) -> int | None:
    """The least number from 1 to ``most`` that holds, looked for by doubling and then halving what lies between.

    It is the least where all beyond one that holds do; else one that holds where less, as far as tried, does not.

    Returns:
        None where ``most`` does not hold either.
    """
    failed, held = 0, min(1, most)
    while not holds(held):
        if held == most:
            return None
        failed, held = held, min(2 * held, most)
    while held - failed > 1:
        middle = (failed + held) // 2
        if holds(middle):
            held = middle
        else:
            failed = middle
    return held


def _kept_within(
    common: Quantizing, budget: Budget, job: Job, artifact: Artifact, row: dict[str, Any], why_not: str
) -> dict[str, Any]:
    """The artifact's row, or that of one with more layers in float; both with what the budget says of it."""
    first = artifact
    undecided = _cannot_decide(row, budget.max_drop)
    if undecided:
        low, high = row["miou_drop_ci"]
        common.progress.say(
            f"{artifact.title}: {row['evaluation']['frames']} frames cannot decide a budget of {100 * budget.max_drop:g} points (the drop's "
            f"interval is [{100 * low:+.2f}, {100 * high:+.2f}]), so nothing is put in float for it: give more by --frames"
        )
    elif not _holds(row, budget.max_drop) and common.guide is not None:
        artifact, row = _repaired(common, budget.max_drop, job, artifact, row, why_not)
    if "repair" in row:
        row["repair"] |= _cost(first, artifact, common)
    proof = row
    if common.verification is not None:
        target = load_target(artifact.target)
        log = common.order.folder / "logs" / f"{artifact.folder.name}.log"
        with artifact_labeller(target, artifact, common.threads, log) as label:
            row["verification"] = proof = _loss(common, artifact, label, common.verification)
    else:
        row["provenance_verification"] = Provenance("not measured", "", budget.why_not).to_json()
    row["budget"] = {"max_drop": budget.max_drop, "holds": _holds(proof, budget.max_drop)}
    if undecided and not row["budget"]["holds"]:
        row["budget"]["undecided"] = True
    return row


def _cannot_decide(row: dict[str, Any], max_drop: float) -> bool:
    """Whether the frames are too few for a budget: int8 may hold it, and with such a spread not even a drop of nothing would."""
    low, high = row["miou_drop_ci"]
    return bool(max_drop > 0 and low <= max_drop < high and (high - low) / 2 > max_drop)


def _repaired(
    common: Quantizing, max_drop: float, job: Job, artifact: Artifact, row: dict[str, Any], why_not: str
) -> tuple[Artifact, dict[str, Any]]:
    """The artifact with the fewest layers in float that holds, or the one with the most; and its row, with what was tried."""
    progress, title, before = common.progress, artifact.title, artifact.manifest["model_bytes"]
    losses = _ranking(common.order, artifact.manifest["calibration"]["scheme"], progress)["layers"]
    ranking = [
        loss["layer"]
        for loss in sorted(losses, key=lambda loss: -loss["expected_drop"])
        if loss["expected_drop"] > 0 and loss["layer"] not in job.recipe.keep_float
    ]
    steps: list[dict[str, Any]] = []
    made: dict[int, tuple[Artifact, dict[str, Any]]] = {0: (artifact, row)}

    def holds(count: int) -> bool:
        while (number := min(count, len(ranking))) not in made:
            kept = (*job.recipe.keep_float, *ranking[:number])
            progress.say(f"{title}: over its budget, made again with {', '.join(kept)} in float")
            (result,) = convert_all(common.order, [Job(job.target, replace(job.recipe, keep_float=kept))], progress)
            tried = _made(result)
            idle = [layer for layer in ranking if layer in tried.manifest["no_int8"]]
            if not idle:
                now = _row(common, tried, why_not)
                step = {key: now[key] for key in ("model_bytes", "miou_drop", "miou_drop_ci")}
                steps.append(step | {"kept": list(kept), "holds": _holds(now, max_drop)})
                made[number] = tried, now
            for layer in idle:  # one ranking serves all targets, of which not each runs all of it in int8
                ranking.remove(layer)
        return _holds(made[number][1], max_drop)

    most = min(len(ranking), KEPT_AT_MOST)
    held = fewest(most, holds) if most else None
    artifact, row = made[max(made) if held is None else min(held, len(ranking))]
    if steps:
        kept = [layer for layer in artifact.manifest["recipe"]["keep_float"] if layer not in job.recipe.keep_float]
        row["repair"] = {"steps": steps, "kept": kept, "bytes_before": before}
    return artifact, row


def _cost(before: Artifact, after: Artifact, common: Quantizing) -> dict[str, Any]:
    """How much slower a repair made it, where that can be measured here."""
    from reports.statistics import bootstrap_ratio

    engine = load_target(before.target).engine()
    if engine.no_latency is not None:
        return {"latency_ratio": None, "why": engine.no_latency}
    common.progress.say(f"{before.title}: measuring what its repair costs")
    apart = common.order.folder / "cache" / "repairs"  # what edgekit run measured in the run's own folder stays
    taken = latencies_here(
        [before, after], bench_frames_of(before), "quick", "graph", common.threads, apart, Progress(silent=True)
    )
    latencies = [taken[str(artifact.folder)] for artifact in (before, after)]
    if any("rounds_ms" not in latency for latency in latencies):
        return {"latency_ratio": None, "why": "its latency could not be measured"}
    ratio = bootstrap_ratio(latencies[1]["rounds_ms"], latencies[0]["rounds_ms"])
    return {"latency_ratio": [ratio.value, ratio.low, ratio.high]}


def _ranking(order: Order, scheme: Scheme, progress: Progress) -> dict[str, Any]:
    """What :func:`ranking_of` gives, worked out once for all targets of a scheme."""
    assert order.calibration is not None
    # The frames' whole identity too: int8 does not depend on their labels, the drop on labels does.
    key = sha256_json(
        [RANKING_SCHEMA, quantization_key(order.checkpoint, order.calibration), order.calibration.frames.identity()]
    )
    path = order.folder / "cache" / f"layers-{scheme}-{key[:16]}.json"
    if path.is_file():
        with suppress(EdgekitError):  # damaged since
            kept: dict[str, Any] = read_sealed(path)
            return kept
    graph = lazy_graph(order.checkpoint, order.size, Progress(silent=True))
    if not is_prepared(order):
        with progress.stage(preparing(order)):
            prepare(graph(), order.checkpoint, order.calibration, order.folder)
    stage = f"ranking the layers by what they cost int8 ({scheme})"
    with progress.stage(stage):
        started = time.monotonic()
        ranking = ranking_of(
            graph, order.checkpoint, order.calibration, order.folder, scheme,
            lambda done, total: progress.count(stage, done, total, started),
        )  # fmt: skip
    write_sealed(path, ranking)
    return read_sealed(path)


def ranking_of(
    graph: Callable[[], DeployableGraph],
    checkpoint: Checkpoint,
    calibration: Calibration,
    folder: Path,
    scheme: Scheme,
    report: Callable[[int, int], None],
) -> dict[str, Any]:
    """What each layer costs when it alone is quantized.

    Returns:
        ``layers``, in the network's order, see :class:`calibration.sensitivity.LayerLoss`; ``frames``, the number of
        calibration frames that they were ranked on; ``no_labels``, why there is no drop on labels, else None; ``others``,
        the layers that no simulation quantizes, which may be kept in float, too.
    """
    from dataclasses import asdict

    from calibration.sensitivity import layer_losses
    from edgekit.export.layers import layers_of

    quantization = prepare(graph(), checkpoint, calibration, folder).quantization
    pixels = calibration.size.height * calibration.size.width
    count = min(len(calibration.frames), max(2, RANKING_PIXELS // pixels))
    ranked = calibration.frames.first(count)
    labels, no_labels = _labels_of(checkpoint, ranked)
    frames = [
        (resize_image(reference.load_image(), calibration.size)[None].copy(), truth)
        for reference, truth in zip(ranked.references, labels, strict=True)
    ]
    losses = layer_losses(equalized_graph(graph(), quantization), quantization, scheme, frames, report)
    ranked_layers = {"frame", *(loss.layer for loss in losses)}
    others = [layer.name for layer in layers_of(graph()) if layer.name not in ranked_layers]
    return {"frames": count, "no_labels": no_labels, "layers": [asdict(loss) for loss in losses], "others": others}


def _labels_of(checkpoint: Checkpoint, split: Split) -> tuple[Sequence[UInt8 | None], str | None]:
    """The frames' labels, where all have them and they show the checkpoint's classes; else None each, and the reason."""
    without: Sequence[UInt8 | None] = (None,) * len(split)
    if split.classes.names != checkpoint.class_names:
        return without, f"{split.dataset}'s classes are not the network's"
    try:
        return [reference.load_labels() for reference in split.references], None
    except DataError as error:
        return without, str(error)


def sensitivity(
    checkpoint: Checkpoint,
    calibration_split: Split,
    samples: int,
    size: Size,
    schemes: Sequence[Scheme],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    """Which layers cost int8 its accuracy; writes ``folder/sensitivity``: a page, a figure, and what they show."""
    from reports.sensitivity import render_sensitivity

    clean_partials(folder / "cache", alone=is_held(folder))
    calibration = Calibration(choose_frames(calibration_split, samples), size)
    order = Order(checkpoint, size, folder, "", calibration)
    rankings = {scheme: _ranking(order, scheme, progress) for scheme in schemes}
    document = {
        "schema": 1,
        "checkpoint": checkpoint.describe(),
        "size": [size.height, size.width],
        "calibration": {
            "dataset": calibration_split.dataset, "split": calibration_split.split, "frames": len(calibration.frames)
        },
        "ranked_on": {key: rankings[schemes[0]][key] for key in ("frames", "no_labels")},
        "layers": {scheme: ranking["layers"] for scheme, ranking in rankings.items()},
        "others": sorted(set.intersection(*(set(ranking["others"]) for ranking in rankings.values()))),
    }  # fmt: skip
    write_pages(folder / "sensitivity", render_sensitivity(document))
    write_json(folder / "sensitivity" / "sensitivity.json", document)
    return document
