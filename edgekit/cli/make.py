"""Commands that make artifacts: run, convert, quantize, and sensitivity before it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgekit.cli import devices
from edgekit.cli.devices import DeviceOption, SustainedOption
from edgekit.cli.options import (
    CheckpointArgument,
    ClassesOption,
    FramesOption,
    JsonOption,
    NetworkOption,
    OutOption,
    OutputOption,
    ReplaceOption,
    RootOption,
    SizeOption,
    StrideOption,
    TargetsOption,
    ThreadsOption,
    available_targets,
    check_threads_here,
    command_line,
    listed,
    new_progress,
    open_checkpoint,
    parse_form,
    parse_precisions,
    parse_size,
)
from edgekit.cli.output import print_json, print_text
from edgekit.core.errors import BudgetError, EdgekitError, UsageError

if TYPE_CHECKING:
    pass


def run(
    checkpoint: CheckpointArgument = "spssn-streets",
    targets: Annotated[str | None, typer.Option("--targets", help="With commas. All by default.")] = None,
    precisions: Annotated[
        str | None,
        typer.Option(
            "--precisions", help="fp32, fp16, int8, with commas. Each target's first float one and int8 by default."
        ),
    ] = None,
    size: SizeOption = None,
    data: Annotated[
        str | None, typer.Option("--data", help="Dataset to evaluate on. The checkpoint's own by default.")
    ] = None,
    split: Annotated[
        str | None, typer.Option("--split", help="Split to evaluate on: test by default, val for cityscapes.")
    ] = None,
    frames: FramesOption = None,
    calib: Annotated[
        str | None, typer.Option("--calib", help="Dataset to calibrate with. --data's by default.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Calibration frames, from the training split.")] = 32,
    data_root: RootOption = None,
    device: DeviceOption = None,
    sustained: SustainedOption = None,
    full: Annotated[
        bool, typer.Option("--full", help="Measure latency long enough for p99 (a minute or more each).")
    ] = False,
    output: OutputOption = None,
    output_stride: StrideOption = 1,
    network: NetworkOption = None,
    threads: ThreadsOption = None,
    out: OutOption = None,
    replace: ReplaceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert, quantize, evaluate, measure and report, for all targets. Goes on where it was stopped."""
    from calibration.datasets import root_of
    from edgekit.core.contract import Terms
    from edgekit.core.record import plain
    from edgekit.devices.inventory import chosen_devices
    from edgekit.pipeline.folder import run_folder
    from edgekit.pipeline.inputs import chosen_targets, default_size, open_calibration, open_evaluation
    from edgekit.pipeline.plans import Plan
    from edgekit.pipeline.run import run as run_plan
    from reports.summary import summary

    measured_on = chosen_devices(devices.names_of(device))
    check_threads_here(threads, measured_on)
    seconds = devices.seconds_of(sustained)
    names = chosen_targets(listed(targets, "--targets"))
    chosen = parse_precisions(precisions, "--precisions")
    form = parse_form(output, output_stride)
    found = open_checkpoint(checkpoint, network, data)
    dataset = data or found.dataset
    if not dataset:
        raise UsageError("the checkpoint does not say which dataset it belongs to: add --data")
    input_size = parse_size(size) or default_size(found)
    calibration_dataset = calib or dataset
    calibration = None
    if chosen is None or "int8" in chosen:
        root = root_of(calibration_dataset, dataset, data_root)
        calibration = open_calibration(calibration_dataset, root, samples, input_size)
    plan = Plan(
        checkpoint=found,
        size=input_size,
        targets=names,
        precisions=chosen,
        evaluation=open_evaluation(dataset, split, data_root, input_size, frames),
        calibration=calibration,
        folder=out or Path("runs") / found.name,
        terms=Terms("full" if full else "quick", threads=threads),
        output=form[0],
        output_stride=form[1],
        command=command_line(),
        devices=tuple(measured_on),
        sustained=seconds,
    )
    with run_folder(plan.folder, found, plan.command, replace=replace):
        finished = run_plan(plan, new_progress())
    gone = [
        {"artifact": row.artifact, "device": row.device, "collapsed": row.collapsed}
        for row in finished.measured
        if row.collapsed is not None
    ]
    if as_json:
        print_json(
            {"report": str(finished.page), **finished.document, "failed": plain(finished.failed), "collapsed": gone}
        )
    else:
        print_text(summary(finished.document["rows"]))
        print_text(f"\nreport: {finished.page}")
    # A target whose packages were never installed is no failure unless it was asked for by name.
    if broken := [entry for entry in finished.failed if targets is not None or not entry.missing]:
        raise EdgekitError(
            f"{len(broken)} of the artifacts could not be made or run, first {broken[0].named} {broken[0].precision}: "
            f"{broken[0].failed}"
        )
    refuse_collapsed({f"{row.named} {row.precision}": row.collapsed for row in finished.measured})


def convert(
    checkpoint: CheckpointArgument = "spssn-streets",
    target: TargetsOption = None,
    precision: Annotated[
        str | None, typer.Option("--precision", help="fp32 or fp16; the target's usual one by default.")
    ] = None,
    size: SizeOption = None,
    output: OutputOption = None,
    output_stride: StrideOption = 1,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    out: OutOption = None,
    replace: ReplaceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make a float artifact of a checkpoint for a target."""
    from edgekit.core.values import filled_note
    from edgekit.pipeline.commands import convert as do_convert
    from edgekit.pipeline.folder import run_folder
    from edgekit.pipeline.inputs import default_size
    from edgekit.pipeline.plans import Order

    chosen = parse_precisions(precision, "--precision")
    if chosen is not None and (len(chosen) != 1 or chosen[0] == "int8"):
        raise UsageError("convert makes fp32 or fp16: for int8 use edgekit quantize, which calibrates")
    form = parse_form(output, output_stride)
    names = available_targets(target)
    found = open_checkpoint(checkpoint, network, classes)
    order = Order(found, parse_size(size) or default_size(found), out or Path("runs") / found.name, command_line())
    with run_folder(order.folder, found, order.command, replace=replace):
        made = do_convert(order, names, chosen[0] if chosen else None, *form, new_progress())
    if as_json:
        print_json({"artifacts": [{"folder": str(artifact.folder), **artifact.manifest} for artifact in made]})
        return
    for artifact in made:
        print_text(f"{artifact.title}: {artifact.model_path} ({artifact.manifest['model_bytes'] / 1e6:.1f} MB)")
        for name, text in artifact.manifest["notes"].items():
            print_text(f"  {name}: {filled_note(text, str(artifact.folder))}")


def quantize(
    calib: Annotated[str, typer.Option("--calib", help="Dataset to calibrate with: cityscapes, camvid or streets.")],
    checkpoint: CheckpointArgument = "spssn-streets",
    target: TargetsOption = None,
    data_root: RootOption = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Calibration frames, from the training split.")] = 32,
    evaluation: Annotated[
        str | None,
        typer.Option("--eval", help="DATA:SPLIT to measure the drop on. The checkpoint's own val by default."),
    ] = None,
    frames: FramesOption = 32,
    max_drop: Annotated[
        float | None,
        typer.Option(
            "--max-drop", help="Largest allowed mIoU drop, e.g. 0.01: kept by what it takes, else exit code 4."
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify",
            help="DATA:SPLIT to prove --max-drop on. The checkpoint's own test by default, else val's other frames.",
        ),
    ] = None,
    keep_float: Annotated[
        str | None,
        typer.Option("--keep-float", help="Layers that stay in float, with commas; edgekit sensitivity lists them."),
    ] = None,
    size: SizeOption = None,
    output: OutputOption = None,
    output_stride: StrideOption = 1,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    threads: ThreadsOption = None,
    out: OutOption = None,
    replace: ReplaceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Make an int8 artifact, calibrated on real frames, and say what it lost. With --max-drop, see to it that it lost no more."""
    from calibration.datasets import open_split
    from edgekit.pipeline.folder import run_folder
    from edgekit.pipeline.inputs import default_size, evaluation_split, verification_split
    from edgekit.pipeline.int8 import quantize as do_quantize
    from edgekit.pipeline.plans import Budget, Quantize
    from reports.quantization import NotQuantized, Quantized, drop_text, over_budget, quantization_text

    check_threads_here(threads)
    if max_drop is not None and not 0 <= max_drop < 1:  # of a nan, both comparisons fail
        raise UsageError(
            f"--max-drop {max_drop:g} is no share of mIoU: 0.01 allows one point, 0 none; give 0 or more, and less than 1"
        )
    form = parse_form(output, output_stride)
    names = available_targets(target)
    found = open_checkpoint(checkpoint, network, classes)
    input_size = parse_size(size) or default_size(found)
    split = open_split(calib, "train", data_root, input_size)
    evaluated, why_not = evaluation_split(found, evaluation, "val", data_root, calib, input_size, frames)
    budget = None
    if max_drop is not None:
        if evaluated is None:
            raise UsageError(f"--max-drop needs labelled frames, and {why_not}")
        proving = verification_split(found, verify, evaluated, data_root, calib, input_size, frames)
        budget = Budget(max_drop, *proving)
    elif verify is not None:
        raise UsageError("--verify proves a budget: give --max-drop too")
    plan = Quantize(
        checkpoint=found, targets=tuple(names), size=input_size, calibration=split, samples=samples, evaluation=evaluated,
        folder=out or Path("runs") / found.name, command=command_line(), why_not=why_not, output=form[0],
        output_stride=form[1], keep_float=tuple(listed(keep_float, "--keep-float") or ()), budget=budget, threads=threads,
    )  # fmt: skip
    with run_folder(plan.folder, found, plan.command, replace=replace):
        rows = do_quantize(plan, new_progress())
    if as_json:
        print_json({"rows": [row.to_json() for row in rows]})
    else:
        for row in rows:
            print_text(quantization_text(row))
    if failed := [row for row in rows if isinstance(row, NotQuantized)]:
        raise EdgekitError(f"{len(failed)} of {len(rows)} targets failed, first {failed[0].target}: {failed[0].failed}")
    refuse_collapsed({f"{row.target} int8": row.collapsed for row in rows if isinstance(row, Quantized)})
    for row in rows:
        if isinstance(row, Quantized) and row.budget is not None and not row.budget.holds and row.proof is not None:
            raise BudgetError(
                f"{row.target} int8 loses {drop_text(row.proof)}, which is not within --max-drop {row.budget.max_drop:g}"
                f"{over_budget(row)}: the artifact is kept in {row.artifact}"
            )


def sensitivity(
    calib: Annotated[str, typer.Option("--calib", help="Dataset to calibrate with: cityscapes, camvid or streets.")],
    checkpoint: CheckpointArgument = "spssn-streets",
    data_root: RootOption = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Calibration frames, from the training split.")] = 32,
    scheme: Annotated[
        str | None,
        typer.Option("--scheme", help="symmetric (Core ML, TensorRT) or asymmetric (the others); both by default."),
    ] = None,
    size: SizeOption = None,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    out: OutOption = None,
    replace: ReplaceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Which layers cost int8 its accuracy: a table and a figure, by the network's own modules."""
    from calibration.datasets import open_split
    from edgekit.pipeline.folder import run_folder
    from edgekit.pipeline.inputs import default_size
    from edgekit.pipeline.int8 import SCHEMES
    from edgekit.pipeline.int8 import sensitivity as do_sensitivity
    from reports.sensitivity import sensitivity_text

    schemes = [known for known in SCHEMES if scheme in (None, known)]
    if not schemes:
        raise UsageError(f"there is no scheme '{scheme}': choose from {', '.join(SCHEMES)}")
    found = open_checkpoint(checkpoint, network, classes)
    input_size = parse_size(size) or default_size(found)
    split = open_split(calib, "train", data_root, input_size)
    with run_folder(out or Path("runs") / found.name, found, command_line(), replace=replace) as folder:
        document = do_sensitivity(found, split, samples, input_size, schemes, folder, new_progress())
    if as_json:
        print_json(document)
    else:
        print_text(sensitivity_text(document))
        print_text(f"\nall layers: {folder / 'sensitivity' / 'index.md'}")


def refuse_collapsed(found: Mapping[str, str | None]) -> None:
    """Raise BudgetError where int8 collapsed, by artifact."""
    if broken := {name: why for name, why in found.items() if why is not None}:
        name, why = next(iter(broken.items()))
        raise BudgetError(f"{len(broken)} int8 artifact{'s' if len(broken) > 1 else ''} collapsed, first {name}: {why}")
