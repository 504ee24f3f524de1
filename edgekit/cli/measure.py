"""Commands that look at what was made: evaluate, bench, compare, predict, report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgekit.cli import devices
from edgekit.cli.devices import DeviceOption, SustainedOption
from edgekit.cli.options import (
    ClassesOption,
    FramesOption,
    JsonOption,
    NetworkOption,
    RootOption,
    SizeOption,
    ThreadsOption,
    check_threads_here,
    command_line,
    folder_path,
    new_progress,
    open_checkpoint,
    parse_size,
    percent_text,
)
from edgekit.cli.output import print_json, print_text
from edgekit.core.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.core.contract import Scope
    from edgekit.core.values import Artifact
    from edgekit.pipeline.commands import Benched
    from reports.statistics import LatencySummary


def evaluate(
    subject: Annotated[
        str, typer.Argument(help="A checkpoint, an artifact's folder, or an .mlpackage.", metavar="CHECKPOINT|ARTIFACT")
    ] = "spssn-streets",
    data: Annotated[str | None, typer.Option("--data", help="Dataset. The checkpoint's own by default.")] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="train, val or test; test by default, val for cityscapes.")
    ] = None,
    data_root: RootOption = None,
    frames: FramesOption = None,
    size: SizeOption = None,
    network: NetworkOption = None,
    device: Annotated[
        str, typer.Option("--device", help="Where an artifact runs: local is this machine; others are in devices.toml.")
    ] = "local",
    threads: ThreadsOption = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out", parser=folder_path, metavar="PATH", help="Folder for what tools print, and for a device's frames."
        ),
    ] = Path("runs"),
    as_json: JsonOption = False,
) -> None:
    """All accuracy metrics of a checkpoint (in PyTorch) or an artifact, on a dataset."""
    from calibration.datasets import class_set
    from edgekit.devices.inventory import THIS_MACHINE, chosen_devices
    from edgekit.pipeline.artifacts import is_artifact, open_artifact
    from edgekit.pipeline.commands import evaluate as do_evaluate
    from edgekit.pipeline.inputs import default_size, open_evaluation
    from edgekit.pipeline.plans import Work
    from reports.document import SEEN

    (place,) = chosen_devices([device])
    check_threads_here(threads, [place])
    if is_artifact(subject):
        artifact = open_artifact(subject, class_set(data).names if data else None)
        data = data or _dataset_of(artifact)
        if size is not None and parse_size(size) != artifact.size:
            raise UsageError(f"{subject} takes {artifact.size} only: convert again for {size}")
        frames_split = open_evaluation(data, split, data_root, artifact.size, frames)
        result = do_evaluate(artifact, frames_split, artifact.size, Work(place, threads, out), new_progress())
    else:
        if place != THIS_MACHINE:
            raise UsageError(f"a checkpoint is evaluated in PyTorch, here: give an artifact to run on '{place.name}'")
        found = open_checkpoint(subject, network, data)
        dataset = data or found.dataset
        input_size = parse_size(size) or default_size(found)
        frames_split = open_evaluation(dataset, split, data_root, input_size, frames)
        result = do_evaluate(found, frames_split, input_size, Work(place, threads, out), new_progress())
    document = result.to_json()
    if as_json:
        print_json(document)
        return
    print_text(
        f"{result.subject} on {len(result.split)} {result.split.dataset} {result.split.split} frames at input {result.size}"
    )
    print_text(f"({result.provenance.kind} by {result.provenance.by})")
    if result.trained_on:
        print_text(SEEN)
    print_text("")
    for key, name in (
        ("miou", "class mIoU"), ("miou_category", "category mIoU"), ("iiou", "class iIoU"), ("iiou_category", "category iIoU"),
        ("pixel_accuracy", "pixel accuracy"), ("mean_class_accuracy", "mean class accuracy"),
    ):  # fmt: skip
        print_text(f"{name:22}{percent_text(document[key])}")
    print_text("")
    for name, value in zip(document["class_names"], document["per_class_iou"], strict=True):
        print_text(f"  {name:20}{percent_text(value)}")


def _dataset_of(artifact: Artifact) -> str:
    """The dataset that has an artifact's classes.

    Raises:
        UsageError: none does.
    """
    from calibration.datasets import CLASS_SETS

    found = next((name for name, classes in CLASS_SETS.items() if classes.names == artifact.class_names), None)
    if found is None:
        raise UsageError("add --data: no known dataset has this artifact's classes")
    return found


def bench(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifacts' folders; several are measured in interleaved rounds.")
    ],
    device: DeviceOption = None,
    sustained: SustainedOption = None,
    scope: Annotated[
        str, typer.Option("--scope", help="frame-to-labels, or graph: one forward pass of the bare model.")
    ] = "frame-to-labels",
    full: Annotated[bool, typer.Option("--full", help="At least 1024 queries and 60 s each.")] = False,
    data: Annotated[
        str | None, typer.Option("--data", help="Also evaluate there, on this dataset, as frames of its classes.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Of --data: test by default, val for cityscapes.")
    ] = None,
    data_root: RootOption = None,
    frames: FramesOption = None,
    threads: ThreadsOption = None,
    out: Annotated[
        Path, typer.Option("--out", parser=folder_path, metavar="PATH", help="Folder for samples, logs and pages.")
    ] = Path("runs/bench"),
    as_json: JsonOption = False,
) -> None:
    """Latency of artifacts, each in a process of its own, here or on devices; with --data their accuracy too."""
    from edgekit.core.contract import Terms
    from edgekit.core.hold import held
    from edgekit.devices.inventory import chosen_devices
    from edgekit.pipeline.artifacts import load_artifact
    from edgekit.pipeline.commands import bench as do_bench
    from edgekit.pipeline.inputs import open_evaluation
    from edgekit.pipeline.plans import Bench
    from reports.document import latency_summary

    if scope not in ("frame-to-labels", "graph"):
        raise UsageError(f"--scope {scope} is not known: choose frame-to-labels or graph")
    if data is None and (split or frames or data_root):
        raise UsageError("--split, --frames and --data-root say what to evaluate: add --data")
    measured_on = chosen_devices(devices.names_of(device))
    check_threads_here(threads, measured_on)
    seconds = devices.seconds_of(sustained)
    loaded = [load_artifact(path) for path in artifacts]
    evaluation = None if data is None else open_evaluation(data, split, data_root, loaded[0].size, frames)
    plan = Bench(
        loaded, measured_on, Terms("full" if full else "quick", cast("Scope", scope), threads), seconds, evaluation,
        command_line(), out,
    )  # fmt: skip
    progress = new_progress()
    with held(out, plan.command, lambda holder: progress.say(f"waiting for {holder}")):
        benched = do_bench(plan, progress)
    summaries = [latency_summary(one.measured.latency) for one in benched]
    if as_json:
        rows = [
            one.to_json() if summary is None else one.to_json() | {"summary": _summarized(summary)}
            for one, summary in zip(benched, summaries, strict=True)
        ]
        print_json({"report": str(out / "report"), "rows": rows})
    else:
        for one, summary in zip(benched, summaries, strict=True):
            _print_latency(one, summary)
        print_text(f"\nreport: {', '.join(str(out / 'report' / f'{one.name}.md') for one in measured_on)}")
    if broken := [one.failed for one in benched if one.failed is not None]:
        raise EdgekitError(f"{len(broken)} of {len(benched)} artifacts could not be measured: {broken[0]}")


def _summarized(summary: LatencySummary) -> dict[str, Any]:
    return {
        "p50": summary.p50, "p90": summary.p90, "mean": summary.mean, "cv": summary.cv, "first": summary.first,
        "n": summary.n, "fps": summary.fps, "warnings": list(summary.warnings),
    }  # fmt: skip


def _print_latency(one: Benched, summary: LatencySummary | None) -> None:
    from edgekit.core.measurement import Latency, Sustained
    from reports.sustained import sustained_line

    measured, latency = one.measured, one.measured.latency
    where = "" if one.device == "local" else f" on {one.device}"
    print_text(f"{measured.target} {measured.precision} at {measured.size}{where} ({one.artifact})")
    if one.evaluation is not None:
        taken = one.evaluation
        print_text(f"  mIoU {percent_text(taken.scores.miou)} ({taken.provenance.kind} by {taken.provenance.by})")
    if isinstance(measured.sustained, Sustained):
        print_text(f"  {sustained_line(measured.sustained)}")
    if summary is None or not isinstance(latency, Latency):
        print_text(f"  not measured: {latency.provenance.why}")
        return
    settings = ", ".join(f"{name} {value}" for name, value in latency.settings.items())
    p90 = "" if summary.p90 is None else f"p90 {summary.p90:.1f} ms, "
    print_text(
        f"  {latency.scope}: p50 {summary.p50:.1f} ms, {p90}{summary.fps:.1f} frames/s "
        f"(n {summary.n}, {latency.provenance.by}, {settings})"
    )
    told = (
        ("load", latency.load_ms, "ms", 1.0), ("first frame", summary.first, "ms", 1.0),
        ("peak memory", latency.peak_rss_bytes, "MB", 1e-6),
    )  # fmt: skip
    if parts := [f"{name} {value * factor:.0f} {unit}" for name, value, unit, factor in told if value is not None]:
        print_text(f"  {', '.join(parts)}")
    for name, unit in (latency.compute_units or {}).items():
        middle = unit.p50 or unit.mean
        print_text(f"  on {name}: {unit.failed}" if middle is None else f"  on {name}: {middle:.1f} ms")
    for warning in summary.warnings:
        print_text(f"  warning: {warning}")


def compare(
    first: Annotated[str, typer.Argument(help="An artifact's folder, or a checkpoint for float PyTorch.", metavar="A")],
    second: Annotated[str, typer.Argument(help="Another of the same checkpoint.", metavar="B")],
    checkpoint: Annotated[
        str | None, typer.Option("--checkpoint", help="What both were made from, where it is not a shipped one.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="Dataset of the frames. The checkpoint's own.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, val or test.")] = "val",
    data_root: RootOption = None,
    frames: Annotated[int, typer.Option("--frames", min=1, help="Look at so many frames.")] = 2,
    tolerance: Annotated[
        float | None,
        typer.Option(
            "--tolerance",
            min=0.0,
            help="Distance that is passed over, as a share of a layer's result: 0.01, or 0.2 with int8, by default.",
        ),
    ] = None,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            parser=folder_path,
            metavar="PATH",
            help="Folder of the page. runs/<checkpoint>/compare/A-B by default.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """The first layer at which two artifacts of one checkpoint part, in any two runtimes that run here."""
    from edgekit.pipeline.artifacts import is_artifact, load_artifact
    from edgekit.pipeline.compare import Subject, checkpoint_of
    from edgekit.pipeline.compare import compare as do_compare
    from edgekit.pipeline.inputs import open_evaluation
    from reports.compare import comparison_text, sentence

    artifacts = {text: load_artifact(Path(text)) for text in (first, second) if is_artifact(text)}
    if not artifacts:
        raise UsageError("neither is an artifact's folder: compare an artifact with another, or with its checkpoint")
    named = next((text for text in (checkpoint, first, second) if text is not None and text not in artifacts), None)
    found = checkpoint_of(
        list(artifacts.values()), None if named is None else open_checkpoint(named, network, data or classes)
    )
    sizes = {artifact.size for artifact in artifacts.values()}
    if len(sizes) > 1:
        raise UsageError(f"they are for {' and '.join(map(str, sorted(sizes)))}: compare artifacts of one size")
    (size,) = sizes
    dataset = data or found.dataset
    if not dataset:
        raise UsageError("the checkpoint does not say which dataset it belongs to: add --data")
    one, other = (Subject(found, artifacts.get(text)) for text in (first, second))
    folder = out or Path("runs") / found.name / "compare" / f"{one.name}-{other.name}"
    looked_at = open_evaluation(dataset, split, data_root, size, frames)
    document = do_compare(one, other, size, looked_at, tolerance, folder, new_progress())
    if as_json:
        print_json(document | {"sentence": sentence(document)})
    else:
        print_text(comparison_text(document))
        print_text(f"\nall layers: {folder / 'index.md'}")


def predict(
    subject: Annotated[
        str, typer.Argument(help="A checkpoint, an artifact's folder, or an .mlpackage.", metavar="CHECKPOINT|ARTIFACT")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.", metavar="IMAGE...")],
    out: Annotated[
        Path, typer.Option("--out", parser=folder_path, metavar="PATH", help="Folder for the pictures.")
    ] = Path("predictions"),
    size: SizeOption = None,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label images and write overlays to look at."""
    from calibration.datasets import class_set
    from edgekit.core.record import plain
    from edgekit.pipeline.artifacts import is_artifact, open_artifact
    from edgekit.pipeline.commands import image_files
    from edgekit.pipeline.commands import predict as do_predict
    from edgekit.pipeline.inputs import default_size

    check_threads_here(threads)
    files = image_files(images)
    if is_artifact(subject):
        artifact = open_artifact(subject, class_set(classes).names if classes else None)
        if size is not None and parse_size(size) != artifact.size:
            raise UsageError(f"{subject} takes {artifact.size} only: convert again for {size}")
        rows = do_predict(artifact, files, artifact.size, out, threads, new_progress())
    else:
        found = open_checkpoint(subject, network, classes)
        rows = do_predict(found, files, parse_size(size) or default_size(found), out, threads, new_progress())
    if as_json:
        print_json({"images": plain(rows)})
        return
    for row in rows:
        top = sorted(row.classes.items(), key=lambda entry: -entry[1])[:4]
        print_text(f"{row.overlay}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in top))


def report(
    run_folder: Annotated[Path, typer.Argument(help="What edgekit run wrote.", metavar="RUN_DIR")],
    data_root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report again from its measurements."""
    from edgekit.core.hold import held
    from edgekit.pipeline.pages import report_again
    from reports.summary import summary

    if not (run_folder / "run.json").is_file():  # before a lock is put there
        raise UsageError(
            f"{run_folder} is not a run's folder (it has no run.json): give the folder of a run that was finished"
        )
    with held(run_folder, command_line()):
        page, document = report_again(run_folder, data_root, new_progress())
    if as_json:
        print_json({"report": str(page), **document})
    else:
        print_text(summary(document["rows"]))
        print_text(f"\nreport: {page}")
