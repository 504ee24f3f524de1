"""Checkpoints: safetensors that describe themselves, and plain state dicts that never run code."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import json
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from edgekit.core.errors import CheckpointError, UsageError
from edgekit.core.files import sha256_bytes, sha256_json, sha256_stream, write_bytes
from edgekit.core.text import parse_json
from edgekit.core.values import MANIFEST, Normalization
from edgekit.networks.source import code_of, files_read_by

if TYPE_CHECKING:
    import torch
    from torch import nn

METADATA_KEY = "edgekit"
SCHEMA = 1
SHIPPED_FOLDER = Path(__file__).parent.parent / "checkpoints"
DEFAULT_CHECKPOINT = "spssn-streets"
NETWORKS = ("spssn", "spssn-stream", "fast-scnn")
MOST_CLASSES = 255
"""A label is one byte, and 255 is what no metric counts."""
FOREIGN: Mapping[str, str] = {
    ".pt2": "an exported program of PyTorch's", ".onnx": "an ONNX model", ".tflite": "a TFLite model", ".pb": "a TensorFlow graph",
    ".h5": "a Keras model", ".keras": "a Keras model", ".engine": "a TensorRT engine", ".mlmodel": "a Core ML model",
    ".xml": "an OpenVINO model",
}  # fmt: skip
"""What people have in a checkpoint's place, by suffix."""


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they are, without the weights being loaded.

    Attributes:
        name: file name without suffix, or the shipped name.
        path: the file.
        sha256: of the file, and of what makes the network where it is the user's own.
        network: a name of edgekit's, or the ``package.module:factory`` that the user typed. No file's text ends here.
        arguments: keyword arguments of the network's constructor.
        class_names: the logits' channels that are classes, in order.
        normalization: of the input.
        dataset: what it was trained on ("" when unknown).
        recipe, metrics: as recorded by ``edgekit train``; empty for a plain state dict.
        file_sha256: of the file alone; weights are only read from a file that still has it.
    """

    name: str
    path: Path
    sha256: str
    network: str
    arguments: Mapping[str, Any]
    class_names: tuple[str, ...]
    normalization: Normalization
    dataset: str
    recipe: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    file_sha256: str = ""

    def identity(self) -> str:
        """Hash of everything that decides the network's output: weights, network, classes and normalization."""
        return sha256_json(
            [self.sha256, self.network, dict(self.arguments), list(self.class_names), asdict(self.normalization)]
        )

    def describe(self) -> dict[str, Any]:
        """The ``checkpoint`` object of report.json."""
        return {
            "name": self.name, "sha256": self.sha256, "file_sha256": self.file_sha256, "network": self.network, "arguments": dict(self.arguments),
            "classes": list(self.class_names), "dataset": self.dataset, "recipe": dict(self.recipe),
            "metrics": dict(self.metrics),
        }  # fmt: skip


def shipped_names() -> tuple[str, ...]:
    """Names of the checkpoints inside the package."""
    return tuple(sorted(path.stem for path in SHIPPED_FOLDER.glob("*.safetensors")))


def locate(reference: str) -> Path:
    """Path of a checkpoint given as a path or a shipped name.

    Raises:
        CheckpointError: neither exists.
    """
    shipped = SHIPPED_FOLDER / f"{reference}.safetensors"
    if reference in shipped_names():
        return shipped
    path = Path(reference)
    if not path.is_file():
        raise CheckpointError(
            f"there is no checkpoint '{reference}': give a file, or a shipped name ({', '.join(shipped_names())})"
        )
    return path


def build_network(network: str, classes: int, arguments: Mapping[str, Any]) -> nn.Module:
    """A freshly initialized network.

    Raises:
        UsageError: unknown name, or a factory that cannot be imported.
        CheckpointError: the constructor refuses the arguments.
    """
    factory: Callable[..., Any]
    takes_classes = True
    if network in ("spssn", "spssn-stream"):
        from edgekit.networks.spssn import SPSSN

        factory = cast("Callable[..., Any]", SPSSN)
        arguments = {**arguments, "stream": network == "spssn-stream"}
    elif network == "fast-scnn":
        from edgekit.networks.fast_scnn import FastSCNN

        factory = FastSCNN
    elif ":" in network:
        factory = _import_factory(network)
        try:  # a user's factory may fix its own number of classes
            takes_classes = "classes" in inspect.signature(factory).parameters
        except (TypeError, ValueError):
            takes_classes = False
    else:
        raise UsageError(
            f"there is no network '{network}': choose from {', '.join(NETWORKS)}, or name your own as package.module:factory"
        )
    keywords: dict[str, Any] = {**arguments, "classes": classes} if takes_classes else dict(arguments)
    try:
        module = factory(**keywords)
    except TypeError as error:
        raise CheckpointError(f"network '{network}' does not take these arguments ({_one_line(error)})") from error
    except Exception as error:
        if ":" not in network:
            raise
        raise CheckpointError(
            f"network '{network}' cannot be made ({type(error).__name__}: {_one_line(error)})"
        ) from error
    if not callable(getattr(module, "state_dict", None)):
        raise CheckpointError(
            f"network '{network}' makes a {type(module).__name__}, not a torch.nn.Module: return the network"
        )
    return cast("nn.Module", module)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _import_factory(reference: str) -> Callable[..., Any]:
    module_name, _, attribute = reference.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.append(
            str(Path.cwd())
        )  # the user's module often lies in the working folder; last, so that it hides nothing
    try:
        factory = getattr(importlib.import_module(module_name), attribute)
    except Exception as error:  # the user's module may fail in any way while it is imported
        raise UsageError(
            f"--network {reference} cannot be imported ({type(error).__name__}: {_one_line(error)}): "
            "give package.module:factory, importable from here"
        ) from error
    if not callable(factory):
        raise UsageError(f"--network {reference} is not callable: give a class or a function that makes the network")
    return cast(Callable[..., Any], factory)


@dataclass(frozen=True)
class Description:
    """What a safetensors file of edgekit's says of itself, checked; nothing of it is followed."""

    network: str
    arguments: Mapping[str, Any]
    class_names: tuple[str, ...]
    normalization: Normalization
    dataset: str
    recipe: Mapping[str, Any]
    metrics: Mapping[str, Any]

    @classmethod
    def from_json(cls, document: Any) -> Description:
        """The description in a file's metadata.

        Raises:
            ValueError: a part is missing, or is not what it should be.
        """
        if not isinstance(document, dict):
            raise ValueError("its description is not a JSON object")
        if document.get("schema") != SCHEMA:
            raise ValueError(
                f"its description has schema {str(document.get('schema'))[:20]}, this edgekit reads {SCHEMA}; a matching version reads it"
            )
        for key, kind in _PARTS.items():
            if not isinstance(document.get(key), kind):
                raise ValueError(f"its description has no '{key}' that is {_PART_NAMES[kind]}")
        normalization = document["normalization"]
        return cls(
            network=document["network"],
            arguments=document["arguments"],
            class_names=_checked_classes(document["classes"]),
            normalization=Normalization.from_json(normalization),
            dataset=document["dataset"],
            recipe=document["recipe"],
            metrics=document["metrics"],
        )

    def to_json(self) -> dict[str, Any]:
        """What the file's metadata holds."""
        return {
            "schema": SCHEMA, "network": self.network, "arguments": dict(self.arguments), "classes": list(self.class_names),
            "normalization": asdict(self.normalization), "dataset": self.dataset, "recipe": dict(self.recipe),
            "metrics": dict(self.metrics),
        }  # fmt: skip


_PARTS: Mapping[str, type] = {
    "network": str, "arguments": dict, "classes": list, "normalization": dict, "dataset": str, "recipe": dict, "metrics": dict,
}  # fmt: skip
_PART_NAMES: Mapping[type, str] = {str: "a text", dict: "an object", list: "a list"}


def _checked_classes(names: list[Any]) -> tuple[str, ...]:
    if not all(isinstance(name, str) and name for name in names):
        raise ValueError("its classes are not all names")
    if not 1 <= len(names) <= MOST_CLASSES:
        raise ValueError(f"it has {len(names)} classes, and a label is one byte: 1 to {MOST_CLASSES}")
    if len(set(names)) < len(names):
        raise ValueError("two of its classes have one name")
    return tuple(names)


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(f"{path} is not a readable safetensors file ({error}): copy or train it again")


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The description inside a safetensors file, without loading weights; None when there is none.

    Raises:
        CheckpointError: the file is not safetensors, or is cut short.
    """
    try:
        with path.open("rb") as file:
            return _read_metadata(file)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def _read_metadata(file: BinaryIO) -> dict[str, Any] | None:
    """As :func:`read_metadata`; raises ValueError."""
    whole = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(8)
    if len(start) < 8:
        raise ValueError("it is shorter than a header")
    (length,) = struct.unpack("<Q", start)
    if length > min(100 << 20, whole):
        raise ValueError("header longer than the file")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("its header is not a JSON object")
    end = 0
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None
        if not (isinstance(offsets, list) and len(offsets) == 2 and all(type(offset) is int for offset in offsets)):
            raise ValueError(f"its header does not say where {name[:80]} lies")
        end = max(end, offsets[1])
    if 8 + length + end != whole:
        raise ValueError("its length is not what its header says")
    metadata = header.get("__metadata__", {})
    text = metadata.get(METADATA_KEY) if isinstance(metadata, dict) else None
    if text is None:
        return None
    if not isinstance(text, str):
        raise ValueError("its description is not a text")
    description = parse_json(text)
    if not isinstance(description, dict):
        raise ValueError("its description is not a JSON object")
    return description


def _read(reference: str) -> tuple[Path, str, Description | None]:
    """A checkpoint's file, its hash, and what it says of itself, both of one opened file.

    Raises:
        CheckpointError: not there, not readable, or described in a way that edgekit does not write.
    """
    path = locate(reference)
    if (path.parent / MANIFEST).is_file() and path.suffix in (".xml", ".bin", ".tflite", ".onnx"):
        raise CheckpointError(f"{path} is the model of an artifact, no checkpoint: name its folder, {path.parent}")
    try:
        with path.open("rb") as file:
            metadata = _read_metadata(file) if path.suffix == ".safetensors" else None
            file.seek(0)
            return path, sha256_stream(file), None if metadata is None else Description.from_json(metadata)
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the file and its permissions"
        ) from error
    except ValueError as error:
        raise _unreadable(path, error) from error


def load_start(reference: str, network: str, class_names: tuple[str, ...]) -> Checkpoint:
    """A checkpoint whose weights a training of ``network`` begins with. Its own network is not made, whatever it says.

    Raises:
        CheckpointError: unreadable.
    """
    path, digest, description = _read(reference)
    if description is None:
        return Checkpoint(path.stem, path, digest, network, {}, class_names, Normalization(), "", file_sha256=digest)
    return Checkpoint(
        path.stem, path, digest, network, {}, description.class_names, description.normalization, description.dataset,
        description.recipe, description.metrics, digest,
    )  # fmt: skip


def load_checkpoint(
    reference: str = DEFAULT_CHECKPOINT,
    network: str | None = None,
    class_names: tuple[str, ...] | None = None,
    dataset: str = "",
    normalization: Normalization | None = None,
    network_option: str = "--network",
) -> Checkpoint:
    """Describe a checkpoint; weights stay on disk.

    Args:
        reference: path or shipped name.
        network: required for a file without edgekit's metadata, or whose metadata names code of the user's own, which is never
            followed; overrides a recorded one otherwise.
        class_names: required for a file without metadata.
        dataset: the dataset whose classes those are.
        normalization: for a file without metadata; ImageNet's by default.
        network_option: how the command at hand is told ``network``.

    Raises:
        CheckpointError: unreadable, or ``network``/``class_names`` are needed and not given.
    """
    path, digest, description = _read(reference)
    if network is None:
        network = _recorded_network(path, description, network_option)
    arguments: Mapping[str, Any] = {}
    recipe, metrics = {}, {}
    if description is not None:
        class_names, normalization, dataset = description.class_names, description.normalization, description.dataset
        arguments = description.arguments if network == description.network else {}
        recipe, metrics = dict(description.recipe), dict(description.metrics)
    elif class_names is None:
        raise CheckpointError(
            f"{path} does not say which classes it has: name the dataset that has them with --classes (--data for run and evaluate)"
        )
    identity = digest
    if ":" in network:
        with files_read_by(network) as read, contextlib.suppress(CheckpointError):  # which whoever makes it is told
            build_network(network, len(class_names), arguments)
        identity = sha256_json([digest, network, code_of(network), read])
    return Checkpoint(
        path.stem,
        path,
        identity,
        network,
        arguments,
        class_names,
        normalization or Normalization(),
        dataset,
        recipe,
        metrics,
        digest,
    )


def _recorded_network(path: Path, description: Description | None, network_option: str) -> str:
    """The built-in network that a file says it belongs to.

    Raises:
        CheckpointError: it says none, or names code, which only the user may do.
    """
    if description is None:
        raise CheckpointError(
            f"{path} does not say which network it belongs to: add {network_option} NAME or {network_option} package.module:factory"
        )
    if description.network in NETWORKS:
        return description.network
    if ":" in description.network:
        raise CheckpointError(
            f"{path} says that '{description.network}' makes its network, which is code, and no file decides what code runs: "
            f"where you know it and trust it, add {network_option} {description.network}"
        )
    raise CheckpointError(
        f"{path} is of network '{description.network}', which this edgekit does not have ({', '.join(NETWORKS)}): "
        f"add {network_option} package.module:factory"
    )


def trained_on(recipe: Mapping[str, Any], dataset: str, split: str) -> bool | None:
    """Whether a recorded training, or one of a checkpoint that it began with or learned from, saw a split.

    None where one of them does not say, and none of the others saw it.
    """
    if not isinstance(recipe, Mapping) or not {"dataset", "split"} <= recipe.keys():
        return None
    if recipe["dataset"] == dataset and split in str(recipe["split"]).split("+"):
        return True
    others = [recipe.get(f"{role}_checkpoint") for role in ("initial", "teacher")]
    answers = [
        trained_on(other.get("recipe", {}), dataset, split) if isinstance(other, Mapping) else None
        for other in others
        if other
    ]
    return True if True in answers else None if None in answers else False


def load_state(path: Path, file_sha256: str = "") -> dict[str, torch.Tensor]:
    """Tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file; pickles are read with ``weights_only=True``.

    Args:
        file_sha256: of the file that was described, where one was.

    Raises:
        CheckpointError: damaged, a pickle that holds more than tensors (it is not run), of another kind, or another file by now
            than the one that was described.
    """
    import torch

    try:
        data = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be read ({error.strerror}): check the file and its permissions"
        ) from error
    if file_sha256 and sha256_bytes(data) != file_sha256:
        raise CheckpointError(f"{path} was replaced by another file while this command ran: run it again")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(data)
        except SafetensorError as error:
            raise CheckpointError(f"{path} is damaged ({error}): copy or train it again") from error
    _refuse_foreign(path, data)
    try:
        state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and was not opened, since loading it could run code: save model.state_dict() instead"
        ) from error
    except (
        OSError,
        EOFError,
        RuntimeError,
        ValueError,
        KeyError,
        IndexError,
        AttributeError,
        TypeError,
        RecursionError,
    ) as error:
        raise CheckpointError(
            f"{path} is damaged or not a PyTorch file ({type(error).__name__}): copy it again"
        ) from error
    for key in ("state_dict", "model_state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
            break
    if (
        not isinstance(state, Mapping)
        or not state
        or not all(isinstance(key, str) and isinstance(value, torch.Tensor) for key, value in state.items())
    ):
        raise CheckpointError(f"{path} is not a state dict: save model.state_dict() with torch.save")
    # DataParallel and DistributedDataParallel prefix every key with "module."
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key[len(prefix) :]: value for key, value in state.items()}
    return dict(state)


def _refuse_foreign(path: Path, data: bytes) -> None:
    """Raise CheckpointError for files that people have and that are no weights, whatever their suffix."""
    what = FOREIGN.get(path.suffix.lower())
    if what is None and data.startswith(b"PK\x03\x04"):
        try:
            names = zipfile.ZipFile(io.BytesIO(data)).namelist()
        except (zipfile.BadZipFile, ValueError, EOFError):
            return  # torch tells what is wrong with it
        inside = {name.partition("/")[2] for name in names}
        if "constants.pkl" in inside:
            what = "a TorchScript archive"
        elif "archive_format" in inside or "archive_format" in names:
            what = FOREIGN[".pt2"]
    elif what is None and data.startswith(b"\x08") and b"pytorch" in data[:64]:
        what = FOREIGN[".onnx"]
    if what is not None:
        raise CheckpointError(
            f"{path} is {what}, which edgekit does not read: give the network's weights, as torch.save(model.state_dict(), ...) "
            "or edgekit train write them"
        )


def load_network(checkpoint: Checkpoint, network_option: str = "--network") -> nn.Module:
    """The checkpoint's network with its weights, in evaluation mode, float32 on CPU.

    Args:
        network_option: how the command at hand is told ``checkpoint.network``.

    Raises:
        CheckpointError: the state dict belongs to another network, or is saved in another form; the message says how its keys
            differ.
    """
    module = build_network(checkpoint.network, len(checkpoint.class_names), checkpoint.arguments)
    state = load_state(checkpoint.path, checkpoint.file_sha256)
    expected = {key: tuple(value.shape) for key, value in module.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if difference := key_difference(expected, found, network_option):
        raise CheckpointError(
            f"{checkpoint.path} does not fit network '{checkpoint.network}' with {len(checkpoint.class_names)} classes: {difference}"
        )
    check_finite(checkpoint, state)
    module.load_state_dict(state, strict=False)
    return module.float().eval()


Shapes = Mapping[str, tuple[int, ...]]


def key_difference(expected: Shapes, found: Shapes, network_option: str = "--network") -> str | None:
    """How a file's keys and shapes differ from a network's, and what mends it; None where they do not.

    Batch norm's counters may be missing: nothing is computed with them.
    """
    missing = [key for key in expected if key not in found and not key.endswith("num_batches_tracked")]
    more = [key for key in found if key not in expected]
    shapes = [
        f"{key} is {found[key]} instead of {shape}" for key, shape in expected.items() if found.get(key, shape) != shape
    ]
    if not missing and not more and not shapes:
        return None
    needed = [key for key in expected if not key.endswith("num_batches_tracked")]
    prefix = _prefix(needed, found)
    if prefix:
        others = [key for key in found if not key.startswith(prefix) or key[len(prefix) :] not in expected]
        beside = f", and beside them {_some(others)}" if others else ""
        wrong = [key for key in needed if found[prefix + key] != expected[key]]
        if not wrong:
            return (
                f"it holds all of the network's weights under '{prefix}'{beside}. Save them under their own names, for one by "
                f"torch.save({{key.removeprefix({prefix!r}): value for key, value in state.items() if key.startswith({prefix!r})}}, ...)"
            )
    if not missing and not shapes:
        return (
            f"it holds all of the network's weights, and {_some(more)}, which the network has not: save its own alone, or name the "
            f"network that has these with {network_option}"
        )
    as_well = (
        f", as {'is' if len(missing) == 2 else 'are'} {len(missing) - 1} more of {len(needed)}"
        if len(missing) > 1
        else ""
    )
    parts = [f"'{missing[0]}' is missing{as_well}"] if missing else []
    parts += [f"the file has {_some(more)}, which the network has not"] if more else []
    parts += (
        ["; ".join(shapes[:3]) + (f", and {len(shapes) - 3} more of other shapes" if len(shapes) > 3 else "")]
        if shapes
        else []
    )
    shared = (
        ""
        if more or shapes
        else " (safetensors leaves out all but one of tensors that are shared: save them as copies)"
    )
    return f"{'; '.join(parts)}{shared}: name the right network with {network_option}, or save its weights under its own names"


def _prefix(needed: list[str], found: Shapes) -> str:
    """What stands before every key that a network needs; nothing where there is no such word."""
    if not needed:
        return ""
    ends = sorted(key[: -len(needed[0])] for key in found if key.endswith("." + needed[0]))
    return next((prefix for prefix in ends if all(prefix + key in found for key in needed)), "")


def _some(keys: list[str]) -> str:
    """Two of them by name, and how many there are."""
    named = ", ".join(f"'{key}'" for key in keys[:2])
    return named if len(keys) <= 2 else f"{named} and {len(keys) - 2} more"


def check_finite(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError where a weight of a checkpoint is no number, or none that float32 can hold."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.float().isfinite().all()]
    if bad:
        raise CheckpointError(
            f"{checkpoint.path} holds NaN or infinity in {bad[0]}, or what float32 cannot hold: train it again"
        )


def save_checkpoint(path: Path, module: nn.Module, description: Description) -> None:
    """Write weights and their description as one safetensors file, atomically; subnormal weights, as a GPU leaves them, as zeros."""
    from safetensors.torch import save

    from edgekit.networks.subnormals import without_subnormals

    # Copies: safetensors refuses tensors that share memory, as those of a module that stands in a network twice do.
    state = {key: without_subnormals(value.detach().cpu().contiguous()) for key, value in module.state_dict().items()}
    write_bytes(path, save(state, metadata={METADATA_KEY: json.dumps(description.to_json())}))
