"""What a teacher gives SPSSN on CamVid's val: the same training from labels alone, and from labels and a teacher.

Run: python -m benchmarks.training.distillation TEACHER [by-sequence]; needs CAMVID_ROOT. TEACHER was trained on train alone, and so are
both students, which begin with the same short training from labels; the test split is not looked at. With ``by-sequence`` all
three are trained and validated on the split of benchmarks/training/camvid_by_sequence.py. Trainings lie in runs/distillation and
runs/distillation_by_sequence and go on where they stopped.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from benchmarks.shared.measured import keep
from benchmarks.shared.trainings import val_scores
from benchmarks.training.camvid_by_sequence import by_sequence
from calibration.datasets import open_split
from edgekit.core.errors import UsageError
from edgekit.core.files import read_json
from edgekit.networks.blocks import channels_last
from edgekit.networks.checkpoint import load_checkpoint, load_network, trained_on
from edgekit.training.loop import HISTORY_NAME, evaluate_network

START_EPOCHS, EPOCHS = 12, 40
SIZES = ("360x480", "480x640", "576x768", "720x960", "900x1200")
PART = "0.5"
"""The teacher's part of the loss."""
SETTINGS = [
    "--network", "spssn", "--data", "camvid", "--camvid-variant", "--batch", "8", "--optimizer", "adamw", "--weight-decay", "0.01",
    "--warmup-steps", "50", "--loss-stride", "2", "--class-balance", "0.2", "--colour-jitter", "0.4", "--white-balance", "0.25",
    "--class-mix", "0.5", "--precision", "bfloat16", "--no-test",
]  # fmt: skip
SCALES = {
    "distillation": ["--frame-size", "720x960", "--crop", "384x384", "--scale", "0.5", "1.2"],
    "distillation_by_sequence": ["--frame-size", "576x768", "--crop", "320x320", "--scale", "0.6", "1.6"],
}
"""The second's are centred on the size at which the first's students scored best."""
BEGUN = ["--learning-rate", "0.003", "--average", "0.99", "--validate-every", "1000"]
GONE_ON = ["--learning-rate", "0.002", "--schedule", "constant", "--average", "0.998", "--validate-every", "10"]


def sizes(path: Path) -> dict[str, float]:
    """Val mIoU at each frame size: what networks were trained at random scales of, some sizes fit better than others."""
    checkpoint = load_checkpoint(str(path))
    network, split = channels_last(load_network(checkpoint)), open_split("camvid", "val")
    return {size: evaluate_network(network, split, checkpoint.normalization, size)["miou"] for size in SIZES}


def main() -> None:
    """Train what is missing, and keep both students' scores and their teacher's."""
    teacher = load_checkpoint(sys.argv[1])
    name = "distillation"
    if sys.argv[2:] == ["by-sequence"]:
        name = "distillation_by_sequence"
        os.environ["CAMVID_ROOT"] = str(by_sequence(Path(os.environ["CAMVID_ROOT"])))
    if trained_on(teacher.recipe, "camvid", "val") is not False:
        raise UsageError(f"{teacher.path} saw val in training: val would say nothing of its student")
    folder, settings = Path("runs") / name, [*SETTINGS, *SCALES[name]]
    begun = [*settings, "--initial", "spssn-streets", "--epochs", str(START_EPOCHS), *BEGUN]
    val_scores(folder / "start", "spssn", begun)
    start = folder / "start" / "spssn.safetensors"
    gone_on = [*settings, "--initial", str(start), "--epochs", str(EPOCHS), *GONE_ON]
    sides = {"labels alone": [], "labels and teacher": ["--teacher", str(teacher.path), "--distillation", PART]}
    students = {}
    for side, more in sides.items():
        out = folder / f"{side.split()[-1]}-{EPOCHS}"
        scores = val_scores(out, "spssn", [*gone_on, *more])
        along = {entry["epoch"]: entry["miou"] for entry in read_json(out / HISTORY_NAME) if "miou" in entry}
        students[side] = {**scores, "along": along, "sizes": sizes(out / "spssn.safetensors")}
        print(f"{side}: {100 * scores['miou']:.2f} %, {students[side]['sizes']}")
    taught = {"scores": teacher.metrics["camvid:val"], "recipe": dict(teacher.recipe)}
    described = {"start": begun, "students": gone_on}
    keep(name, {"epochs": EPOCHS, "part": float(PART), "settings": described, "students": students, "teacher": taught})


if __name__ == "__main__":
    main()
