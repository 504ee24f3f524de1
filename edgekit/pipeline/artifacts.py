"""Artifacts: made once for the same inputs, checked before they are used."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, get_args

from edgekit import __version__
from edgekit.core.errors import ArtifactError, ConversionError, EdgekitError, first_line
from edgekit.core.files import DISK_ERRORS, new_folder, path_bytes, read_json, sha256_json, sha256_path, write_json
from edgekit.core.progress import Progress, noise_to
from edgekit.core.seam import Target
from edgekit.core.values import (
    IGNORE,
    MANIFEST,
    OUTPUT_STRIDES,
    PRECISIONS,
    Artifact,
    DeployableGraph,
    OutputKind,
    Precision,
    Quantization,
    Recipe,
    Size,
    UInt8,
    is_plain_path,
)
from edgekit.decoder import HEADER
from edgekit.networks.checkpoint import Checkpoint
from edgekit.pipeline.check import WORSE, check_made, frames_to_check
from edgekit.pipeline.mending import Attempt, Mended, mended, simulated_drop
from edgekit.pipeline.plans import Order
from edgekit.pipeline.quantization import Calibration, calibration_record, int8_graph, prepare, quantization_key

MANIFEST_SCHEMA = 3
CONVERSION = 2
"""Raised where the same inputs would give another artifact than before: 2 is since norms go through joins and int8 is held to its simulation."""
FULL = 1 << 20
"""Bytes of free space below which a failed conversion is put down to the disk."""
STRAY = (".DS_Store", "Thumbs.db")
"""Files that a desktop leaves in every folder it shows; together with macOS' ``._`` files they are not looked at."""


def recipe_for(target: Target, precision: Precision, output: OutputKind | None, output_stride: int) -> Recipe:
    """The recipe as asked for; without an output the target's own, or labels where an output stride is asked for.

    Raises:
        UsageError: logits with an output stride.
    """
    return Recipe(precision, output or (target.output if output_stride == 1 else "labels"), output_stride)


def artifact_name(target: Target, recipe: Recipe, size: Size) -> str:
    """Folder name of an artifact; what is not the target's usual form stands in it."""
    suffix = "" if recipe.output == target.output else f"-{recipe.output}"
    suffix += "" if recipe.output_stride == 1 else f"-stride{recipe.output_stride}"
    suffix += "" if not recipe.keep_float else f"-float{len(recipe.keep_float)}"
    return f"{target.name}-{recipe.precision}-{size}{suffix}"


def artifact_key(
    target: Target, checkpoint: Checkpoint, recipe: Recipe, size: Size, calibration: Calibration | None
) -> str:
    """Identity of an artifact before it is made: everything that decides its bytes."""
    return sha256_json(
        [
            MANIFEST_SCHEMA, CONVERSION, __version__, target.name, dict(target.tools()), checkpoint.identity(), asdict(recipe), str(size),
            None if calibration is None else quantization_key(checkpoint, calibration),
        ]
    )  # fmt: skip


def lazy_graph(checkpoint: Checkpoint, size: Size, progress: Progress) -> Callable[[], DeployableGraph]:
    """The deployable graph, made when first asked for and shared by all targets."""

    @cache
    def make() -> DeployableGraph:
        from edgekit.export.graph import deployable

        with progress.stage(f"exporting {checkpoint.name} at {size}"):
            try:
                return deployable(checkpoint, size)
            except (MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and "can't allocate memory" not in str(error):
                    raise
                raise EdgekitError(
                    f"{size} does not fit into this machine's memory: choose a smaller --size"
                ) from error

    return make


def stage_name(target: Target, recipe: Recipe, size: Size) -> str:
    """A conversion, as progress lines name it."""
    return (
        f"{target.title} {recipe.precision}: {'quantizing' if recipe.precision == 'int8' else 'converting'} at {size}"
    )


def stored_artifact(
    target: Target,
    checkpoint: Checkpoint,
    recipe: Recipe,
    size: Size,
    calibration: Calibration | None,
    run_folder: Path,
    progress: Progress,
) -> Artifact | None:
    """The artifact that the same inputs gave before, if it is whole."""
    folder = run_folder / "artifacts" / artifact_name(target, recipe, size)
    if not (folder / MANIFEST).is_file():
        return None
    try:
        artifact = load_artifact(folder)
    except EdgekitError as error:
        progress.say(f"{target.title} {recipe.precision}: made again, because {error}")
        return None
    if artifact.manifest.get("key") != artifact_key(target, checkpoint, recipe, size, calibration):
        progress.say(
            f"{target.title} {recipe.precision}: takes the place of {folder}, made otherwise by: {artifact.manifest['command']}"
        )
        return None
    progress.say(f"{target.title} {recipe.precision}: already converted")
    return artifact


def make_artifact(
    target: Target, order: Order, recipe: Recipe, graph: Callable[[], DeployableGraph], progress: Progress
) -> Artifact:
    """Convert, or return the artifact that the same inputs gave before.

    Args:
        order: its calibration is for int8; any artifact is held to its network on those frames, on drawn ones without.
        graph: makes the deployable graph when it is needed (a cache hit needs none).

    Raises:
        ConversionError: the converter failed; its output is in the folder ``logs`` of the order's.
    """
    checkpoint, size, run_folder = order.checkpoint, order.size, order.folder
    calibration = order.calibration if recipe.precision == "int8" else None
    stored = stored_artifact(target, checkpoint, recipe, size, calibration, run_folder, progress)
    if stored is not None:
        return stored
    name = artifact_name(target, recipe, size)
    folder = run_folder / "artifacts" / name
    key = artifact_key(target, checkpoint, recipe, size, calibration)
    original = graph()
    log = run_folder / "logs" / f"{name}.log"
    with progress.stage(stage_name(target, recipe, size)), new_folder(folder) as temporary:
        try:
            with noise_to(log):
                prepared = prepare(original, checkpoint, calibration, run_folder) if calibration else None
                quantization = None if prepared is None else prepared.quantization
                wanted = frames_to_check(recipe.precision, size)
                images = [] if order.calibration is None else order.calibration.spread(wanted)

                def attempt(recipe: Recipe, folder: Path) -> Attempt:
                    return _attempt(target, original, recipe, quantization, folder, images, log)

                done = attempt(recipe, temporary)
                record = None if prepared is None else calibration_record(prepared, done.converted.scheme)
                simulated = None if record is None else simulated_drop(record)
                if simulated is not None and done.excess(simulated) > WORSE and order.calibration is not None:
                    # A rare class may be lost on few frames: all that were simulated decide.
                    images = order.calibration.spread(int(record["simulated_frames"]) if record is not None else wanted)
                    done = replace(done, seen=check_made(target, done.artifact, original, images))
                found = Mended(done, (), None)
                if simulated is not None:
                    found = mended(done, simulated, target, original, images, attempt)
                converted, seen = found.attempt.converted, found.attempt.seen
        except EdgekitError:
            raise
        except Exception as error:  # converters raise anything; the user needs the cause and the log
            if isinstance(error, OSError) and error.errno in DISK_ERRORS:
                raise
            if shutil.disk_usage(temporary).free < FULL:  # converters word it in many ways
                raise EdgekitError(
                    f"no space left while writing {folder}: free some disk space and run again"
                ) from error
            raise ConversionError(
                f"{target.title} could not convert to {recipe.precision}: {first_line(error)} (its output is in {log})"
            ) from error
        model_bytes = sum(path_bytes(entry) for entry in temporary.iterdir())
        if recipe.output == "logits":
            shutil.copyfile(HEADER, temporary / HEADER.name)  # the app's half: logits to labels, exactly
        manifest: dict[str, Any] = {
            "schema": MANIFEST_SCHEMA,
            "key": key,
            "target": target.name,
            "precision": recipe.precision,
            "size": [size.height, size.width],
            "class_names": list(original.class_names),
            "output": recipe.output,
            "output_stride": recipe.output_stride,
            "model": converted.model,
            "model_bytes": model_bytes,
            "files": file_hashes(temporary),
            "checkpoint": {
                "name": checkpoint.name,
                "sha256": checkpoint.sha256,
                "file_sha256": checkpoint.file_sha256,
            },
            "training": dict(checkpoint.recipe),
            "recipe": asdict(recipe),
            "calibration": record,
            "kept_float": list(converted.kept_float),
            "no_int8": [layer for layer in recipe.keep_float if layer not in converted.kept_float],
            "check": {"why": f"not run here: {seen}"} if isinstance(seen, str) else seen.to_json(),
            "mended": list(found.layers),
            "collapsed": found.collapsed,
            "native_input": converted.native_input,
            "native_output": converted.native_output.to_json(),
            "rewrites": list(found.attempt.rewrites),
            "notes": dict(converted.notes),
            "tools": dict(converted.tools),
            "edgekit": __version__,
            "command": order.command,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        write_json(temporary / MANIFEST, manifest)
    return load_artifact(folder)


def _attempt(
    target: Target,
    graph: DeployableGraph,
    recipe: Recipe,
    quantization: Quantization | None,
    folder: Path,
    images: Sequence[UInt8],
    log: Path,
) -> Attempt:
    """Convert into a folder, and look at what came of it."""
    deployable = graph if quantization is None else int8_graph(graph, quantization, recipe.keep_float)
    converted = target.convert(deployable, recipe, quantization, folder)
    if not (folder / converted.model).exists():
        raise ConversionError(f"{target.title} wrote no {converted.model} (its output is in {log})")
    made = Artifact(
        folder, target.name, recipe.precision, graph.size, graph.class_names, recipe.output, recipe.output_stride,
        converted.model, {"notes": dict(converted.notes)},
    )  # fmt: skip
    return Attempt(recipe, converted, made, check_made(target, made, graph, images), deployable.rewrites)


def file_hashes(folder: Path) -> dict[str, str]:
    """sha256 of every file of an artifact but its manifest, by relative name."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (MANIFEST, *STRAY) and not path.name.startswith("._")
    )
    return {path.relative_to(folder).as_posix(): sha256_path(path) for path in files}


_MANIFEST_PARTS: Mapping[str, Any] = {
    "key": str, "target": str, "precision": str, "size": list, "class_names": list, "output": str, "output_stride": int, "model": str,
    "model_bytes": int, "files": dict, "checkpoint": dict, "calibration": (dict, type(None)), "kept_float": list, "notes": dict,
    "command": str, "recipe": dict, "no_int8": list, "native_input": str, "native_output": (str, dict),  # a sentence in manifests of before fields
}  # fmt: skip


def check_manifest(manifest: Mapping[str, Any]) -> None:
    """What every later stage takes for granted of a manifest.

    Raises:
        KeyError: the manifest lacks a part.
        ValueError: a part is not what it should be; a model outside the files that the manifest has hashes of is none.
    """
    for key, kind in _MANIFEST_PARTS.items():
        if not isinstance(manifest[key], kind):
            raise ValueError(f"its '{key}' is not what edgekit writes")
    for name, digest in manifest["files"].items():
        if not is_plain_path(name) or not isinstance(digest, str):
            raise ValueError(f"its 'files' names {name!r:.80}, which is no file inside an artifact")
    model = manifest["model"]
    if not any(name == model or name.startswith(f"{model}/") for name in manifest["files"]):
        raise ValueError(f"its 'model' is {model!r:.80}, which is none of the files that it has a hash of")
    if manifest["precision"] not in PRECISIONS or manifest["output"] not in get_args(OutputKind):
        raise ValueError("its 'precision' or 'output' is none that edgekit writes")
    size, names = manifest["size"], manifest["class_names"]
    if len(size) != 2 or not all(type(side) is int and 1 <= side < 100_000 for side in size):
        raise ValueError("its 'size' is no height and width")
    if not 1 <= len(names) <= IGNORE or not all(isinstance(name, str) for name in names):
        raise ValueError(f"its 'class_names' are not 1 to {IGNORE} names")
    if manifest["output_stride"] not in OUTPUT_STRIDES or type(manifest["model_bytes"]) is not int:
        raise ValueError("its 'output_stride' or 'model_bytes' is none that edgekit writes")
    if not all(isinstance(manifest["checkpoint"].get(key), str) for key in ("name", "sha256")):
        raise ValueError("its 'checkpoint' has no name and hash")
    if manifest["calibration"] is not None and not isinstance(manifest["calibration"].get("frames"), list):
        raise ValueError("its 'calibration' has no frames")
    if not all(
        isinstance(text, str) for text in [*manifest["kept_float"], *manifest["no_int8"], *manifest["notes"].values()]
    ):
        raise ValueError("its 'kept_float', 'no_int8' or 'notes' are not texts")


def load_artifact(folder: Path) -> Artifact:
    """Read a manifest and check every file against it.

    Raises:
        ArtifactError: no artifact, another schema, or a file that was changed, added or removed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise ArtifactError(f"{folder} is not an artifact (it has no {MANIFEST}): make one with edgekit convert")
    manifest = read_json(path)
    if not isinstance(manifest, dict) or manifest.get("schema") != MANIFEST_SCHEMA:
        raise ArtifactError(f"{path} has a schema this edgekit does not read: convert again")
    try:
        check_manifest(manifest)
        recorded = manifest["files"]
        found = file_hashes(folder)
        for name in sorted(set(recorded) | set(found)):
            if name not in found:
                raise ArtifactError(f"{folder / name} is missing, though {MANIFEST} lists it: convert again")
            if name not in recorded:
                raise ArtifactError(f"{folder / name} is not in {MANIFEST}: remove it, or convert again")
            if found[name] != recorded[name]:
                raise ArtifactError(
                    f"{folder / name} was changed (its hash is not what {MANIFEST} says): convert again"
                )
        return Artifact.from_manifest(folder, manifest)
    except KeyError as error:
        raise ArtifactError(f"{path} lacks {error}: convert again") from error
    except ValueError as error:
        raise ArtifactError(f"{path} is no manifest of edgekit's ({error}): convert again") from error


def open_artifact(reference: str, class_names: tuple[str, ...] | None) -> Artifact:
    """An artifact by its folder, or a Core ML package of anybody's.

    Args:
        class_names: of a package that does not say them.
    """
    path = Path(reference)
    if path.suffix == ".mlpackage":
        from targets.coreml import adopt

        return adopt(path, class_names)
    return load_artifact(path)


def is_artifact(reference: str) -> bool:
    """Whether a command-line argument names an artifact's folder rather than a checkpoint."""
    return os.path.isdir(reference)


def checkpoint_names(artifacts: Sequence[Artifact]) -> dict[str, str]:
    """By their checkpoint's hash, what tells artifacts of several checkpoints apart: nothing, a name, or a name and the hash."""
    checkpoints = [artifact.manifest["checkpoint"] for artifact in artifacts]
    found = {str(one["sha256"]): str(one["name"]) for one in checkpoints}
    if len(found) == 1:
        return dict.fromkeys(found, "")
    names = list(found.values())
    return {
        digest: f" of {name}" if names.count(name) == 1 else f" of {name} ({digest[:8]})"
        for digest, name in found.items()
    }
