"""The page of ``edgekit sensitivity``: which layers cost int8 its accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edgekit.core.text import printable
from reports.figures import layer_drops
from reports.text import escape, table

SHOWN = 24
"""Layers in the figure; the table has all."""

TITLES = ("Expected, points", "Labels, points", "Error, %")

HOW = (
    "Each layer was quantized alone, its weights and what it reads, in simulation; the "
    "rest stayed in float. That is what keeping it in float saves; a map that several layers read is counted for each. "
    "*Expected*: the drop of class mIoU with the float network's own probabilities as the truth, by which layers are "
    "ranked; it is steadier than *labels*, the drop on these frames' own labels, which the network may have been trained "
    "on. *Error*: of the logits, root mean square, relative to theirs. Layers have the names of the PyTorch modules; an "
    "operation without weights also says what it does, and is listed where a target runs it in int8. `edgekit quantize "
    "--keep-float NAME,...` leaves layers in float on any target, and `--max-drop` finds out how many."
)


def ranked(document: Mapping[str, Any]) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """Layers with their losses by scheme, the most costly first.

    Args:
        document: what ``edgekit sensitivity --json`` prints.
    """
    layers: dict[str, dict[str, Mapping[str, Any]]] = {}
    for scheme, losses in document["layers"].items():
        for loss in losses:
            layers.setdefault(str(loss["layer"]), {})[scheme] = loss
    return sorted(layers.items(), key=lambda entry: -max(loss["expected_drop"] for loss in entry[1].values()))


def render_sensitivity(document: Mapping[str, Any]) -> dict[str, bytes | str]:
    """All files of the page: path relative to its folder -> text or bytes."""
    layers, schemes = ranked(document), list(document["layers"])
    height, width = document["size"]
    calibration, ranked_on = document["calibration"], document["ranked_on"]
    rows = [[escape(name), *(cell for scheme in schemes for cell in _cells(losses[scheme]))] for name, losses in layers]
    header = ["Layer", *(f"{title}, {scheme}" for scheme in schemes for title in TITLES)]
    lines = [
        f"# Which layers cost {escape(document['checkpoint']['name'])} accuracy in int8",
        "",
        f"At {height}x{width}, calibrated on {calibration['frames']} {escape(calibration['dataset'])} "
        f"{escape(calibration['split'])} frames, ranked on {ranked_on['frames']} of them.{escape(_no_labels(document))}",
        "",
        HOW,
        "",
        "Symmetric is what Core ML and TensorRT do, asymmetric what ONNX Runtime, OpenVINO and TFLite do.",
        "",
        "![The layers that cost most](layers.svg)",
        "",
        *table(header, rows),
        *_others(document),
    ]
    figure = layer_drops(
        [name for name, _ in layers[:SHOWN]],
        {scheme: [losses[scheme]["expected_drop"] for _, losses in layers[:SHOWN]] for scheme in schemes},
    )
    return {"index.md": "\n".join(lines) + "\n", "layers.svg": figure}


def _others(document: Mapping[str, Any]) -> list[str]:
    names = ", ".join(f"`{printable(name)}`" for name in document["others"])
    return (
        [f"Not ranked, since no simulation quantizes them; `--keep-float` takes them, too: {names}.", ""]
        if names
        else []
    )


def _cells(loss: Mapping[str, Any]) -> Sequence[str]:
    on_labels = "not measured" if loss["drop"] is None else f"{100 * loss['drop']:.3f}"
    return f"{100 * loss['expected_drop']:.3f}", on_labels, f"{100 * loss['output_error']:.2f}"


def _no_labels(document: Mapping[str, Any]) -> str:
    """Why nothing was measured on labels, as a sentence after another; empty where it was."""
    why = document["ranked_on"]["no_labels"]
    return "" if why is None else f" On labels nothing was measured: {why}."


def sensitivity_text(document: Mapping[str, Any], shown: int = 12) -> str:
    """What the command prints."""
    lines = []
    for name, losses in ranked(document)[:shown]:
        lines.append(f"{name}: {', '.join(_drops(loss, scheme) for scheme, loss in losses.items())}")
    head = (
        f"points of mIoU that int8 is expected to cost in each layer alone, on {document['ranked_on']['frames']} of the "
        f"{document['calibration']['frames']} calibration frames:"
    )
    return "\n".join([head, *lines, *([why.strip()] if (why := _no_labels(document)) else [])])


def _drops(loss: Mapping[str, Any], scheme: str) -> str:
    on_labels = "" if loss["drop"] is None else f" ({100 * loss['drop']:+.3f} on labels)"
    return f"{100 * loss['expected_drop']:.3f}{on_labels} {scheme}"
