"""Writes ``docs/results.md`` from stored measurements; no number on that page is typed by hand but the paper's own.

Run: python -m benchmarks.pages.results [RUN_DIR], the folder of an ``edgekit run`` of the shipped checkpoint on streets; without it, of the
run that was kept last.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.shared.measured import FOLDER, kept
from edgekit.core.files import read_json, write_json, write_text
from edgekit.networks.checkpoint import Checkpoint, load_checkpoint, load_network, shipped_names
from reports.document import trainings

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results.md"

# Mamoon et al. 2020, Tables 2 and 4: on the Cityscapes test set, in %.
PAPER_TABLE_2 = (
    ("SegNet", "57.0", "79.1", "32.0", "61.9", "29.5"),
    ("ENet", "58.3", "80.4", "34.4", "-", "0.36"),
    ("ContextNet", "66.1", "82.7", "36.8", "64.3", "0.85"),
    ("Fast-SCNN", "68.0", "84.7", "37.9", "63.5", "1.11"),
    ("ICNet", "69.5", "86.4", "-", "-", "7.8"),
    ("SPSSN", "69.4", "86.0", "41.8", "70.2", "1.42"),
)
PAPER_TABLE_4 = {
    "road": 97.7, "sidewalk": 80.8, "building": 89.8, "wall": 43.9, "fence": 46.5, "pole": 53.1, "traffic light": 58.8,
    "traffic sign": 64.7, "vegetation": 91.5, "terrain": 68.7, "sky": 94.2, "person": 76.2, "rider": 59.0, "car": 92.7,
    "truck": 53.5, "bus": 71.0, "train": 59.2, "motorcycle": 52.9, "bicycle": 63.8,
}  # fmt: skip


# Mamoon et al. 2020, Tables 5 to 7: CamVid test at 960x720, Cityscapes val, and one TITAN Xp.
PAPER_TABLE_5 = (
    ("ENet", "51.3", "68.3", "-", "0.36", "61.2"),
    ("SegNet", "55.6", "65.2", "88.5", "29.5", "4.6"),
    ("FCN-8s", "57.0", "-", "88.0", "134.5", "-"),
    ("FC-DenseNet56", "58.9", "-", "88.9", "1.5", "27"),
    ("DeepLab-LFOV", "61.6", "-", "-", "37.3", "4.9"),
    ("Dilation8", "65.3", "-", "79.0", "140.8", "4.4"),
    ("ESPNet", "55.6", "68.3", "-", "-", "205"),
    ("ERFNet", "53.1", "65.8", "86.3", "-", "-"),
    ("ERFNet, pre-trained on ImageNet", "62.7", "72.2", "89.4", "-", "-"),
    ("ICNet", "67.1", "-", "-", "-", "27.8"),
    ("SPSSN", "64.3", "73.55", "91.1", "1.4", "105"),
)
PAPER_TABLE_6 = {"fast-scnn": ("68.62", "-"), "spssn-stream": ("69.70", "85.6"), "spssn": ("70.40", "86.4")}
PAPER_TABLE_7 = {"1024x2048": (16, 59.0), "1024x1024": (9, 111.44), "512x1024": (7, 135.30)}
CAMVID_CHECKPOINTS = ("spssn-camvid", "spssn-stream-camvid", "fast-scnn-camvid")
TITLES = {"spssn": "SPSSN (stage pooling)", "spssn-stream": "stream pooling", "fast-scnn": "Fast-SCNN"}


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table; all but the first column stand right."""
    lines = ["| " + " | ".join(header) + " |", "| --- |" + " ---: |" * (len(header) - 1)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def percent(value: float | None) -> str:
    """A fraction as %."""
    return "not defined" if value is None else f"{100 * value:.2f}"


def points(value: float, low: float, high: float) -> str:
    """A drop with its interval, in points."""
    shown = [round(100 * number, 2) + 0.0 for number in (value, low, high)]  # + 0.0 turns -0.0 into 0.0
    return f"{shown[0]:+.2f} [{shown[1]:+.2f}, {shown[2]:+.2f}]"


def artifacts(document: dict[str, Any]) -> str:
    """The rows of a run's report.json on this machine."""
    rows = []
    for row in document["rows"]:
        if row["device"] != "local":
            continue
        latency = row["latency_ms"]["p50"] if row["latency_ms"] else None
        drop = "reference of all" if row["miou_drop"] is None else points(row["miou_drop"], *row["miou_drop_ci"])
        rows.append(
            [
                f"{row['target']} {row['precision']}", f"{row['model_bytes'] / 1e6:.2f}", percent(row["miou"]), drop,
                "not measured" if latency is None else f"{latency:.1f}", row["provenance"]["miou"]["kind"],
            ]
        )  # fmt: skip
    return table(["artifact", "MB", "mIoU, %", "drop, points [95 %]", "p50, ms", "accuracy is"], rows)


def machine(document: dict[str, Any]) -> str:
    """Where something was measured, and what the CPU has for int8, on which its speed and its overflows depend."""
    return cpu(document["environment"])


def cpu(environment: dict[str, Any]) -> str:
    """A machine's CPU in a few words."""
    flags = set(environment["cpu_flags"])
    known = [name for name, needed in (("AMX", {"amx_int8"}), ("VNNI", {"avx512_vnni", "avx_vnni"})) if flags & needed]
    without = ["no VNNI"] if "avx2" in flags and not known else []
    return ", ".join([environment["cpu"], *known[:1], *without, f"{environment['cores']} cores"])


def arm64() -> list[str]:
    """int8 artifacts on ARM's kernels."""
    document = kept("arm64")
    if not document:
        return []
    result = document["result"]
    rows = [
        [
            f"{row['target']} int8", percent(row["miou_x86"]), percent(row["miou"]), points(*row["arm_below_x86"]),
            points(row["miou_drop"], *row["miou_drop_ci"]), f"{row['frames_counted_alike']} of {result['frames']}",
            f"{row['provenance']['miou']['kind']}, by {row['provenance']['miou']['by']}", row["provenance"]["latency"]["kind"],
        ]
        for row in result["rows"]
    ]  # fmt: skip
    return [
        "## int8 on ARM's kernels",
        f"`{result['checkpoint']}` at {result['size']}, the same int8 artifacts on the same {result['frames']} "
        f"{result['dataset']['name']} {result['dataset']['split']} frames: here, and by the agent over ssh in a Debian arm64 "
        f"userland ({', '.join(result['packages'])}) that {result['emulator'].partition(' (')[0]} executes as a {result['processor']} "
        f"(`make test-arm64`). Float PyTorch {percent(result['float'])} %. An emulated processor's times say nothing, and "
        "none was taken; its arithmetic is ARM's, by the instructions that the kernels choose on such a core.",
        table(
            ["artifact", "on x86, %", "on ARM, %", "ARM below x86, points [95 %]", "ARM below float, points [95 %]",
             "frames with equal counts", "accuracy on ARM is", "latency on ARM"],
            rows,
        ),
    ]  # fmt: skip


def camvid() -> list[str]:
    """Table 5: the shipped CamVid networks beside the paper's rows."""
    speed = kept("camvid_speed")
    earlier = (kept("earlier") or {"result": {}})["result"]
    rows, classes, commands, last = [], [], [], ""
    names: tuple[str, ...] = ()
    for name in CAMVID_CHECKPOINTS:
        if name not in shipped_names():
            continue
        checkpoint = load_checkpoint(name)
        scores = checkpoint.metrics["camvid:test"]
        network = load_network(checkpoint)
        parameters = sum(value.numel() for value in network.parameters())
        timed = speed["result"].get(name) if speed else None
        title = f"{TITLES[checkpoint.network]}, edgekit"
        rows.append(_of_table_5(f"**{title}**", scores, checkpoint.recipe["frame_size"], parameters, timed))
        for when, record in reversed(earlier.items()) if checkpoint.network == "spssn" else ():
            less, size = record["metrics"]["camvid:test"], record["recipe"]["frame_size"]
            rows.append(_of_table_5(f"{title}, {when}", less, size, parameters, timed))
        names = checkpoint.class_names
        if checkpoint.network == "spssn":
            last = _last_training(checkpoint, earlier)
        classes.append([TITLES[checkpoint.network], *(percent(value) for value in scores["per_class_iou"])])
        commands += [
            f"`{name}`, {percent(scores['miou'])} % class mIoU:",
            "```\n" + "\n".join(trainings(checkpoint.recipe)) + "\n```",
        ]
    if not rows:
        return []
    where = f" FPS of ours: `graph` scope of OpenVINO int8 on {machine(speed)}." if speed else ""
    return [
        "## CamVid, the paper's Table 5",
        "Class mIoU, average class accuracy and global accuracy on the 233 test frames, after training; nothing was chosen by them. SPSSN was "
        f"evaluated {len(earlier) + 1} times, once after each training that has a row. The paper's rows are on "
        "960x720 originals and a TITAN Xp; ours on the 480x360 frames of the SegNet release, a quarter of the pixels, in which a pole is one or "
        f"two pixels wide, brought to the size in the table by interpolation.{where}",
        f"SPSSN's mIoU rose with every further training (the commands below){last} Thin and rare classes come last. All three began "
        "with those weights of `spssn-streets`, an SPSSN, that fit them by name and shape, which favours SPSSN.",
        table(
            ["network", "size", "mIoU, %", "class average, %", "global, %", "parameters, 10^6", "FPS"],
            [*rows, *([name, "-", *row] for name, *row in PAPER_TABLE_5)],
        ),
        "IoU of each class, %:",
        table(["network", *names], classes),
        "How they were trained, from first to last:",
        *commands,
    ]  # fmt: skip


def _last_training(checkpoint: Checkpoint, earlier: Mapping[str, Any]) -> str:
    """Where it ran, and which classes it cost more than a point, to be put after "training".

    Args:
        earlier: what the checkpoint said before, by when, the latest last.
    """
    devices = checkpoint.recipe.get("devices")
    told = f", the last on {' and '.join(devices)}." if devices else "."
    if not earlier:
        return told
    when, record = list(earlier.items())[-1]
    was, now = (metrics["camvid:test"]["per_class_iou"] for metrics in (record["metrics"], checkpoint.metrics))
    fell = [
        f"{of} {100 * new:.1f} % instead of {100 * old:.1f} %"
        for of, old, new in zip(checkpoint.class_names, was, now, strict=True)
        if old - new > 0.01
    ]
    return f"{told} Not every class did: {', '.join(fell)} {when}." if fell else told


def _of_table_5(
    title: str, scores: Mapping[str, Any], size: str, parameters: int, timed: Mapping[str, Any] | None
) -> list[str]:
    """A row of ours; ``timed`` is of one size, which may not be that of these weights."""
    shares = (percent(scores[key]) for key in ("miou", "mean_class_accuracy", "pixel_accuracy"))
    fps = f"{timed['fps']:.1f}" if timed is not None and timed["size"] == size else "not measured"
    return [title, size, *shares, f"{parameters / 1e6:.2f}", fps]


def students(document: Mapping[str, Any]) -> str:
    """Students of one comparison: their mIoU along the way and, of the last weights, at each frame size."""
    sides = document["result"]["students"]
    first = next(iter(sides.values()))
    rows = [
        [f"SPSSN, {side}", *(percent(value) for value in (*one["along"].values(), *one["sizes"].values()))]
        for side, one in sides.items()
    ]
    return table(["network", *(f"epoch {epoch}" for epoch in first["along"]), *first["sizes"]], rows)


def distillation() -> list[str]:
    """What learning from a teacher gives, on CamVid's val and on a street sequence that training did not see."""
    on_val, unseen = kept("distillation"), kept("distillation_by_sequence")
    if not on_val or not unseen:
        return []
    teachers = [document["result"]["teacher"] for document in (on_val, unseen)]
    scores = [percent(teacher["scores"]["miou"]) for teacher in teachers]
    gains = []
    for document in (on_val, unseen):
        alone, taught = document["result"]["students"].values()
        gains.append(f"{100 * (taught['miou'] - alone['miou']):+.2f}")
    return [
        "### A teacher, on frames that training did not see",
        f"Two trainings of SPSSN's CamVid variant, {on_val['result']['epochs']} epochs from the same short one, once from labels alone and once "
        f"with {100 * on_val['result']['part']:.0f} % of the loss from a teacher (`edgekit train --teacher`; "
        "`benchmarks/training/distillation.py`, one seed "
        "each). The teacher is EfficientNet-Lite2 with a decoder (`benchmarks/training/camvid_teacher.py`), its encoder "
        "pre-trained on ImageNet; test was not "
        "looked at. Class mIoU in %: along the way at the frame size of training, and of the last weights by the size that frames are brought to.",
        "On val, all trained on train. All of val is of a street sequence that train has too. The teacher has "
        f"{scores[0]} %, frames of training were brought to 720x960:",
        students(on_val),
        "On sequence 0006R0, all trained on the rest of train and val (`benchmarks/training/camvid_by_sequence.py`): streets "
        "that training did not show, as "
        f"three quarters of test are. The teacher has {scores[1]} %, frames of training were brought to 576x768:",
        students(unseen),
        f"With a teacher the last weights are {gains[0]} and {gains[1]} points from those without at the frame size of training. "
        "No shipped network had a teacher. These were trained by (the second with CAMVID_ROOT=runs/camvid-by-sequence)",
        *("```\n" + "\n".join(trainings(teacher["recipe"])) + "\n```" for teacher in teachers),
    ]  # fmt: skip


def kinds() -> list[str]:
    """int8 of small networks of the kinds that people train, by default options."""
    document = kept("kinds_int8")
    if not document:
        return []
    names = [row["target"] for row in next(iter(document["result"].values()))["rows"]]
    losses, speeds, apart = [], [], []
    for name, sides in document["result"].items():
        rows = {row["target"]: row for row in sides["rows"]}
        cells = [points(rows[one]["drop"], *rows[one]["interval"]) for one in names]
        losses.append([name, percent(sides["rows"][0]["float"]), *cells])
        speeds.append([name, *("{:.2f} [{:.2f}, {:.2f}]".format(*ratio) for ratio in sides["speed"].values())])
        apart += [abs(row["seen"] - row["simulated"]) for row in sides["rows"] if row["seen"] is not None]
    timed = list(next(iter(document["result"].values()))["speed"])
    within = sum(one <= 0.002 for one in apart)
    return [
        "## int8 of networks of many kinds",
        "Twelve small networks, each with what is hard for int8 about its kind (`tests/kinds.py`), trained on streets for minutes "
        "(`benchmarks/training/train_kinds.py`); their float mIoU is low, and what counts is the drop. By default options, 16 calibration frames, "
        "24 val frames at 128x256 (`benchmarks/accuracy/kinds_int8.py`). Drop in points of class mIoU with its paired 95 % interval:",
        table(["network", "float mIoU, %", *names], losses),
        "The drop that each artifact was seen to have as it was made, by the network's own probabilities, is within 0.2 points of "
        f"the simulated one in {within} of {len(apart)} cases, and {100 * max(apart):.2f} points off at most. "
        f"int8's latency over float's, bare graph at 256x512, in turns, with its 95 % interval, on {machine(document)}:",
        table(["network", *timed], speeds),
    ]  # fmt: skip


def int8() -> list[str]:
    """What int8 costs the CamVid networks, beside the vendors' defaults."""
    document = kept("int8_accuracy")
    if not document:
        return []
    parts = [
        "## What int8 costs on CamVid's test frames",
        "Class mIoU on the 233 test frames, drop against float PyTorch with its paired 95 % interval "
        "(`benchmarks/accuracy/int8_accuracy.py`). The vendors' "
        "side is the straight export with their tools' defaults; edgekit's is `edgekit quantize --max-drop 0.01`. Both calibrate on "
        "the same 64 training frames; val, on which these networks were trained too, is all that guides a repair, and test "
        "proves it. coremltools calibrates activations on macOS only. Core ML's and TensorRT's rows are references, by the executor "
        "for ML Programs and by ONNX Runtime. On CPUs without VNNI the vendors' x86 kernels add int8 products in 16 bits, which may overflow.",
    ]
    for name, sides in document["result"].items():
        if "edgekit" not in sides:
            continue
        others = sides.get("vendors", {"rows": {}})["rows"]
        missing = "not made" if others else "not measured"
        rows, per_class = [], []
        made = [row for row in sides["edgekit"] if "failed" not in row]
        for row in made:
            proof, vendor = row["verification"], others.get(row["target"])
            kept_float = row["repair"]["kept"] if "repair" in row else []
            rows.append(
                [
                    row["target"],
                    *((percent(vendor["miou"]), points(*vendor["drop"])) if vendor else (missing, missing)),
                    percent(proof["miou"]),
                    points(proof["miou_drop"], *proof["miou_drop_ci"]),
                    "holds" if row["budget"]["holds"] else "**does not hold**",
                    ", ".join(kept_float) or "none",
                ]
            )
            per_class += [
                (row["target"], title, side["per_class_drop"])
                for title, side in (("vendor's default", vendor), ("edgekit", proof))
                if side
            ]
        machines = {side: cpu(environment) for side, environment in sides["environments"].items()}
        where = machines["edgekit"]
        if machines.get("vendors", where) != where:
            where += f" (the vendors' side on {machines['vendors']})"
        measured = made[0]["verification"]["miou_float"]
        shipped = load_checkpoint(name.removesuffix("-apart")).metrics["camvid:test"]["miou"]
        weights = (
            ""
            if abs(measured - shipped) < 1e-4
            else f" (of earlier weights: those shipped now have {percent(shipped)} %)"
        )
        parts += [
            f"`{name}` at {sides['size']} on {where}, float {percent(measured)} %{weights}"
            f"{', made to collapse: the same function, with depthwise channels a thousandfold apart' if name.endswith('-apart') else ''}:",
            table(
                ["target", "vendor's default, %", "drop, points [95 %]", "edgekit, %", "drop, points [95 %]",
                 "budget of 1 point", "layers in float"],
                rows,
            ),
            f"What it costs each class, points of IoU. {_thin(per_class)}",
            table(
                ["target", "int8 by", *per_class[0][2]],
                [[target, by, *("-" if drop is None else f"{round(100 * drop, 2) + 0.0:+.2f}" for drop in drops.values())]
                 for target, by, drops in per_class],
            ),
        ]  # fmt: skip
    return parts if len(parts) > 2 else []


def _thin(per_class: list[tuple[str, str, dict[str, float | None]]]) -> str:
    """The classes that edgekit's int8 costs most on average over the targets, in words."""
    own = [drops for _, by, drops in per_class if by == "edgekit"]
    means = {of: sum(drops[of] or 0.0 for drops in own) / len(own) for of in own[0]}
    worst = sorted(means, key=lambda of: means[of], reverse=True)[:3]
    told = ", ".join(f"{of} {100 * means[of]:+.2f}" for of in worst)
    return f"edgekit's costs most, on average over the targets: {told}."


def memory() -> list[str]:
    """What calibration takes."""
    document = kept("calibration_memory")
    if not document:
        return []
    result = document["result"]
    peak, before = (result[key] / 2**30 for key in ("peak_bytes", "peak_bytes_before"))
    return [
        "## Memory of calibration",
        f"`{result['checkpoint']}`, {result['frames']} {result['dataset']} frames of {result['size']} chosen and calibrated on, in a process of its "
        f"own on {machine(document)} (`benchmarks/speed/calibration_memory.py`): at most {peak:.2f} GiB, of which {before:.2f} "
        "GiB were reached in the "
        "export before it.",
    ]


def ablation() -> list[str]:
    """Table 6."""
    document = kept("ablation")
    if not document:
        return []
    result = document["result"]
    rows = []
    for network, mious in result["miou"].items():
        mean = sum(mious) / len(mious)
        seeds = ", ".join(percent(miou) for miou in mious)
        rows.append([TITLES[network], *PAPER_TABLE_6[network], percent(mean), seeds])
    steps = [
        f"{TITLES[step['from']]} to {TITLES[step['to']]}: {points(step['value'], step['low'], step['high'])} points, the order "
        f"**{step['order']}**."
        for step in result["steps"]
    ]
    seeds_each = len(next(iter(result["miou"].values())))
    return [
        "## The ablation, the paper's Table 6",
        f"On CamVid val, {result['epochs']} epochs on train alone from random weights, {seeds_each} seeds each, same frames in the same "
        "order, CamVid variant of all three (`benchmarks/training/ablation.py`); the paper's on Cityscapes "
        "val after 800. Intervals are Welch's over the seeds.",
        table(["network", "paper: class mIoU, %", "paper: category mIoU, %", "ours: class mIoU, %", "each seed"], rows),
        *steps,
        "This is a short training of a small dataset: it says which order shows early, not which network is better in the end.",
    ]


def speed() -> list[str]:
    """Table 7."""
    document = kept("paper_speed")
    if not document:
        return []
    parts = [
        "## Speed, the paper's Table 7",
        f"p50 in ms over 200 iterations or more, taking turns, on {machine(document)} (shared, so read ratios), beside the paper's TITAN Xp. "
        "`graph` is what the paper times: one forward pass of the bare network.",
    ]
    for scope in ("graph", "frame-to-labels"):
        engines = list(next(iter(document["result"]["sizes"].values()))[scope])
        rows = []
        for size, scopes in document["result"]["sizes"].items():
            ms, fps = PAPER_TABLE_7[size]
            paper = [f"{ms} ({fps:.1f})"] if scope == "graph" else []
            rows.append(
                [
                    size,
                    *paper,
                    *(f"{scopes[scope][name]['p50']:.0f} ({scopes[scope][name]['fps']:.1f})" for name in engines),
                ]
            )
        header = ["size", *(["paper, ms (FPS)"] if scope == "graph" else []), *engines]
        parts += [f"`{scope}`, ms (FPS):", table(header, rows)]
    return [*parts, *speed_on_gpu()]


def speed_on_gpu() -> list[str]:
    """Table 7 on a GPU, where one was at hand."""
    document = kept("gpu_speed")
    if not document:
        return []
    result = document["result"]
    rows = []
    for size, scopes in result["sizes"].items():
        ms, fps = PAPER_TABLE_7[size]
        shown = [
            f"{found['p50']:.2f} ({found['fps']:.0f})"
            for scope in ("graph", "frame-to-labels")
            for found in scopes[scope].values()
        ]
        rows.append([size, f"{ms} ({fps:.1f})", *shown, f"{100 * scopes['labels_agree']:.2f}"])
    engines = [
        f"{scope}, {title}"
        for scope in ("graph", "frame-to-labels")
        for title in next(iter(result["sizes"].values()))[scope]
    ]
    return [
        f"On an {result['device']} by PyTorch {result['torch']} (`benchmarks/speed/paper_speed.py gpu`), p50 in ms (FPS) over 200 "
        "iterations in turns, "
        "each waited for: float32 without TF32, kernels launched one by one, and float16 with the kernels captured into one CUDA graph. "
        "`frame-to-labels` begins and ends in the host's memory. The card is generations newer than the paper's; one by one, launching the "
        "kernels decides at these sizes, not arithmetic. The last column is the share of pixels that float16 labels as float32 does. TensorRT was "
        "not at hand.",
        table(["size", "paper, ms (FPS)", *engines, "labels equal, %"], rows),
    ]


def throughput() -> list[str]:
    """Training and evaluation speed."""
    parts = []
    if document := kept("training_speed"):
        result = document["result"]
        rows = []
        for kind, value in result["images_per_second"].items():
            ratio = result["ratios"].get(kind)
            spread = f" [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio and len(result["miou"][kind]) > 1 else ""
            shown = "1" if ratio is None else f"{ratio['value']:.2f}{spread or ' (one pair)'}"
            mious = result["miou"][kind]
            rows.append(
                [
                    kind,
                    f"{value:.1f}",
                    shown,
                    percent(sum(mious) / len(mious)),
                    ", ".join(percent(miou) for miou in mious),
                ]
            )
        parts += [
            "## Training speed",
            f"SPSSN (CamVid variant), {result['recipe']['crop']} crops, batch {result['recipe']['batch']}, {result['epochs']} epochs, in turns "
            f"in one run, on {machine(document)} (`benchmarks/training/training_speed.py`). The plain loop is eager float32 with logits upsampled to "
            "full size before the "
            "loss and frames decoded in the training process; edgekit decodes once, trains in mixed precision and channels-last order, and takes the "
            "loss at every second pixel.",
            table(["training", "images/s", "ratio [95 %]", "val mIoU, %", "each seed"], rows),
        ]
    if document := kept("evaluation_speed"):
        result = document["result"]
        ratio, slowed = result["ratio"], result["subnormal"]
        parts += [
            "## Evaluation speed",
            f"`{result['checkpoint']}` on {result['frames']} CamVid frames at {result['size']}, on {machine(document)} "
            f"(`benchmarks/speed/evaluation_speed.py`): `edgekit evaluate` is {ratio['value']:.2f} [{ratio['low']:.2f}, "
            f"{ratio['high']:.2f}] times as fast "
            f"as the obvious loop, with the same mIoU. Subnormal weights cost it a factor "
            f"of {slowed['value']:.2f} [{slowed['low']:.2f}, {slowed['high']:.2f}]. Frames of val, which the network was "
            "trained on: only the clock is looked at. A tenth of the weights were made subnormal, which ruins the labels, and "
            "must not touch the clock.",
            table(
                ["loop", "frames/s", "mIoU, %"],
                [[kind, f"{value:.2f}", f"{100 * result['miou'][kind]:.4f}"] for kind, value in result["frames_per_second"].items()],
            ),
        ]  # fmt: skip
    return parts


def main() -> None:
    """Copy the run's report.json beside the other measurements, where a run is named, and render the page."""
    if len(sys.argv) > 1:
        keep_run(Path(sys.argv[1]))
    document = read_json(FOLDER / "run.json")
    render(document)


def keep_run(run: Path) -> None:
    """What the page shows of an ``edgekit run``."""
    measured = read_json(run / "measurements" / "latency.local.json")["latency"]
    environment = measured["artifacts"][0]["environment"]
    write_json(FOLDER / "run.json", {**read_json(run / "report" / "report.json"), "environment": environment})
    strip = sorted((run / "report" / "figures").glob("strip-*.png"))[0]
    (ROOT / "docs" / "figures").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(strip, ROOT / "docs" / "figures" / "streets-strip.png")


def render(document: dict[str, Any]) -> None:
    """The page from what is there."""
    checkpoint, dataset = document["checkpoint"], document["dataset"]
    size = "x".join(str(side) for side in document["rows"][0]["size"])
    scores = checkpoint["metrics"].get("streets:test", {})
    parts = [
        "# Results",
        "Written by `make bench` from what is stored in `benchmarks/measured`; only the paper's own numbers are typed.",
        f"## `{checkpoint['name']}` on `streets`",
        f"The shipped checkpoint, {len(checkpoint['classes'])} classes, {percent(scores.get('miou'))} % class mIoU on the "
        f"{scores.get('frames')} frames of the streets test split (evaluated once, after training). It was trained by",
        f"```\n{checkpoint['recipe'].get('command')}\n```",
        f"Its artifacts on {dataset['frames']} {dataset['name']} {dataset['split']} frames at {size}, `frame-to-labels` latency on "
        f"{machine(document) if 'environment' in document else 'two x86 cores'} (a shared machine: read times as order of size):",
        artifacts(document),
        "![Image, truth and each artifact's labels](figures/streets-strip.png)",
        "The scenes are drawn; numbers on them say what quantization costs and nothing about real streets.",
    ]
    floor = kept("streets_floor")
    if floor:
        best = max(floor["result"]["miou"].values())
        parts += [
            "## How hard `streets` is",
            f"A per-pixel classifier on colour and position reaches {percent(best)} % mIoU (`benchmarks/accuracy/streets_floor.py`): what a "
            "network scores above that it owes to shape, texture and context.",
        ]
    vendor = kept("vendor_int8")
    if vendor:
        result = vendor["result"]
        parts += [
            f"int8 by the vendors' own defaults on the straight export, same checkpoint, 16 calibration frames, {result['frames']} "
            f"test frames at {result['size']}; float PyTorch {percent(result['float'])} % (`benchmarks/accuracy/vendor_int8.py`):",
            table(
                ["recipe", "mIoU, %", "drop, points [95 %]"],
                [
                    [row["recipe"], percent(row["miou"]), points(row["drop"], row["low"], row["high"])]
                    for row in result["rows"]
                ],
            ),
        ]
    parts += [*arm64(), *camvid(), *distillation(), *int8(), *kinds(), *memory(), *ablation(), *speed(), *throughput()]
    parts += [
        "## Cityscapes, the paper's Tables 2 and 4",
        "**No Cityscapes mIoU of ours stands here.** The development machine has eight frames of its training split, which cannot give "
        "one; they show that conversion and quantization work on real frames. Those who have the dataset get theirs by "
        "`edgekit evaluate CHECKPOINT --data cityscapes --split val`. The paper's own numbers on the Cityscapes test set:",
        table(
            ["network (Table 2)", "class mIoU", "category mIoU", "class iIoU", "category iIoU", "parameters, 10^6"],
            [list(row) for row in PAPER_TABLE_2],
        ),
        table(["class (Table 4)", "SPSSN, IoU in %"], [[name, f"{value:.1f}"] for name, value in PAPER_TABLE_4.items()]),
    ]  # fmt: skip
    timing = kept("help_time")
    if timing:
        median = {name: sorted(samples)[len(samples) // 2] for name, samples in timing["result"].items()}
        parts += [
            "## The command line",
            table(["command", "median, ms"], [[f"`{name}`", f"{value:.0f}"] for name, value in median.items()]),
        ]
    write_text(PAGE, "\n\n".join(parts) + "\n")
    print(f"wrote {PAGE}")


if __name__ == "__main__":
    main()
