"""The page of ``edgekit compare``: where two artifacts of one checkpoint part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from reports.figures import layer_distances
from reports.text import escape, table

HOW = (
    "Both were run on the same frames, and what each computed on the way was set against float PyTorch's layers, which have the "
    "names of the user's modules. A distance is the root mean square of the difference, as a share of the float result's. A "
    "model's own tensors are found by what they hold: a dash stands where a layer has none of its own, because it was fused into "
    "the next or rewritten. int8 scales channels by powers of two, which is undone before comparing."
)


def sentence(document: Mapping[str, Any]) -> str:
    """Where the two part, in words."""
    where, layers = document["parting"], {row["layer"]: row for row in document["layers"]}
    tolerance = f"{100 * document['tolerance']:g} %"
    if where["layer"] is None:
        furthest = max((row["apart"] for row in document["layers"] if row["apart"] is not None), default=0.0)
        return f"They do not part: at no layer are they further apart than {100 * furthest:.2g} % ({tolerance} is tolerated)."
    before = []
    for row in document["layers"]:
        if row["layer"] == where["layer"]:
            break
        if row["apart"] is not None:
            before.append(row["apart"])
    so_far = f"; before it at most {100 * max(before):.2g} %" if before else ""
    layer = f"'{where['layer']}'"
    if where["lost"] is not None:
        end = f"{layer}: {document[where['lost']]} has nothing like its result or any after it"
    else:
        apart = f"{100 * layers[where['layer']]['apart']:.2g} %"
        end = f"{layer}, the first that is further apart than {tolerance}: {apart}"
        if where["unseen"]:
            unseen = where["unseen"][0]
            lacking = [document[side] for side in ("first", "second") if layers[unseen][side] is None]
            return (
                f"They part between '{unseen}', of which {' and '.join(lacking)} {'has' if len(lacking) == 1 else 'have'} no "
                f"tensor (fused, rewritten, or at fault), and {layer}, where they are {apart} apart ({tolerance} is tolerated){so_far}."
            )
    return f"They part at {end}{so_far}."


def render_comparison(document: Mapping[str, Any]) -> dict[str, bytes | str]:
    """All files of the page: path relative to its folder -> text or bytes."""
    height, width = document["size"]
    frames = document["frames"]
    first, second = escape(document["first"]), escape(document["second"])
    rows = [
        [
            str(number),
            escape(row["layer"]),
            *("-" if row[key] is None else f"{100 * row[key]:.3g}" for key in ("first", "second", "apart")),
        ]
        for number, row in enumerate(document["layers"], 1)
    ]
    steepest = document["parting"]["steepest"]
    lines = [
        f"# {first} and {second}, layer by layer",
        "",
        f"**{escape(document['checkpoint']['name'])}** at {height}x{width}, on {frames['frames']} {escape(frames['dataset'])} "
        f"{escape(frames['split'])} frames.",
        "",
        f"**{escape(sentence(document))}**"
        + (f" They move apart most at '{escape(steepest)}'." if steepest is not None else "")
        + f" Their label maps are alike in {100 * document['labels_alike']:.2f} % of the pixels.",
        "",
        HOW,
        "",
        "![Distances along the network](layers.svg)",
        "",
        *table(["", "Layer", f"{first} to float, %", f"{second} to float, %", "one to the other, %"], rows, left=2),
    ]
    names = {
        "first": f"{document['first']} to float",
        "second": f"{document['second']} to float",
        "apart": "one to the other",
    }
    figure = layer_distances(
        [row["layer"] for row in document["layers"]],
        {title: [row[key] for row in document["layers"]] for key, title in names.items()},
        document["parting"]["layer"],
        document["tolerance"],
    )
    return {"index.md": "\n".join(lines) + "\n", "layers.svg": figure}


def comparison_text(document: Mapping[str, Any]) -> str:
    """What the command prints."""
    lines = [f"{document['first']} and {document['second']}, as shares of float PyTorch's result, %:"]
    shown = [row for row in document["layers"] if row["apart"] is not None]
    width = max((len(row["layer"]) for row in shown), default=0)
    for row in shown:
        values = "  ".join(f"{100 * row[key]:8.3g}" for key in ("first", "second", "apart"))
        lines.append(f"  {row['layer']:<{width}}  {values}")
    lines += ["", sentence(document), f"Labels alike: {100 * document['labels_alike']:.2f} % of the pixels."]
    return "\n".join(lines)
