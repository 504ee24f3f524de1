"""edgekit's commands. Nothing heavy is imported before a command knows that it needs it."""

from __future__ import annotations

import contextlib
import io
import os
import platform
import shlex
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgekit import __version__
from edgekit.cli import devices
from edgekit.cli.devices import DeviceOption, SustainedOption
from edgekit.cli.options import check_threads_here, listed
from edgekit.cli.output import leave, print_error, print_json, print_text
from edgekit.core.errors import BudgetError, EdgekitError, TargetError, UsageError

if TYPE_CHECKING:
    from edgekit.core.values import Artifact, OutputKind, Precision, Size
    from edgekit.devices.local import Scope
    from edgekit.networks.checkpoint import Checkpoint

app = typer.Typer(
    name="edgekit",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Take a trained segmentation network to phones, boards and PCs, and see what it costs in accuracy.",
)

app.add_typer(devices.app, name="devices")

INTERRUPTED = 130


def _folder(text: str | Path) -> Path:
    """A folder that commands, manifests and pages can name.

    Raises:
        UsageError: it is empty, as an unset variable of a script has it; or bytes that are no text, which no JSON file can hold.
    """
    if not str(text):
        raise UsageError("a folder was given and names nothing: name one, or leave the option out")
    try:
        str(text).encode()
    except UnicodeEncodeError:
        raise UsageError(f"--out {str(text)!a} is no valid UTF-8: name a folder that is") from None
    return Path(text)


# Options that several commands share.
CheckpointArgument = Annotated[str, typer.Argument(help="A file, or a shipped name.", metavar="CHECKPOINT")]
NetworkOption = Annotated[
    str | None, typer.Option("--network", help="spssn, spssn-stream, fast-scnn, or your own: package.module:factory.")
]
ClassesOption = Annotated[
    str | None, typer.Option("--classes", help="Dataset whose classes a checkpoint without metadata has.")
]
TargetsOption = Annotated[
    str | None, typer.Option("--target", help="One or more, with commas. All available ones by default.")
]
SizeOption = Annotated[str | None, typer.Option("--size", help="Input HEIGHTxWIDTH, e.g. 512x1024.")]
OutOption = Annotated[
    Path | None,
    typer.Option("--out", parser=_folder, metavar="PATH", help="The run's folder. runs/<checkpoint> by default."),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        parser=_folder,
        metavar="PATH",
        help="Folder of the dataset (or CITYSCAPES_DATASET, CAMVID_ROOT; of two, one by its variable).",
    ),
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", min=1, help="Threads of the runtime. All cores by default.")
]
OutputOption = Annotated[
    str | None,
    typer.Option(
        "--output",
        help="labels: decided in the model. logits: decoded outside, exactly. The target's faster one by default.",
    ),
]
StrideOption = Annotated[
    int,
    typer.Option(
        "--output-stride", help="Decide labels in the model at this stride (1, 2, 4 or 8) and repeat them; 1 is exact."
    ),
]
FramesOption = Annotated[
    int | None, typer.Option("--frames", min=1, help="Evaluate so many frames, spread over the split.")
]
ReplaceOption = Annotated[
    bool, typer.Option("--replace", help="Remove what another checkpoint left in the run's folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]


def _example(text: str) -> dict[str, Any]:
    return {"epilog": f"Example: {text}"}


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print_text(__version__)
        raise typer.Exit


@app.command(**_example("edgekit run --targets openvino,tflite --size 512x1024 --frames 24"))
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
    from edgekit.core.files import read_json
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
    chosen = _precisions(precisions, "--precisions")
    form = _form(output, output_stride)
    found = _checkpoint(checkpoint, network, data)
    dataset = data or found.dataset
    if not dataset:
        raise UsageError("the checkpoint does not say which dataset it belongs to: add --data")
    input_size = _size(size) or default_size(found)
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
        mode="full" if full else "quick",
        threads=threads,
        output=form[0],
        output_stride=form[1],
        command=_command_line(),
        devices=tuple(measured_on),
        sustained=seconds,
    )
    with run_folder(plan.folder, found, plan.command, replace=replace):
        page = run_plan(plan, _progress())
        document = read_json(page.parent / "report.json")
        failures = read_json(plan.folder / "run.json")["failed"]
    if as_json:
        print_json({"report": str(page), **document, "failed": failures})
    else:
        print_text(summary(document["rows"]))
        print_text(f"\nreport: {page}")
    # A target whose packages were never installed is no failure unless it was asked for by name.
    if broken := [entry for entry in failures if targets is not None or not entry.get("missing")]:
        raise EdgekitError(
            f"{len(broken)} of the artifacts could not be made or run, first {broken[0]['title']} {broken[0]['precision']}: "
            f"{broken[0]['failed']}"
        )


@app.command(**_example("edgekit lint mymodels.fast:make --size 512x1024 --target tflite,coreml"))
def lint(
    subject: Annotated[
        str | None,
        typer.Argument(
            help="A checkpoint, or a network with random weights: package.module:factory. spssn-streets by default.",
            metavar="CHECKPOINT|NETWORK",
        ),
    ] = None,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    size: SizeOption = None,
    target: Annotated[str | None, typer.Option("--target", help="One or more, with commas. All by default.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Name the modules of a network that convert badly, on which target, and what helps. Needs no converter."""
    from dataclasses import asdict

    from edgekit.core.progress import noise_to
    from edgekit.pipeline.inputs import chosen_targets
    from reports.lint import count_findings, lint_text

    targets = chosen_targets(listed(target, "--target"))
    name, weights, module, class_count, input_size = _network_to_lint(subject, network, classes)
    from edgekit.export.lint import TARGETS
    from edgekit.export.lint import lint as do_lint

    used_size = _size(size) or input_size
    with tempfile.TemporaryDirectory() as folder, noise_to(Path(folder) / "lint.log"):  # the network's own prints, too
        found = do_lint(module, used_size, class_count)
    rows = []
    for finding in found:
        if concerned := [name for name in targets if name in finding.targets]:
            rows.append({**asdict(finding), "targets": concerned})
    summary = count_findings(rows, targets, TARGETS)
    document = {
        "network": name, "weights": weights, "size": [used_size.height, used_size.width], "targets": list(targets),
        "findings": rows, "summary": summary,
    }  # fmt: skip
    if as_json:
        print_json(document)
    else:
        print_text(lint_text(document), end="")
    bad = [entry for entry, counts in summary.items() if counts and (counts["fails"] or counts["wrong"])]
    if bad:
        raise EdgekitError(
            f"{name} does not convert as it should for {', '.join(bad)}: follow the remedies, or choose other targets with --target"
        )


def _network_to_lint(
    subject: str | None, network: str | None, classes: str | None
) -> tuple[str, str, Any, int | None, Size]:
    """Name, a word on its weights, module, classes (None: all channels) and usual size of what ``lint`` was given."""
    from calibration.datasets import class_set
    from edgekit.core.values import Size
    from edgekit.networks.checkpoint import DEFAULT_CHECKPOINT, NETWORKS, build_network, load_network
    from edgekit.pipeline.inputs import default_size

    if subject is not None and not Path(subject).is_file() and (":" in subject or subject in NETWORKS):
        if network is not None:
            raise UsageError(f"{subject} and --network {network} name two networks: leave one out")
        subject, network = None, subject
    if subject is None and network is not None:
        count = len(class_set(classes).names) if classes else None
        return network, "random weights", build_network(network, count or 19, {}), count, Size(512, 1024)
    found = _checkpoint(subject or DEFAULT_CHECKPOINT, network, classes)
    module = load_network(found)
    return f"{found.name} ({found.network})", "its own weights", module, len(found.class_names), default_size(found)


@app.command(**_example("edgekit convert --target coreml"))
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

    chosen = _precisions(precision, "--precision")
    if chosen is not None and (len(chosen) != 1 or chosen[0] == "int8"):
        raise UsageError("convert makes fp32 or fp16: for int8 use edgekit quantize, which calibrates")
    form = _form(output, output_stride)
    names = _available(target)
    found = _checkpoint(checkpoint, network, classes)
    with run_folder(out or Path("runs") / found.name, found, _command_line(), replace=replace) as folder:
        made = do_convert(
            found, names, chosen[0] if chosen else None, _size(size) or default_size(found), *form, folder, _command_line(),
            _progress(),
        )  # fmt: skip
    if as_json:
        print_json({"artifacts": [{"folder": str(artifact.folder), **artifact.manifest} for artifact in made]})
        return
    for artifact in made:
        print_text(f"{artifact.title}: {artifact.model_path} ({artifact.manifest['model_bytes'] / 1e6:.1f} MB)")
        for name, text in artifact.manifest["notes"].items():
            print_text(f"  {name}: {filled_note(text, str(artifact.folder))}")


@app.command(**_example("edgekit quantize --target openvino --calib streets"))
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
    from edgekit.pipeline.int8 import Budget
    from edgekit.pipeline.int8 import quantize as do_quantize

    check_threads_here(threads)
    if max_drop is not None and not 0 <= max_drop < 1:  # of a nan, both comparisons fail
        raise UsageError(
            f"--max-drop {max_drop:g} is no share of mIoU: 0.01 allows one point, 0 none; give 0 or more, and less than 1"
        )
    form = _form(output, output_stride)
    names = _available(target)
    found = _checkpoint(checkpoint, network, classes)
    input_size = _size(size) or default_size(found)
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
    kept = tuple(listed(keep_float, "--keep-float") or ())
    with run_folder(out or Path("runs") / found.name, found, _command_line(), replace=replace) as folder:
        rows = do_quantize(
            found, names, split, samples, evaluated, why_not, input_size, *form, kept, budget, folder, threads, _command_line(),
            _progress(),
        )  # fmt: skip
    if as_json:
        print_json({"rows": rows})
    else:
        for row in rows:
            print_text(_quantize_line(row, why_not))
    failed = [row for row in rows if "failed" in row]
    if failed:
        raise EdgekitError(
            f"{len(failed)} of {len(rows)} targets failed, first {failed[0]['target']}: {failed[0]['failed']}"
        )
    over = [row for row in rows if row.get("budget") and not row["budget"]["holds"]]
    if over:
        row, proof = over[0], over[0].get("verification") or over[0]
        raise BudgetError(
            f"{row['target']} int8 loses {_drop_text(proof)}, which is not within --max-drop {max_drop:g}"
            f"{_over_budget(row)}: the artifact is kept in {row['artifact']}"
        )


def _over_budget(row: dict[str, Any]) -> str:
    """What else is to be said of a budget that does not hold: what was tried, where it held, what would decide it."""
    allowed, proof, text = row["budget"]["max_drop"], row.get("verification") or row, ""
    if row["miou_drop_ci"][1] <= allowed:
        text = f", though it holds on the {row['evaluation']['frames']} frames that guided it"
    elif "repair" in row:
        most = max(len(step["kept"]) for step in row["repair"]["steps"])
        text = f", with up to {most} layer{'s' if most > 1 else ''} in float"
    if row["budget"].get("undecided"):
        text += f" (undecided: {row['evaluation']['frames']} frames are too few, give more by --frames)"
    elif proof["miou_drop"] <= allowed:
        text += " (the drop itself is within it, its interval is not: more frames, by --frames where the split has them, would decide it)"
    return text


def _drop_text(loss: dict[str, Any]) -> str:
    low, high = loss["miou_drop_ci"]
    where = loss["evaluation"]
    trained = {
        True: ", on which the network was trained",
        None: " (not known whether the network was trained on them)",
        False: "",
    }[where["trained_on"]]
    return (
        f"{100 * loss['miou_drop']:+.2f} points [{100 * low:+.2f}, {100 * high:+.2f}] on {where['frames']} "
        f"{where['dataset']} {where['split']} frames{trained}"
    )


def _quantize_line(row: dict[str, Any], why_not: str) -> str:
    if "failed" in row:
        return f"{row['target']} int8: failed, {row['failed']}"
    lines = [
        f"{row['target']} int8 at {row['size'][0]}x{row['size'][1]}: {row['artifact']} ({row['model_bytes'] / 1e6:.1f} MB)",
        f"  calibrated on {row['calibration']['frames']} {row['calibration']['dataset']} {row['calibration']['split']} frames",
        f"  labels as float PyTorch: {100 * row['agreement']:.2f} % of pixels on {row['agreement_frames']} frames that did not "
        f"calibrate ({row['provenance']['kind']} by {row['provenance']['by']})",
    ]
    if row["no_int8"]:
        lines.append(
            f"  nothing was kept in float of {', '.join(row['no_int8'])}: {row['target']} runs none of it in int8"
        )
    if row["miou"] is None:
        lines.append(f"  mIoU: not measured, {why_not}")
    else:
        lines.append(f"  mIoU {100 * row['miou']:.2f} %, float {100 * row['miou_float']:.2f} %, drop {_drop_text(row)}")
    if "budget" in row:
        lines += _budget_lines(row)
    return "\n".join(lines)


def _budget_lines(row: dict[str, Any]) -> list[str]:
    lines = []
    if "repair" in row:
        repair = row["repair"]
        ratio = repair["latency_ratio"]
        slower = f"{ratio[0]:.2f} times its latency" if ratio else f"latency not measured, {repair['why']}"
        grown = (row["model_bytes"] - repair["bytes_before"]) / 1e6
        lines.append(f"  kept in float to meet the budget: {', '.join(repair['kept'])} ({grown:+.2f} MB, {slower})")
    holds = "holds" if row["budget"]["holds"] else "does not hold"
    if "verification" in row:
        proved = f"drop {_drop_text(row['verification'])}, which neither calibrated nor guided it"
    else:
        proved = f"only on the frames that guided it: {row['provenance_verification']['why']}"
    more = "" if row["budget"]["holds"] else _over_budget(row)
    allowed = row["budget"]["max_drop"]
    return [*lines, f"  --max-drop {allowed:g} ({100 * allowed:g} points) {holds}{more}: {proved}"]


@app.command(**_example("edgekit sensitivity spssn-streets --calib streets"))
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
    found = _checkpoint(checkpoint, network, classes)
    input_size = _size(size) or default_size(found)
    split = open_split(calib, "train", data_root, input_size)
    with run_folder(out or Path("runs") / found.name, found, _command_line(), replace=replace) as folder:
        document = do_sensitivity(found, split, samples, input_size, schemes, folder, _progress())
    if as_json:
        print_json(document)
    else:
        print_text(sensitivity_text(document))
        print_text(f"\nall layers: {folder / 'sensitivity' / 'index.md'}")


@app.command(
    **_example(
        "edgekit compare runs/spssn-streets/artifacts/tflite-int8-512x1024 runs/spssn-streets/artifacts/openvino-int8-512x1024"
    )
)
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
            parser=_folder,
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
        list(artifacts.values()), None if named is None else _checkpoint(named, network, data or classes)
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
    document = do_compare(one, other, size, looked_at, tolerance, folder, _progress())
    if as_json:
        print_json(document | {"sentence": sentence(document)})
    else:
        print_text(comparison_text(document))
        print_text(f"\nall layers: {folder / 'index.md'}")


@app.command(**_example("edgekit evaluate spssn-streets --split val"))
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
            "--out", parser=_folder, metavar="PATH", help="Folder for what tools print, and for a device's frames."
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
    from reports.document import SEEN

    logs = out / "logs"
    (place,) = chosen_devices([device])
    check_threads_here(threads, [place])
    if is_artifact(subject):
        artifact = open_artifact(subject, class_set(data).names if data else None)
        data = data or _dataset_of(artifact)
        if size is not None and _size(size) != artifact.size:
            raise UsageError(f"{subject} takes {artifact.size} only: convert again for {size}")
        frames_split = open_evaluation(data, split, data_root, artifact.size, frames)
        result = do_evaluate(None, artifact, frames_split, artifact.size, threads, logs, _progress(), place)
    else:
        if place != THIS_MACHINE:
            raise UsageError(f"a checkpoint is evaluated in PyTorch, here: give an artifact to run on '{place.name}'")
        found = _checkpoint(subject, network, data)
        dataset = data or found.dataset
        input_size = _size(size) or default_size(found)
        frames_split = open_evaluation(dataset, split, data_root, input_size, frames)
        result = do_evaluate(found, None, frames_split, input_size, threads, logs, _progress())
    if as_json:
        print_json(result)
        return
    print_text(
        f"{result['subject']} on {result['frames']} {result['dataset']} {result['split']} frames at input {result['size'][0]}x{result['size'][1]}"
    )
    print_text(f"({result['provenance']['kind']} by {result['provenance']['by']})")
    if result["trained_on"]:
        print_text(SEEN)
    print_text("")
    for key, name in (
        ("miou", "class mIoU"), ("miou_category", "category mIoU"), ("iiou", "class iIoU"), ("iiou_category", "category iIoU"),
        ("pixel_accuracy", "pixel accuracy"), ("mean_class_accuracy", "mean class accuracy"),
    ):  # fmt: skip
        print_text(f"{name:22}{_percent(result[key])}")
    print_text("")
    for name, value in zip(result["class_names"], result["per_class_iou"], strict=True):
        print_text(f"  {name:20}{_percent(value)}")


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


@app.command(**_example("edgekit bench runs/spssn-streets/artifacts/openvino-int8-512x1024"))
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
        Path, typer.Option("--out", parser=_folder, metavar="PATH", help="Folder for samples, logs and pages.")
    ] = Path("runs/bench"),
    as_json: JsonOption = False,
) -> None:
    """Latency of artifacts, each in a process of its own, here or on devices; with --data their accuracy too."""
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
        loaded, measured_on, "full" if full else "quick", cast("Scope", scope), threads, seconds, evaluation,
        _command_line(), out,
    )  # fmt: skip
    progress = _progress()
    with held(out, plan.command, lambda holder: progress.say(f"waiting for {holder}")):
        rows = do_bench(plan, progress)
    for row in rows:
        if (summary := latency_summary(row["latency"])) is not None:
            row["summary"] = {
                "p50": summary.p50, "p90": summary.p90, "mean": summary.mean, "cv": summary.cv, "first": summary.first,
                "n": summary.n, "fps": summary.fps, "warnings": list(summary.warnings),
            }  # fmt: skip
    if as_json:
        print_json({"report": str(out / "report"), "rows": rows})
    else:
        _print_latencies(rows)
        print_text(f"\nreport: {', '.join(str(out / 'report' / f'{one.name}.md') for one in measured_on)}")
    if broken := [why for row in rows if (why := row["latency"].get("failed") or row.get("failed"))]:
        raise EdgekitError(f"{len(broken)} of {len(rows)} artifacts could not be measured: {broken[0]}")


def _print_latencies(rows: list[dict[str, Any]]) -> None:
    from reports.sustained import sustained_line

    for row in rows:
        where = "" if row["device"] == "local" else f" on {row['device']}"
        print_text(
            f"{row['target']} {row['precision']} at {row['size'][0]}x{row['size'][1]}{where} ({row['artifact']})"
        )
        if "accuracy" in row:
            taken = row["accuracy"]
            print_text(
                f"  mIoU {_percent(taken['miou'])} ({taken['provenance']['kind']} by {taken['provenance']['by']})"
            )
        if "sustained" in row:
            print_text(f"  {sustained_line(row['sustained'])}")
        if "summary" not in row:
            print_text(f"  not measured: {row['latency']['provenance']['why']}")
            continue
        numbers, latency = row["summary"], row["latency"]
        settings = ", ".join(f"{name} {value}" for name, value in latency["settings"].items())
        p90 = "" if numbers["p90"] is None else f"p90 {numbers['p90']:.1f} ms, "
        print_text(
            f"  {latency['scope']}: p50 {numbers['p50']:.1f} ms, {p90}{numbers['fps']:.1f} frames/s "
            f"(n {numbers['n']}, {latency['provenance']['by']}, {settings})"
        )
        told = (
            ("load", latency.get("load_ms"), "ms", 1.0), ("first frame", numbers["first"], "ms", 1.0),
            ("peak memory", latency.get("peak_rss_bytes"), "MB", 1e-6),
        )  # fmt: skip
        if parts := [f"{name} {value * factor:.0f} {unit}" for name, value, unit, factor in told if value is not None]:
            print_text(f"  {', '.join(parts)}")
        for name, unit in (latency.get("compute_units") or {}).items():
            middle = unit.get("p50", unit.get("mean"))
            print_text(f"  on {name}: {unit['failed']}" if middle is None else f"  on {name}: {middle:.1f} ms")
        for warning in numbers["warnings"]:
            print_text(f"  warning: {warning}")


@app.command(**_example("edgekit report runs/spssn-streets"))
def report(
    run_folder: Annotated[Path, typer.Argument(help="What edgekit run wrote.", metavar="RUN_DIR")],
    data_root: RootOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write a run's report again from its measurements."""
    from edgekit.core.files import read_json
    from edgekit.core.hold import held
    from edgekit.pipeline.pages import report_again
    from reports.summary import summary

    if not (run_folder / "run.json").is_file():  # before a lock is put there
        raise UsageError(
            f"{run_folder} is not a run's folder (it has no run.json): give the folder of a run that was finished"
        )
    with held(run_folder, _command_line()):
        page = report_again(run_folder, data_root, _progress())
        document = read_json(page.parent / "report.json")
    if as_json:
        print_json({"report": str(page), **document})
    else:
        print_text(summary(document["rows"]))
        print_text(f"\nreport: {page}")


@app.command(**_example("edgekit predict spssn-streets photo.jpg --out predictions"))
def predict(
    subject: Annotated[
        str, typer.Argument(help="A checkpoint, an artifact's folder, or an .mlpackage.", metavar="CHECKPOINT|ARTIFACT")
    ],
    images: Annotated[list[Path], typer.Argument(help="Image files or folders of them.", metavar="IMAGE...")],
    out: Annotated[Path, typer.Option("--out", parser=_folder, metavar="PATH", help="Folder for the pictures.")] = Path(
        "predictions"
    ),
    size: SizeOption = None,
    network: NetworkOption = None,
    classes: ClassesOption = None,
    threads: ThreadsOption = None,
    as_json: JsonOption = False,
) -> None:
    """Label images and write overlays to look at."""
    from calibration.datasets import class_set
    from edgekit.pipeline.artifacts import is_artifact, open_artifact
    from edgekit.pipeline.commands import image_files
    from edgekit.pipeline.commands import predict as do_predict
    from edgekit.pipeline.inputs import default_size

    check_threads_here(threads)
    files = image_files(images)
    if is_artifact(subject):
        artifact = open_artifact(subject, class_set(classes).names if classes else None)
        if size is not None and _size(size) != artifact.size:
            raise UsageError(f"{subject} takes {artifact.size} only: convert again for {size}")
        rows = do_predict(None, artifact, files, artifact.size, out, threads, _progress())
    else:
        found = _checkpoint(subject, network, classes)
        rows = do_predict(found, None, files, _size(size) or default_size(found), out, threads, _progress())
    if as_json:
        print_json({"images": rows})
        return
    for row in rows:
        top = sorted(row["classes"].items(), key=lambda entry: -entry[1])[:4]
        print_text(f"{row['overlay']}: " + ", ".join(f"{name} {100 * share:.0f} %" for name, share in top))


@app.command(
    **_example("edgekit train --network spssn --data camvid --data-root CamVid --epochs 100 --crop 360x480 --batch 8")
)
def train(
    context: typer.Context,
    preset: Annotated[
        str | None,
        typer.Option("--preset", help="paper-cityscapes or paper-camvid; options given beside it win."),
    ] = None,
    network: Annotated[
        str, typer.Option("--network", help="spssn, spssn-stream, fast-scnn, or package.module:factory.")
    ] = "spssn",
    data: Annotated[str, typer.Option("--data", help="cityscapes, camvid or streets.")] = "cityscapes",
    data_root: RootOption = None,
    split: Annotated[
        str, typer.Option("--split", help="train, or train+val once a recipe was chosen on val.")
    ] = "train",
    initial: Annotated[
        str, typer.Option("--initial", help="Checkpoint whose weights to start from. Random weights by default.")
    ] = "",
    teacher: Annotated[
        str,
        typer.Option(
            "--teacher", help="Checkpoint of the same classes to learn from, beside the labels. None by default."
        ),
    ] = "",
    teacher_network: Annotated[
        str | None,
        typer.Option("--teacher-network", help="What the teacher is, where its file does not say: like --network."),
    ] = None,
    distillation: Annotated[
        float, typer.Option("--distillation", help="The teacher's part of the loss, up to 1; the rest is the labels'.")
    ] = 0.0,
    draw_size: Annotated[str, typer.Option("--draw-size", help="Size at which streets frames are drawn.")] = "512x1024",
    frame_size: Annotated[
        str, typer.Option("--frame-size", help="Bring whole frames to this HEIGHTxWIDTH first, also to validate.")
    ] = "",
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, help="Train on so many frames. All by default.")
    ] = None,
    missing_classes: Annotated[
        bool, typer.Option("--missing-classes", help="Train although a class never occurs in the frames.")
    ] = False,
    epochs: Annotated[int, typer.Option("--epochs", min=1)] = 800,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images a step, of all processes together.")] = 4,
    crop: Annotated[str, typer.Option("--crop", help="HEIGHTxWIDTH of the random crop.")] = "1024x2048",
    scale: Annotated[tuple[float, float], typer.Option("--scale", help="Range of the random rescaling.")] = (0.5, 2.0),
    flip: Annotated[bool, typer.Option(help="Mirror every other crop.")] = True,
    colour_jitter: Annotated[float, typer.Option("--colour-jitter", help="Largest relative change of colours.")] = 0.0,
    white_balance: Annotated[
        float, typer.Option("--white-balance", help="Largest relative change of each colour channel's gain.")
    ] = 0.0,
    class_mix: Annotated[
        float, typer.Option("--class-mix", help="Share of crops over which half of another crop's classes are laid.")
    ] = 0.0,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd or adamw.")] = "sgd",
    learning_rate: Annotated[float, typer.Option("--learning-rate")] = 0.02,
    momentum: Annotated[float, typer.Option("--momentum")] = 0.9,
    weight_decay: Annotated[float, typer.Option("--weight-decay")] = 1e-5,
    schedule: Annotated[str, typer.Option("--schedule", help="poly, step or constant.")] = "poly",
    power: Annotated[float, typer.Option("--power", help="Of the poly schedule.")] = 0.9,
    step_epochs: Annotated[
        str, typer.Option("--step-epochs", help="Epochs, with commas, at which the step schedule drops.")
    ] = "",
    step_factor: Annotated[float, typer.Option("--step-factor", help="What it multiplies by there.")] = 0.1,
    warmup_steps: Annotated[int, typer.Option("--warmup-steps", help="Linear rise at the start.")] = 0,
    loss_stride: Annotated[int, typer.Option("--loss-stride", help="Loss on every n-th pixel: 1, 2, 4 or 8.")] = 1,
    class_balance: Annotated[
        float,
        typer.Option("--class-balance", help="Weigh rare classes more: 0 not at all, 1 inversely to their share."),
    ] = 0.0,
    lovasz: Annotated[float, typer.Option("--lovasz", help="Weight of the Lovasz-Softmax loss; 0 is off.")] = 0.0,
    average: Annotated[float, typer.Option("--average", help="Decay of the weights' moving average; 0 is off.")] = 0.0,
    precision: Annotated[
        str, typer.Option("--precision", help="float32, or bfloat16 for mixed precision (faster).")
    ] = "float32",
    camvid_variant: Annotated[
        bool,
        typer.Option(
            "--camvid-variant/--no-camvid-variant",
            help="No downsampling in the first bottleneck unit (paper, section 5.2).",
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    validate_every: Annotated[int, typer.Option("--validate-every", min=1, help="Epochs between val mIoUs.")] = 10,
    save_every: Annotated[
        int,
        typer.Option(
            "--save-every", min=1, help="Epochs between states to go on from; one is kept before each validation, too."
        ),
    ] = 1,
    test: Annotated[
        bool, typer.Option(help="Evaluate on the test split at the end; not while settings are still compared.")
    ] = True,
    workers: Annotated[
        int | None,
        typer.Option(
            "--workers",
            min=0,
            max=64,
            help="Processes that prepare crops. By default 1 on a CPU; for a GPU one per core but one, at most 16.",
        ),
    ] = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    threads: ThreadsOption = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=_folder, metavar="PATH", help="runs/train-<network>-<data> by default."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a network. The defaults are the paper's recipe for Cityscapes. Run again to go on after a kill.

    On several GPUs (or several processes on a CPU): torchrun --nproc-per-node 2 -m edgekit train ...
    """
    import time

    from calibration.datasets import class_set, join_splits, open_split
    from edgekit.core.errors import DataError
    from edgekit.core.files import clean_partials
    from edgekit.core.hold import held, is_held
    from edgekit.core.progress import Progress, duration
    from edgekit.core.values import Size
    from edgekit.networks.checkpoint import NETWORKS, load_checkpoint, load_start, read_metadata, trained_on
    from edgekit.training.distributed import leads
    from edgekit.training.recipe import TrainingRecipe, preset_settings

    check_threads_here(threads)
    given: dict[str, Any] = {
        "network": network, "dataset": data, "split": split, "draw_size": draw_size, "frame_size": frame_size,
        "frames": frames, "epochs": epochs, "batch": batch, "crop": crop, "scale": scale, "flip": flip,
        "colour_jitter": colour_jitter, "white_balance": white_balance, "class_mix": class_mix,
        "optimizer": optimizer, "learning_rate": learning_rate, "momentum": momentum,
        "weight_decay": weight_decay, "schedule": schedule, "power": power, "step_epochs": _epochs(step_epochs),
        "step_factor": step_factor, "warmup_steps": warmup_steps, "loss_stride": loss_stride,
        "class_balance": class_balance, "lovasz": lovasz, "average": average, "precision": precision, "seed": seed,
        "arguments": {"camvid": True} if camvid_variant else {}, "distillation": distillation,
    }  # fmt: skip
    if preset is not None:
        options = {"dataset": "data", "arguments": "camvid_variant"}
        for name, value in preset_settings(preset).items():
            source = context.get_parameter_source(options.get(name, name))
            own = name == "arguments" and network not in NETWORKS  # a preset knows nothing of what its factory takes
            if not own and (source is None or source.name == "DEFAULT"):
                given[name] = value
        if given["schedule"] != "step" and not step_epochs:  # the preset's belong to the schedule that was left
            given["step_epochs"] = ()
    names = class_set(given["dataset"]).names
    start = load_start(initial, given["network"], names) if initial else None
    if teacher_network is not None and not teacher:
        raise UsageError("--teacher-network belongs to --teacher: name a checkpoint, or leave it out")
    taught_by = None
    if teacher:
        taught_by = load_checkpoint(teacher, teacher_network, names, network_option="--teacher-network")
    # Of the start its weights alone matter, of a teacher also what computes with them.
    given["initial"] = "" if start is None else start.file_sha256
    given["teacher"] = "" if taught_by is None else taught_by.sha256
    recipe = TrainingRecipe(**given)
    recipe.check()
    drawn = Size.parse(recipe.draw_size)
    label = f"{recipe.network.replace(':', '-')}"
    folder = out or Path("runs") / f"train-{label}-{recipe.dataset}"
    parts = recipe.split.split("+")
    training = join_splits([open_split(recipe.dataset, part, data_root, drawn) for part in parts]).first(recipe.frames)
    progress = Progress(silent=not leads())
    splits = {}
    for name in ("val", "test") if test else ("val",):
        try:
            opened = open_split(recipe.dataset, name, data_root, drawn)
            opened.references[0].load()
        except DataError:  # a dataset may keep its test labels to itself, and a sample of it may have one split only
            continue
        if name in parts:  # what was trained on says nothing
            continue
        others = [one for one in (start, taught_by) if one is not None]
        saw = {one.name: trained_on(one.recipe, recipe.dataset, name) for one in others}
        if seen := [one for one, answer in saw.items() if answer]:
            progress.say(f"{name} is not evaluated: {' and '.join(seen)} saw it in training")
            continue
        if unknown := [one for one, answer in saw.items() if answer is None]:
            progress.say(f"{name} may prove nothing: whether {' and '.join(unknown)} saw it in training is not known")
        splits[name] = opened
    from edgekit.training.loop import Progress as TrainingProgress
    from edgekit.training.loop import train as do_train

    started = time.monotonic()

    def report_step(now: TrainingProgress) -> None:
        progress.update(
            f"epoch {now.epoch} of {now.epochs}, step {now.step} of {now.steps}: loss {now.loss:.3f}, "
            f"{now.images_per_second:.1f} images/s, {duration(now.seconds_left)} left"
        )

    # Of several processes of one training, one writes.
    with held(folder, _command_line()) if leads() else contextlib.nullcontext():
        if leads():
            clean_partials(folder, alone=is_held(folder))
        checkpoint = do_train(
            recipe, training, splits.get("val"), splits.get("test"), folder, label, _command_line(),
            report_step, progress.say, validate_every=validate_every, save_every=save_every, workers=workers, device=device,
            threads=threads, initial=start, teacher=taught_by, missing_classes=missing_classes,
            decoding=lambda done, total: progress.count("decoding frames", done, total, started),
        )  # fmt: skip
    if not leads():
        return
    metrics = (read_metadata(checkpoint) or {}).get("metrics", {})
    if as_json:
        print_json({"checkpoint": str(checkpoint), "metrics": metrics, "seconds": time.monotonic() - started})
        return
    for where, scores in metrics.items():
        print_text(f"{where}: class mIoU {_percent(scores['miou'])} on {scores['frames']} frames")
    print_text(f"checkpoint: {checkpoint}")


def _epochs(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UsageError(f"--step-epochs {text} must be whole numbers with commas, for example 100,150") from None


@app.command(**_example("edgekit targets"))
def targets(as_json: JsonOption = False) -> None:
    """What can be converted to, what is missing, and how to get it."""
    from edgekit.core.registry import load_target, target_names

    rows = []
    for name in target_names():
        try:
            target = load_target(name)
        except EdgekitError as error:
            rows.append(
                {
                    "target": name,
                    "title": name,
                    "precisions": [],
                    "available": False,
                    "missing": str(error),
                    "engine": None,
                }
            )
            continue
        sentence = target.missing()
        engine = target.engine() if sentence is None else None
        rows.append(
            {
                "target": name, "title": target.title, "precisions": list(target.precisions), "available": sentence is None,
                "missing": sentence,
                "engine": None if engine is None else {"kind": engine.kind, "by": engine.by, "no_latency": engine.no_latency},
            }
        )  # fmt: skip
    if as_json:
        print_json({"targets": rows})
        return
    for row in rows:
        print_text(f"{row['target']:14}{', '.join(cast('list[str]', row['precisions'])):18}", end="")
        engine_row = cast("dict[str, Any] | None", row["engine"])
        if engine_row is None:
            print_text(str(row["missing"]))
            continue
        print_text(f"{engine_row['kind']} by {engine_row['by']}")
        if engine_row["no_latency"]:
            print_text(f"{'':32}latency: {engine_row['no_latency']}")


@app.command(**_example("edgekit doctor"))
def doctor(as_json: JsonOption = False) -> None:
    """What is installed here, which data is at hand, and what to do about the rest."""
    import shutil

    from calibration.datasets import ROOT_VARIABLES, find_root
    from edgekit.core.registry import load_target, target_names
    from edgekit.devices.environment import local_environment
    from edgekit.networks.checkpoint import shipped_names

    environment = local_environment()
    findings: list[dict[str, Any]] = []

    def note(subject: str, good: bool, text: str) -> None:
        findings.append({"subject": subject, "good": good, "text": text})

    note("python", True, f"{platform.python_version()} at {sys.executable}")
    in_environment = sys.prefix != sys.base_prefix
    note(
        "environment",
        in_environment,
        "a virtual environment"
        if in_environment
        else "no virtual environment: edgekit has the top-level packages targets, calibration and reports, so give it an environment of its own",
    )
    note("machine", True, f"{environment['cpu']}, {environment['cores']} cores, {environment['os']}")
    free = shutil.disk_usage(".").free
    note(
        "disk",
        free > 2 << 30,
        f"{free / 1e9:.0f} GB free here" + ("" if free > 2 << 30 else ": a run needs about 2 GB"),
    )
    for name in target_names():
        try:
            sentence = load_target(name).missing()
        except EdgekitError as error:
            sentence = str(error)
        note(f"target {name}", sentence is None, sentence or "ready")
    for dataset, variable in ROOT_VARIABLES.items():
        try:
            note(f"data {dataset}", True, str(find_root(dataset, None)))
        except EdgekitError:
            note(f"data {dataset}", False, f"no folder: set {variable} or pass --data-root (streets needs none)")
    note("checkpoints", bool(shipped_names()), ", ".join(shipped_names()) or "none shipped")
    for package, number in environment["packages"].items():
        note(f"package {package}", True, number)
    if as_json:
        print_json({"edgekit": __version__, "findings": findings, "environment": environment})
        return
    print_text(f"edgekit {__version__}")
    for finding in findings:
        print_text(f"{'ok  ' if finding['good'] else 'miss'}  {finding['subject']:26}{finding['text']}")


def _checkpoint(reference: str, network: str | None, dataset: str | None) -> Checkpoint:
    from calibration.datasets import class_set
    from edgekit.networks.checkpoint import load_checkpoint

    names = class_set(dataset).names if dataset else None
    return load_checkpoint(reference, network, names, dataset or "")


def _size(text: str | None) -> Size | None:
    from edgekit.core.values import Size

    return None if text is None else Size.parse(text)


def _available(text: str | None) -> tuple[str, ...]:
    """The asked targets, or those that can work here."""
    from edgekit.core.registry import load_target, target_names
    from edgekit.pipeline.inputs import chosen_targets

    if text is not None:
        return chosen_targets(listed(text, "--target"))
    names = []
    for name in target_names():
        with contextlib.suppress(TargetError):  # a broken plug-in; `edgekit targets` tells its cause
            if load_target(name).missing() is None:
                names.append(name)
    if not names:
        raise EdgekitError("no target can work here: run edgekit targets to see what each is missing")
    return tuple(names)


def _precisions(text: str | None, option: str) -> tuple[Precision, ...] | None:
    from edgekit.core.values import PRECISIONS

    parts = listed(text, option)
    for part in parts or ():
        if part not in PRECISIONS:
            raise UsageError(f"there is no precision '{part}': choose from {', '.join(PRECISIONS)}")
    return None if parts is None else cast("tuple[Precision, ...]", tuple(parts))


def _form(output: str | None, output_stride: int) -> tuple[OutputKind | None, int]:
    """``--output`` and ``--output-stride``, which belong together."""
    from edgekit.core.values import Recipe

    if output not in (None, "labels", "logits"):
        raise UsageError(f"--output {output} is not known: choose labels or logits")
    if output_stride not in (1, 2, 4, 8):
        raise UsageError(f"--output-stride {output_stride} must be 1, 2, 4 or 8")
    kind = cast("OutputKind | None", output)
    Recipe("fp32", kind or "labels", output_stride)  # refuses what contradicts itself, before anything is loaded
    return kind, output_stride


def _progress() -> Any:
    from edgekit.core.progress import Progress

    return Progress()


def _percent(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:6.2f} %"


def _command_line() -> str:
    line = shlex.join(["edgekit", *sys.argv[1:]])
    return line.encode(errors="backslashreplace").decode()  # a file's name may be bytes that are no text


def _log_bug(error: BaseException) -> Path:
    """Traceback and versions, for the report of a bug."""
    handle, name = tempfile.mkstemp(prefix="edgekit-", suffix=".log")
    with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(
            f"edgekit {__version__}, Python {platform.python_version()}, {platform.platform()}\n{_command_line()}\n\n"
        )
        file.write("".join(traceback.format_exception(error)))
    return Path(name)


def _open_streams() -> None:
    """Give a command whose streams are closed ones that lead nowhere: else the next file that is opened would take their numbers."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - as long as the process


def main(call: Callable[..., Any] | None = None) -> None:
    """The one place where errors become sentences and exit codes."""
    if not sys.warnoptions:  # libraries' remarks to their developers; -W shows them
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.filterwarnings("ignore", "The value of the smallest subnormal", UserWarning)  # numpy, on flushed ones
    _open_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal that has no such letter gets its code
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = (call or app)(standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
    except EdgekitError as error:
        print_error(f"edgekit: {error}")
        leave(error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        print_error("\nedgekit: interrupted; nothing half-written was kept, the same command goes on from what was")
        leave(INTERRUPTED)
    except OSError as error:
        print_error(
            f"edgekit: {error.strerror or error} ({error.filename or 'no file named'}): check the path and the space left"
        )
        leave(1)
    except Exception as error:
        show, exit_code = getattr(error, "show", None), getattr(error, "exit_code", None)
        if callable(show) and isinstance(exit_code, int):  # typer's usage errors, whose base class has no public name
            show()
            leave(exit_code)
        print_error(traceback.format_exc().rstrip())
        print_error(f"edgekit: this is a bug of edgekit's, please report it with {_log_bug(error)}")
        leave(3)
    leave(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    main()
