"""edgekit: a trained segmentation network to phones, boards and PCs, with the cost of it measured.

What outsiders import is re-exported here and loaded on first use, so that ``import edgekit`` stays light.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from edgekit.core.telemetry import switch_off

if TYPE_CHECKING:
    from edgekit.conformance import check_target as check_target
    from edgekit.core.errors import ConversionError as ConversionError
    from edgekit.core.errors import EdgekitError as EdgekitError
    from edgekit.core.errors import TargetError as TargetError
    from edgekit.core.seam import Inspectable as Inspectable
    from edgekit.core.seam import Session as Session
    from edgekit.core.seam import Target as Target
    from edgekit.core.values import Artifact as Artifact
    from edgekit.core.values import Batches as Batches
    from edgekit.core.values import Converted as Converted
    from edgekit.core.values import DeployableGraph as DeployableGraph
    from edgekit.core.values import Engine as Engine
    from edgekit.core.values import Normalization as Normalization
    from edgekit.core.values import OutputKind as OutputKind
    from edgekit.core.values import Precision as Precision
    from edgekit.core.values import Quantization as Quantization
    from edgekit.core.values import Recipe as Recipe
    from edgekit.core.values import SessionOptions as SessionOptions
    from edgekit.core.values import Size as Size
    from edgekit.core.values import TensorForm as TensorForm
    from edgekit.decoder import decode as decode
    from edgekit.export.graph import FrameToLabels as FrameToLabels
    from edgekit.export.graph import deployable as deployable
    from edgekit.export.graph import reference_labels as reference_labels
    from edgekit.networks.checkpoint import Checkpoint as Checkpoint
    from edgekit.networks.checkpoint import load_checkpoint as load_checkpoint

__version__ = "0.1.0"

switch_off()  # every other module of the package, and so every runtime that one of them imports, comes after this

_HOMES = {
    "edgekit.core.errors": ("ConversionError", "EdgekitError", "TargetError"),
    "edgekit.core.seam": ("Inspectable", "Session", "Target"),
    "edgekit.core.values": (
        "Artifact", "Batches", "Converted", "DeployableGraph", "Engine", "Normalization", "OutputKind", "Precision",
        "Quantization", "Recipe", "SessionOptions", "Size", "TensorForm",
    ),
    "edgekit.conformance": ("check_target",),
    "edgekit.decoder": ("decode",),
    "edgekit.export.graph": ("FrameToLabels", "deployable", "reference_labels"),
    "edgekit.networks.checkpoint": ("Checkpoint", "load_checkpoint"),
}  # fmt: skip
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}
__all__ = sorted([*_HOME_OF, "__version__"])


def __getattr__(name: str) -> Any:
    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'edgekit' has no attribute '{name}'")


def __dir__() -> list[str]:
    return list(__all__)
