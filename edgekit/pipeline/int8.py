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
from edgekit.core.contract import Terms
from edgekit.core.errors import DataError, EdgekitError, TargetError, UsageError
from edgekit.core.files import clean_partials, read_sealed, sha256_json, write_json, write_sealed
from edgekit.core.hold import is_held
from edgekit.core.measurement import Latency, Timed
from edgekit.core.progress import Progress
from edgekit.core.registry import load_target, require
from edgekit.core.values import Artifact, DeployableGraph, Provenance, Scheme, Size, UInt8
from edgekit.export.layers import nodes_of
from edgekit.metrics.scores import FrameCounts, add_counts, class_iou, dense, score
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
from edgekit.pipeline.check import collapsed
from edgekit.pipeline.conversion import convert_all, is_prepared, preparing
from edgekit.pipeline.here import Here, bench_frames_of
from edgekit.pipeline.inputs import refuse_guided, split_for_agreement
from edgekit.pipeline.pages import write_pages
from edgekit.pipeline.plans import Budget, Job, Order, Quantize
from edgekit.pipeline.quantization import (
    Calibration,
    equalized_graph,
    prepare,
    quantization_key,
    refuse_evaluated,
)
from edgekit.pipeline.stored import bench_frames
from reports.quantization import FrameCount, Loss, NotQuantized, Quantized, Repair, Step, Verdict, Where

SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
KEPT_AT_MOST = 32
"""So many of the most sensitive layers stay in float at most, to hold a budget: each number tried takes a conversion."""
RANKING_PIXELS = 3 << 20
"""Layers are ranked on frames of about so many pixels together."""

RANKING_SCHEMA = 2
"""The number of the form that a kept ranking has."""


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
class Quantizing:
    """What all targets of one ``quantize`` have in common."""

    order: Order
    calibration: Calibration
    compared: Frames
    compared_reference: Path
    guide: Yardstick | None
    verification: Yardstick | None
    plan: Quantize
    progress: Progress

    def log(self, artifact: Artifact) -> Path:
        """For what an artifact's runtime prints."""
        return self.plan.folder / "logs" / f"{artifact.folder.name}.log"


def quantize(plan: Quantize, progress: Progress) -> list[Quantized | NotQuantized]:
    """int8 artifacts, one per target, compared with float PyTorch on frames that did not calibrate.

    Raises:
        UsageError: what was asked for contradicts itself, on any target.
        EdgekitError: the only target failed.
    """
    folder, evaluation, budget = plan.folder, plan.evaluation, plan.budget
    clean_partials(folder / "artifacts", alone=is_held(folder))
    clean_partials(folder / "cache", alone=is_held(folder))
    choice, others = split_for_agreement(plan.calibration, plan.samples)
    calibration, chosen = Calibration(choice, plan.size), choice.frames
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
    asked = f" ({plan.samples} were asked for, but some are held back to compare on)"
    fewer = asked if len(chosen) < plan.samples else ""
    progress.say(
        f"calibrating on {len(chosen)} {chosen.dataset} {chosen.split} frames{fewer}, comparing labels on {len(others)} others"
    )
    if plan.keep_float:  # a layer that does not exist is told before anything is computed
        nodes_of(lazy_graph(plan.checkpoint, plan.size, progress)(), plan.keep_float)
    jobs = _jobs(plan, progress)
    compared = Frames(unlabelled(others))  # of which only the images are looked at
    common = Quantizing(
        order=Order(plan.checkpoint, plan.size, folder, plan.command, calibration),
        calibration=calibration,
        compared=compared,
        compared_reference=reference_labels_folder(
            plan.checkpoint, plan.size, compared, folder, progress, plan.threads
        ),
        guide=_yardstick(plan, evaluation, progress),
        verification=_yardstick(plan, verified, progress),
        plan=plan,
        progress=progress,
    )
    rows: list[Quantized | NotQuantized] = []
    for job, result in zip(jobs, convert_all(common.order, jobs, progress), strict=True):
        try:
            artifact = _made(result)
            row = _row(common, artifact)
            if budget is not None:
                row = _kept_within(common, budget, job, artifact, row)
        except EdgekitError as error:
            if isinstance(error, UsageError) or len(jobs) == 1:
                raise
            progress.say(f"{load_target(job.target).title} int8: failed, {error}")
            rows.append(NotQuantized(job.target, plan.size, str(error)))
            continue
        rows.append(row)
        write_sealed(folder / "measurements" / f"{row.artifact.name}.quantize.json", row.to_json())
    return rows


def _jobs(plan: Quantize, progress: Progress) -> list[Job]:
    jobs = []
    for name in plan.targets:
        target = require(name)
        if "int8" not in target.precisions:
            if len(plan.targets) == 1:
                raise TargetError(f"{target.title} has no int8: choose another --target")
            progress.say(f"{target.title}: skipped, it has no int8")
            continue
        recipe = recipe_for(target, "int8", plan.output, plan.output_stride)
        jobs.append(Job(name, replace(recipe, keep_float=plan.keep_float)))
    return jobs


def _made(result: Artifact | EdgekitError) -> Artifact:
    if isinstance(result, EdgekitError):
        raise result
    return result


def _yardstick(plan: Quantize, split: Split | None, progress: Progress) -> Yardstick | None:
    if split is None:
        return None
    frames = Frames(split)
    reference = reference_labels_folder(plan.checkpoint, plan.size, frames, plan.folder, progress, plan.threads)
    label = stored_labeller(reference, len(frames))
    taken = measure_accuracy("PyTorch fp32", label, plan.size, frames, progress)
    counts = tuple(dense(count, len(split.classes)) for count in taken.counts)
    seen = trained_on(plan.checkpoint.recipe, split.dataset, split.split)
    return Yardstick(frames, reference, counts, seen)


def _loss(common: Quantizing, artifact: Artifact, label: Labeller, yardstick: Yardstick) -> Loss:
    """mIoU and its drop on a yardstick's frames."""
    from reports.statistics import bootstrap_drop

    split = yardstick.frames.split
    taken = measure_accuracy(
        artifact.title, label, artifact.size, yardstick.frames, common.progress, reference=yardstick.reference
    )
    counts = [dense(count, len(split.classes)) for count in taken.counts]
    floats, ours = (np.stack([count.confusion for count in one]) for one in (yardstick.counts, counts))
    interval = bootstrap_drop(floats, ours)
    by_class = class_iou(floats.sum(0)) - class_iou(ours.sum(0))
    return Loss(
        miou=score(add_counts(counts), split.classes).miou,
        miou_float=score(add_counts(yardstick.counts), split.classes).miou,
        miou_drop=interval.value,
        miou_drop_ci=(interval.low, interval.high),
        per_class_drop={
            name: None if np.isnan(drop) else float(drop)
            for name, drop in zip(split.classes.names, by_class, strict=True)
        },
        evaluation=Where(split.dataset, split.split, len(yardstick.frames), yardstick.trained_on),
    )


def _row(common: Quantizing, artifact: Artifact) -> Quantized:
    """An artifact, and what it loses."""
    target = load_target(artifact.target)
    engine, chosen = target.engine(), common.calibration.frames
    with artifact_labeller(target, artifact, common.plan.threads, common.log(artifact)) as label:
        agreement = []
        for index in range(len(common.compared)):
            image = resize_image(common.compared[index].image, artifact.size)
            labels = label(image[None].copy())[0]
            agreement.append(float((labels == read_reference(common.compared_reference, index)).mean()))
        loss = None if common.guide is None else _loss(common, artifact, label, common.guide)
    return Quantized(
        artifact.target, artifact.size, artifact.folder, artifact.manifest["model_bytes"],
        FrameCount(chosen.dataset, chosen.split, len(chosen)), tuple(artifact.manifest["kept_float"]),
        tuple(artifact.manifest["no_int8"]), float(np.mean(agreement)), len(common.compared),
        Provenance(engine.kind, engine.by, engine.why), loss, common.plan.why_not,
        mended=tuple(artifact.manifest.get("mended", ())), collapsed=collapsed(artifact.manifest),
    )  # fmt: skip


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


def _kept_within(common: Quantizing, budget: Budget, job: Job, artifact: Artifact, row: Quantized) -> Quantized:
    """The artifact's row, or that of one with more layers in float; both with what the budget says of it."""
    assert row.loss is not None
    first, max_drop = artifact, budget.max_drop
    undecided = row.loss.cannot_decide(max_drop)
    if undecided:
        low, high = row.loss.miou_drop_ci
        common.progress.say(
            f"{artifact.title}: {row.loss.evaluation.frames} frames cannot decide a budget of {100 * max_drop:g} points (the drop's "
            f"interval is [{100 * low:+.2f}, {100 * high:+.2f}]), so nothing is put in float for it: give more by --frames"
        )
    elif not row.loss.holds(max_drop):
        artifact, row = _repaired(common, max_drop, job, artifact, row)
    if row.repair is not None:
        row = replace(row, repair=_priced(row.repair, first, artifact, common))
    if common.verification is not None:
        target = load_target(artifact.target)
        with artifact_labeller(target, artifact, common.plan.threads, common.log(artifact)) as label:
            row = replace(row, verification=_loss(common, artifact, label, common.verification))
    else:
        row = replace(row, unverified=budget.why_not)
    holds = row.proof is not None and row.proof.holds(max_drop)
    return replace(row, budget=Verdict(max_drop, holds, undecided and not holds))


def _repaired(
    common: Quantizing, max_drop: float, job: Job, artifact: Artifact, row: Quantized
) -> tuple[Artifact, Quantized]:
    """The artifact with the fewest layers in float that holds, or the one with the most; and its row, with what was tried."""
    progress, title, before = common.progress, artifact.title, row.model_bytes
    losses = _ranking(common.order, artifact.manifest["calibration"]["scheme"], progress)["layers"]
    ranking = [
        loss["layer"]
        for loss in sorted(losses, key=lambda loss: -loss["expected_drop"])
        if loss["expected_drop"] > 0 and loss["layer"] not in job.recipe.keep_float
    ]
    steps: list[Step] = []
    made: dict[int, tuple[Artifact, Quantized]] = {0: (artifact, row)}

    def holds(count: int) -> bool:
        while (number := min(count, len(ranking))) not in made:
            kept = (*job.recipe.keep_float, *ranking[:number])
            progress.say(f"{title}: over its budget, made again with {', '.join(kept)} in float")
            (result,) = convert_all(common.order, [Job(job.target, replace(job.recipe, keep_float=kept))], progress)
            tried = _made(result)
            idle = [layer for layer in ranking if layer in tried.manifest["no_int8"]]
            if not idle:
                now = _row(common, tried)
                assert now.loss is not None
                loss = now.loss
                steps.append(Step(now.model_bytes, loss.miou_drop, loss.miou_drop_ci, kept, loss.holds(max_drop)))
                made[number] = tried, now
            for layer in idle:  # one ranking serves all targets, of which not each runs all of it in int8
                ranking.remove(layer)
        loss_now = made[number][1].loss
        return loss_now is not None and loss_now.holds(max_drop)

    most = min(len(ranking), KEPT_AT_MOST)
    held = fewest(most, holds) if most else None
    artifact, row = made[max(made) if held is None else min(held, len(ranking))]
    if steps:
        kept = [layer for layer in artifact.manifest["recipe"]["keep_float"] if layer not in job.recipe.keep_float]
        row = replace(row, repair=Repair(tuple(steps), tuple(kept), before))
    return artifact, row


def _priced(repair: Repair, before: Artifact, after: Artifact, common: Quantizing) -> Repair:
    """The repair with how much slower it made the artifact, where that can be measured here."""
    from reports.statistics import bootstrap_ratio

    engine = load_target(before.target).engine()
    if engine.no_latency is not None:
        return replace(repair, why=engine.no_latency)
    common.progress.say(f"{before.title}: measuring what its repair costs")
    apart = common.plan.folder / "cache" / "repairs"
    samples = bench_frames(bench_frames_of(before), before.size, apart)
    here = Here(common.plan.threads, apart / "logs", Progress(silent=True))
    taken = here.times([before, after], samples, Terms("quick", "graph", common.plan.threads))
    rounds = [one.latency.processes_ms for one in taken if isinstance(one, Timed) and isinstance(one.latency, Latency)]
    if len(rounds) < 2 or rounds[0] is None or rounds[1] is None:
        return replace(repair, why="its latency could not be measured")
    ratio = bootstrap_ratio(rounds[1], rounds[0])
    return replace(repair, latency_ratio=(ratio.value, ratio.low, ratio.high))


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
