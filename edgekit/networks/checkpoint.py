"""Checkpoints: safetensors that describe themselves, and plain state dicts that never run code."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import pickle
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgekit.core.errors import CheckpointError, UsageError
from edgekit.core.files import sha256_json, sha256_path, write_bytes
from edgekit.core.text import parse_json
from edgekit.core.values import MANIFEST, Normalization

if TYPE_CHECKING:
    import torch
    from torch import nn

METADATA_KEY = "edgekit"
SCHEMA = 1
SHIPPED_FOLDER = Path(__file__).parent.parent / "checkpoints"
DEFAULT_CHECKPOINT = "spssn-streets"
NETWORKS = ("spssn", "spssn-stream", "fast-scnn")
OWN_PACKAGES = ("edgekit", "targets", "calibration", "reports")


@dataclass(frozen=True)
class Checkpoint:
    """Weights and what they are, without the weights being loaded.

    Attributes:
        name: file name without suffix, or the shipped name.
        path: the file.
        sha256: of the file, and of the network's source where it is the user's own.
        network: a name of edgekit's or ``package.module:factory``.
        arguments: keyword arguments of the network's constructor.
        class_names: the logits' channels that are classes, in order.
        normalization: of the input.
        dataset: what it was trained on ("" when unknown).
        recipe, metrics: as recorded by ``edgekit train``; empty for a plain state dict.
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

    def identity(self) -> str:
        """Hash of everything that decides the network's output: weights, network, classes and normalization."""
        return sha256_json(
            [self.sha256, self.network, dict(self.arguments), list(self.class_names), asdict(self.normalization)]
        )

    def describe(self) -> dict[str, Any]:
        """The ``checkpoint`` object of report.json."""
        return {
            "name": self.name, "sha256": self.sha256, "network": self.network, "arguments": dict(self.arguments),
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


def code_of(reference: str) -> str:
    """Hash of the source that makes a user's network: its module's, and that of all that one imports, anywhere in a file and in
    turn, from the same package or from beside it. Files are read and nothing is imported: the hash is the same whatever a command
    has imported so far. An installed package counts where the network is from it, edgekit's own never: its version is in every key.
    """
    module = reference.partition(":")[0]
    place = getattr(sys.modules[module], "__file__", None)
    if place is None:
        return sha256_json([])
    first = Path(os.path.abspath(place))  # a link keeps its own name, by which it is imported
    root = first.parents[module.count(".") + (first.stem == "__init__")]
    installed = not {"site-packages", "dist-packages"}.isdisjoint(root.parts)
    found: dict[str, str] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        top = name.partition(".")[0]
        if top != module.partition(".")[0] and (installed or top in OWN_PACKAGES):
            continue
        for file in _sources_of(root, name):
            where = file.relative_to(root)
            if where.as_posix() not in found:
                found[where.as_posix()] = sha256_path(file)
                pending += _imports_of(file, where.parts[:-1])
    return sha256_json(sorted(found.items()))


def _sources_of(root: Path, module: str) -> list[Path]:
    """Files below a folder that a module of this name, and the packages it is in, are read from; none where it lies elsewhere."""
    files: list[Path] = []
    folder = root
    for part in module.split("."):
        files += [folder / f"{part}.py", folder / part / "__init__.py", folder / f"{part}.so"]
        files += sorted(folder.glob(f"{part}.*.so"))
        folder /= part
    return [file for file in files if file.is_file()]


def _imports_of(file: Path, package: tuple[str, ...]) -> list[str]:
    """Names that the source of a module in a package may import; of ``from a import b``, ``a.b`` too, which may be a module.

    Where it imports by names that only running it would tell, every module of its package.
    """
    if file.suffix != ".py":
        return []
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # which nothing that runs has imported
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*above, *([node.module] if node.module else [])])
            names += [f"{base}.{alias.name}".strip(".") for alias in node.names if alias.name != "*"] + [base]
        elif isinstance(node, ast.Name | ast.Attribute) and package:
            called = node.id if isinstance(node, ast.Name) else node.attr
            if called in ("import_module", "__import__", "iter_modules", "walk_packages"):
                inside = (path.relative_to(file.parent).with_suffix("").parts for path in file.parent.rglob("*.py"))
                names += [".".join([*package, *parts]) for parts in inside]
    return [name for name in names if name]


def read_metadata(path: Path) -> dict[str, Any] | None:
    """The description inside a safetensors file, without loading weights; None when there is none.

    Raises:
        CheckpointError: the file is not safetensors, or is cut short.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(100 << 20, path.stat().st_size):
                raise ValueError("header longer than the file")
            header = parse_json(file.read(length))
        end = max((entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"), default=0)
        if 8 + length + end != path.stat().st_size:
            raise ValueError("its length is not what its header says")
        text = header.get("__metadata__", {}).get(METADATA_KEY)
        description = None if text is None else parse_json(text)
        if description is not None and not isinstance(description, dict):
            raise ValueError("its description is not a JSON object")
        return description
    except (OSError, struct.error, ValueError, LookupError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}): copy or train it again") from error


def _description(path: Path) -> dict[str, Any] | None:
    return read_metadata(path) if path.suffix == ".safetensors" else None


def load_start(reference: str, network: str, class_names: tuple[str, ...]) -> Checkpoint:
    """A checkpoint whose weights a training of ``network`` begins with: of the same kind where it does not say its own.

    Raises:
        CheckpointError: unreadable.
    """
    described = _description(locate(reference)) is not None
    return load_checkpoint(reference) if described else load_checkpoint(reference, network, class_names)


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
        network: required for a file without edgekit's metadata; overrides the recorded one otherwise.
        class_names: required for a file without metadata.
        dataset: the dataset whose classes those are.
        normalization: for a file without metadata; ImageNet's by default.
        network_option: how the command at hand is told ``network``.

    Raises:
        CheckpointError: unreadable, or not described and ``network``/``class_names`` not given.
    """
    path = locate(reference)
    if (path.parent / MANIFEST).is_file() and path.suffix in (".xml", ".bin", ".tflite", ".onnx"):
        raise CheckpointError(f"{path} is the model of an artifact, no checkpoint: name its folder, {path.parent}")
    metadata = _description(path)
    digest = sha256_path(path)
    if metadata is not None:
        if metadata.get("schema") != SCHEMA:
            raise CheckpointError(
                f"{path} has metadata of schema {metadata.get('schema')}, this edgekit reads {SCHEMA}: install a matching version"
            )
        try:
            checkpoint = Checkpoint(
                name=path.stem, path=path, sha256=digest,
                network=network or metadata["network"],
                arguments={} if network and network != metadata["network"] else metadata["arguments"],
                class_names=tuple(metadata["classes"]),
                normalization=Normalization(tuple(metadata["normalization"]["mean"]), tuple(metadata["normalization"]["std"])),
                dataset=metadata["dataset"], recipe=metadata["recipe"], metrics=metadata["metrics"],
            )  # fmt: skip
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(
                f"{path} has an incomplete description ({type(error).__name__}: {error}): copy or train it again"
            ) from error
    else:
        if network is None:
            raise CheckpointError(
                f"{path} does not say which network it belongs to: add {network_option} NAME or {network_option} package.module:factory"
            )
        if class_names is None:
            raise CheckpointError(
                f"{path} does not say which classes it has: name the dataset that has them with --classes (--data for run and evaluate)"
            )
        checkpoint = Checkpoint(
            path.stem, path, digest, network, {}, class_names, normalization or Normalization(), dataset
        )
    if ":" in checkpoint.network:
        _import_factory(checkpoint.network)
        return replace(checkpoint, sha256=sha256_json([digest, checkpoint.network, code_of(checkpoint.network)]))
    return checkpoint


def trained_on(recipe: Mapping[str, Any], dataset: str, split: str) -> bool | None:
    """Whether a recorded training, or one of a checkpoint that it began with or learned from, saw a split.

    None where one of them does not say, and none of the others saw it.
    """
    if not {"dataset", "split"} <= recipe.keys():
        return None
    if recipe["dataset"] == dataset and split in str(recipe["split"]).split("+"):
        return True
    others = [recipe.get(f"{role}_checkpoint") for role in ("initial", "teacher")]
    answers = [trained_on(other["recipe"], dataset, split) for other in others if other]
    return True if True in answers else None if None in answers else False


def load_state(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a ``.safetensors``, ``.pt`` or ``.pth`` file; pickles are read with ``weights_only=True``.

    Raises:
        CheckpointError: damaged, or a pickle that holds more than tensors (it is not run).
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path} is damaged ({error}): copy or train it again") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} holds more than tensors and was not opened, since loading it could run code: save model.state_dict() instead"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError) as error:
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
        or not all(isinstance(value, torch.Tensor) for value in state.values())
    ):
        raise CheckpointError(f"{path} is not a state dict: save model.state_dict() with torch.save")
    # DataParallel and DistributedDataParallel prefix every key with "module."
    prefix = "module."
    if all(key.startswith(prefix) for key in state):
        return {key[len(prefix) :]: value for key, value in state.items()}
    return dict(state)


def load_network(checkpoint: Checkpoint, network_option: str = "--network") -> nn.Module:
    """The checkpoint's network with its weights, in evaluation mode, float32 on CPU.

    Args:
        network_option: how the command at hand is told ``checkpoint.network``.

    Raises:
        CheckpointError: the state dict belongs to another network; the message names the first differences.
    """
    module = build_network(checkpoint.network, len(checkpoint.class_names), checkpoint.arguments)
    state = load_state(checkpoint.path)
    expected = {key: value.shape for key, value in module.state_dict().items()}
    problems = [f"{key} is missing" for key in expected if key not in state and not key.endswith("num_batches_tracked")]
    problems += [f"{key} is not in the network" for key in state if key not in expected]
    problems += [
        f"{key} is {tuple(state[key].shape)} instead of {tuple(shape)}"
        for key, shape in expected.items()
        if key in state and state[key].shape != shape
    ]
    if problems:
        more = f", and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{checkpoint.path} does not fit network '{checkpoint.network}' with {len(checkpoint.class_names)} classes "
            f"({'; '.join(problems[:3])}{more}): name the right one with {network_option}"
        )
    check_finite(checkpoint, state)
    module.load_state_dict(state, strict=False)
    return module.float().eval()


def check_finite(checkpoint: Checkpoint, state: Mapping[str, torch.Tensor]) -> None:
    """Raise CheckpointError where a weight of a checkpoint is no number."""
    bad = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if bad:
        raise CheckpointError(f"{checkpoint.path} holds NaN or infinity in {bad[0]}: train it again")


def save_checkpoint(
    path: Path,
    module: nn.Module,
    *,
    network: str,
    arguments: Mapping[str, Any],
    class_names: tuple[str, ...],
    normalization: Normalization,
    dataset: str,
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
) -> None:
    """Write weights and their description as one safetensors file, atomically; subnormal weights, as a GPU leaves them, as zeros."""
    from safetensors.torch import save

    from edgekit.networks.subnormals import without_subnormals

    description = {
        "schema": SCHEMA, "network": network, "arguments": dict(arguments), "classes": list(class_names),
        "normalization": asdict(normalization), "dataset": dataset, "recipe": dict(recipe), "metrics": dict(metrics),
    }  # fmt: skip
    # Copies: safetensors refuses tensors that share memory, as those of a module that stands in a network twice do.
    state = {key: without_subnormals(value.detach().cpu().contiguous()) for key, value in module.state_dict().items()}
    write_bytes(path, save(state, metadata={METADATA_KEY: json.dumps(description)}))
