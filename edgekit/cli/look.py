"""Commands that make nothing: lint, targets, doctor."""

from __future__ import annotations

import platform
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from edgekit import __version__
from edgekit.cli.options import (
    ClassesOption,
    JsonOption,
    NetworkOption,
    SizeOption,
    listed,
    open_checkpoint,
    parse_size,
)
from edgekit.cli.output import print_json, print_text
from edgekit.core.errors import EdgekitError, UsageError

if TYPE_CHECKING:
    from edgekit.core.values import Size


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

    used_size = parse_size(size) or input_size
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
    found = open_checkpoint(subject or DEFAULT_CHECKPOINT, network, classes)
    module = load_network(found)
    return f"{found.name} ({found.network})", "its own weights", module, len(found.class_names), default_size(found)


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
