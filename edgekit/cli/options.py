"""What options of several commands have in common."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgekit.core.errors import EdgekitError, TargetError, UsageError

if TYPE_CHECKING:
    from edgekit.core.values import OutputKind, Precision, Size
    from edgekit.devices.inventory import Device
    from edgekit.networks.checkpoint import Checkpoint


def folder_path(text: str | Path) -> Path:
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
    typer.Option("--out", parser=folder_path, metavar="PATH", help="The run's folder. runs/<checkpoint> by default."),
]
RootOption = Annotated[
    Path | None,
    typer.Option(
        "--data-root",
        parser=folder_path,
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


def listed(text: str | None, option: str) -> list[str] | None:
    """What an option names with commas; None where it was left out.

    Raises:
        UsageError: it was given, and names nothing, as an empty variable of a script would have it.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise UsageError(f"{option} was given and names nothing: name what you want, with commas, or leave it out")
    return parts


def check_threads_here(threads: int | None, places: Sequence[Device] = ()) -> None:
    """Raise UsageError where this machine has fewer cores than threads were asked for.

    Args:
        places: where to measure, none of which may be this machine: other devices are asked when they are connected.
    """
    from edgekit.devices.inventory import THIS_MACHINE
    from edgekit.runtimes.common import available_cores, check_threads

    if not places or THIS_MACHINE in places:
        check_threads(threads, available_cores(), "this machine")


def open_checkpoint(reference: str, network: str | None, dataset: str | None) -> Checkpoint:
    from calibration.datasets import class_set
    from edgekit.networks.checkpoint import load_checkpoint

    names = class_set(dataset).names if dataset else None
    return load_checkpoint(reference, network, names, dataset or "")


def parse_size(text: str | None) -> Size | None:
    from edgekit.core.values import Size

    return None if text is None else Size.parse(text)


def available_targets(text: str | None) -> tuple[str, ...]:
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


def parse_precisions(text: str | None, option: str) -> tuple[Precision, ...] | None:
    from edgekit.core.values import PRECISIONS

    parts = listed(text, option)
    for part in parts or ():
        if part not in PRECISIONS:
            raise UsageError(f"there is no precision '{part}': choose from {', '.join(PRECISIONS)}")
    return None if parts is None else cast("tuple[Precision, ...]", tuple(parts))


def parse_form(output: str | None, output_stride: int) -> tuple[OutputKind | None, int]:
    """``--output`` and ``--output-stride``, which belong together."""
    from edgekit.core.values import Recipe

    if output not in (None, "labels", "logits"):
        raise UsageError(f"--output {output} is not known: choose labels or logits")
    if output_stride not in (1, 2, 4, 8):
        raise UsageError(f"--output-stride {output_stride} must be 1, 2, 4 or 8")
    kind = cast("OutputKind | None", output)
    Recipe("fp32", kind or "labels", output_stride)  # refuses what contradicts itself, before anything is loaded
    return kind, output_stride


def new_progress() -> Any:
    from edgekit.core.progress import Progress

    return Progress()


def percent_text(value: float | None) -> str:
    return "not defined" if value is None else f"{100 * value:6.2f} %"


def command_line() -> str:
    line = shlex.join(["edgekit", *sys.argv[1:]])
    return line.encode(errors="backslashreplace").decode()  # a file's name may be bytes that are no text
