"""Frozen values that flow from checkpoint to report. No torch, no runtime."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

import numpy as np
from numpy.typing import NDArray

from edgekit.core.errors import UsageError

if TYPE_CHECKING:
    import torch.fx

Precision = Literal["fp32", "fp16", "int8"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
OutputKind = Literal["labels", "logits"]

UInt8 = NDArray[np.uint8]
Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

IGNORE = 255
"""The label of pixels that no metric counts, in every dataset, after its label map."""

MINIMUM_SIDE = 64
"""The smallest height or width: below it the 1/32 map of the deep branch has no pixels left to pool."""


@dataclass(frozen=True, order=True)
class Size:
    """Height and width in pixels, always in this order and always written ``HxW``."""

    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.height}x{self.width}"

    @classmethod
    def parse(cls, text: str) -> Size:
        """Read ``HxW``.

        Raises:
            UsageError: not two whole numbers, or a side below 64 pixels.
        """
        match = re.fullmatch(r"(\d{1,5})[xX](\d{1,5})", text.strip())
        if match is None:
            raise UsageError(f"'{text}' is not a size: write height x width in pixels, for example 512x1024")
        size = cls(int(match[1]), int(match[2]))
        size.check()
        return size

    def check(self) -> None:
        """Raise UsageError when a side is below 64 pixels."""
        if min(self.height, self.width) < MINIMUM_SIDE:
            raise UsageError(f"size {self} is too small: both sides must be at least {MINIMUM_SIDE} pixels")


@dataclass(frozen=True)
class ClassSet:
    """The classes of a dataset, in the order of its train ids.

    Attributes:
        names: class names; position = train id.
        categories: the category of each class (Cityscapes groups 19 classes in 7), same length.
        colours: RGB of each class for pictures, same length.
        instance_pixels: average instance size in pixels for classes with instances (the iIoU weights).
    """

    names: tuple[str, ...]
    categories: tuple[str, ...]
    colours: tuple[tuple[int, int, int], ...]
    instance_pixels: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def category_names(self) -> tuple[str, ...]:
        """Category names in order of first appearance."""
        return tuple(dict.fromkeys(self.categories))


@dataclass(frozen=True)
class Normalization:
    """``(pixel / 255 - mean) / std`` per RGB channel, as the network was trained with."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        """Raise ValueError unless it is three finite means and three finite, positive deviations."""
        for name, values, least in (("mean", self.mean, -1e6), ("std", self.std, 1e-6)):
            if len(values) != 3 or not all(type(value) in (int, float) and least <= value <= 1e6 for value in values):
                raise ValueError(f"the normalization's {name} is not three numbers that pixels can be normalized by")

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Normalization:
        """The normalization that a file names; raises ValueError where it names none."""
        mean, std = document.get("mean"), document.get("std")
        if not isinstance(mean, list) or not isinstance(std, list):
            raise ValueError("the normalization has no mean and std")
        return cls(tuple(mean), tuple(std))

    def scale(self) -> Float32:
        """Factor per channel on a pixel of 0..255: shape [3]."""
        return np.asarray([1.0 / (255.0 * s) for s in self.std], np.float32)

    def offset(self) -> Float32:
        """Offset per channel, added after the factor: shape [3]."""
        return np.asarray([-m / s for m, s in zip(self.mean, self.std)], np.float32)

    def mean_colour(self) -> Float32:
        """The pixel values that become zero: shape [3]."""
        return np.asarray([255.0 * m for m in self.mean], np.float32)


Batches = Callable[[], Iterator[UInt8]]
"""Starts a fresh pass over calibration frames, each uint8 [1, H, W, 3] RGB. A bad frame raises; it never ends a pass."""

Scheme = Literal["symmetric", "asymmetric"]
"""How int8 holds activations: signed with zero point 0, or with a zero point that uses all 256 levels."""

Ranges = Mapping[str, Float32]
"""The values that int8 is to represent, by graph node: float32 [channels, 2], smallest and largest; of maps that are not
[1, C, H, W] one row. A tensor's own range is that of all its channels."""


@dataclass(frozen=True, eq=False)
class Quantization:
    """How int8 represents a graph's values: worked out once, in the graph's own terms, for all targets.

    Attributes:
        ranges: what each scheme is to represent.
        scales: what the channels of int8's graph are multiplied by, float32 [channels] by node; the float one's are not.
        biases: what is added to the biases of int8's convolutions, float32 [channels] by node; the float graph's are not.
        probe: a calibration frame, uint8 [1, H, W, 3], by whose values a target knows its own tensors as the graph's.
        batches: passes over all calibration frames, for tensors that are no node's.
    """

    ranges: Mapping[Scheme, Ranges]
    scales: Mapping[str, Float32]
    probe: UInt8
    batches: Batches
    biases: Mapping[str, Float32] = field(default_factory=dict)


Made = TypeVar("Made")


class Derived:
    """What is made of a value and kept with it: it goes when the value does."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[Hashable, Any]] = {}

    def __reduce__(self) -> tuple[type[Derived], tuple[()]]:
        """A copy of the value, in another process too, makes its own."""
        return Derived, ()

    def once(self, kind: str, key: Hashable, make: Callable[[], Made], *, most: int = 1) -> Made:
        """What ``make`` gave for this key before, or gives now; of each kind the ``most`` that were asked for last are kept."""
        kept = self._kept.setdefault(kind, {})
        made: Made = kept.pop(key) if key in kept else make()
        kept[key] = made
        while len(kept) > most:
            del kept[next(iter(kept))]
        return made


@dataclass(frozen=True)
class DeployableGraph:
    """A network made ready for converters: static size, evaluation mode, exact rewrites applied.

    Attributes:
        module: ATen operations, float32 [1, 3, H, W] normalized -> float32 [1, classes, h, w] logits.
        size: input size.
        logits_size: h, w of the logits.
        class_names: names of the logits' channels.
        normalization: what turns a frame into the module's input.
        checkpoint_sha256: the checkpoint it came from.
        rewrites: the exact rewrites that were applied, in order.
        left_out: what the network gives besides its logits, a sentence each.
        origin: the float graph of the same nodes, of which int8's was made by other weights; None of one that is its own.
        derived: what targets and calibration make of the graph, once for all that share it.
    """

    module: torch.fx.GraphModule
    size: Size
    logits_size: Size
    class_names: tuple[str, ...]
    normalization: Normalization
    checkpoint_sha256: str
    rewrites: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    origin: DeployableGraph | None = field(default=None, repr=False, compare=False)
    derived: Derived = field(default_factory=Derived, init=False, repr=False, compare=False)


@dataclass(frozen=True)
class Recipe:
    """What an artifact is to be; part of its identity.

    Attributes:
        precision: arithmetic of the network's core.
        output: ``labels`` (label map in the graph's output) or ``logits`` (decoded outside, exactly).
        output_stride: of ``labels``, which are decided at this stride and repeated to full size; 1 is exact.
        keep_float: layers that int8 leaves in float, by their names in :mod:`edgekit.export.layers`.

    Raises:
        UsageError: logits with an output stride.
    """

    precision: Precision
    output: OutputKind = "labels"
    output_stride: int = 1
    keep_float: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.output == "logits" and self.output_stride != 1:
            raise UsageError(
                "logits are decoded exactly, whatever the stride: leave out --output-stride, or ask for --output labels"
            )


@dataclass(frozen=True)
class TensorForm:
    """A tensor as a runtime holds it."""

    dtype: str
    """By numpy's name, e.g. ``int8``."""
    shape: tuple[int, ...]
    axes: str
    """A letter for each of the shape's sides: N frames, C classes, H height, W width."""

    def to_json(self) -> dict[str, object]:
        """As a manifest holds it."""
        return {"dtype": self.dtype, "shape": list(self.shape), "axes": self.axes}

    @classmethod
    def from_json(cls, value: object) -> TensorForm:
        """Raises ValueError for what no :meth:`to_json` gives."""
        if not isinstance(value, dict) or value.keys() != {"dtype", "shape", "axes"}:
            raise ValueError("a tensor's form has 'dtype', 'shape' and 'axes'")
        dtype, shape, axes = value["dtype"], value["shape"], value["axes"]
        if dtype not in TENSOR_TYPES:
            raise ValueError(f"a tensor's 'dtype' is one of {', '.join(TENSOR_TYPES)}")
        if not isinstance(shape, list) or not all(type(side) is int and 0 < side < 100_000 for side in shape):
            raise ValueError("a tensor's 'shape' holds whole numbers")
        if not isinstance(axes, str) or len(axes) != len(shape) or not set(axes) <= set("NCHW"):
            raise ValueError("a tensor's 'axes' has a letter of NCHW for each side")
        return cls(dtype, tuple(shape), axes)


TENSOR_TYPES = ("int8", "uint8", "float32", "float16", "int32", "int64")


@dataclass(frozen=True)
class Converted:
    """What a target's converter says of the model it wrote.

    Attributes:
        model: name of the model's file or folder inside the artifact's folder.
        native_input: the runtime's own input form, e.g. ``uint8 [1,512,1024,3] RGB``.
        native_output: what the runtime gives.
        tools: package -> version of everything that had a hand in it.
        kept_float: layers left in higher precision, in the target's terms; of the recipe's those that would have been int8.
        scheme: of int8 activations, where there are any.
        notes: what a user should know (the trtexec command line, for one), key -> text; ``{artifact}`` is its folder.
    """

    model: str
    native_input: str
    native_output: TensorForm
    tools: Mapping[str, str]
    kept_float: tuple[str, ...] = ()
    scheme: Scheme | None = None
    notes: Mapping[str, str] = field(default_factory=dict)


MANIFEST = "manifest.json"
"""The file that describes an artifact, in its folder."""
OUTPUT_STRIDES = (1, 2, 4, 8)


def is_plain_path(name: object) -> bool:
    """Whether a file's text is a relative path that stays below the folder it begins in."""
    return isinstance(name, str) and all(
        part not in ("", ".", "..") and "\\" not in part and "\0" not in part for part in name.split("/")
    )


def is_plain_name(name: object) -> bool:
    """Whether a file's text is the name of one file or folder, and no path."""
    return is_plain_path(name) and "/" not in str(name)


@dataclass(frozen=True)
class Artifact:
    """A converted model in its folder, with what its manifest says."""

    folder: Path
    target: str
    precision: Precision
    size: Size
    class_names: tuple[str, ...]
    output: OutputKind
    output_stride: int
    model: str
    manifest: Mapping[str, Any]

    @classmethod
    def from_manifest(cls, folder: Path, manifest: Mapping[str, Any]) -> Artifact:
        """The artifact that a checked manifest describes."""
        return cls(
            folder=folder,
            target=manifest["target"],
            precision=manifest["precision"],
            size=Size(*manifest["size"]),
            class_names=tuple(manifest["class_names"]),
            output=manifest["output"],
            output_stride=manifest["output_stride"],
            model=manifest["model"],
            manifest=manifest,
        )

    def described(self) -> dict[str, Any]:
        """All but its folder, as another process makes it again by :meth:`from_manifest`."""
        return {
            **self.manifest, "target": self.target, "precision": self.precision, "size": [self.size.height, self.size.width],
            "class_names": list(self.class_names), "output": self.output, "output_stride": self.output_stride, "model": self.model,
        }  # fmt: skip

    @property
    def model_path(self) -> Path:
        """Path of the model's file or folder."""
        return self.folder / self.model

    @property
    def title(self) -> str:
        """Target and precision, as tables name it."""
        return f"{self.target} {self.precision}"


def filled_note(text: object, artifact: str) -> str:
    """A target's note, with the artifact's folder where it says ``{artifact}``, quoted for a shell."""
    return str(text).replace("{artifact}", shlex.quote(artifact))


@dataclass(frozen=True)
class SessionOptions:
    """How a session may use the machine.

    Attributes:
        threads: None means all cores that this process may use.
        compute_units: of Core ML: ALL, CPU_ONLY, CPU_AND_GPU or CPU_AND_NE.
        look: is shown the logits of every frame, [1, C, h, w] of any type, before they become labels; it takes time, so there is
            none where that is measured.
    """

    threads: int | None = None
    compute_units: str = "ALL"
    look: Callable[[NDArray[Any]], None] | None = None


ProvenanceKind = Literal["measured", "reference", "not measured"]


@dataclass(frozen=True)
class Provenance:
    """How a number was obtained: ``measured``, ``reference`` or ``not measured``, by what, and why."""

    kind: ProvenanceKind
    by: str = ""
    why: str = ""

    def to_json(self) -> dict[str, str]:
        """The report's form."""
        return asdict(self)


@dataclass(frozen=True)
class Engine:
    """What runs a target's artifacts on this machine.

    Attributes:
        kind: ``measured`` when it is the runtime that ships, ``reference`` when another engine stands in.
        by: engine and version.
        why: for ``reference``, what it stands in for.
        no_latency: None when its times count; else why they do not, and how to get real ones.
    """

    kind: Literal["measured", "reference"]
    by: str
    why: str = ""
    no_latency: str | None = None
