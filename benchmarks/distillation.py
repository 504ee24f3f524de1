"""What a teacher gives SPSSN on CamVid's val: the same training from labels alone, and from labels and a teacher.

Run: python benchmarks/distillation.py TEACHER [EPOCHS]; needs CAMVID_ROOT. TEACHER was trained on train alone, and so are
both students; the test split is not looked at. Trainings lie in runs/distillation and go on where they stopped.
"""

from __future__ import annotations

import sys
from pathlib import Path

from measured import keep
from trainings import val_scores

from edgekit.core.errors import UsageError
from edgekit.networks.checkpoint import load_checkpoint, trained_on

FOLDER = Path("runs/distillation")
PART = "0.7"
"""The teacher's part of the loss."""
SETTINGS = [
    "--network", "spssn", "--data", "camvid", "--camvid-variant", "--initial", "spssn-streets", "--batch", "8", "--frame-size",
    "720x960", "--crop", "384x384", "--scale", "0.5", "1.2", "--optimizer", "adamw", "--learning-rate", "0.003",
    "--weight-decay", "0.01", "--warmup-steps", "50", "--loss-stride", "2", "--class-balance", "0.2", "--average", "0.99",
    "--colour-jitter", "0.4", "--white-balance", "0.25", "--class-mix", "0.5", "--precision", "bfloat16", "--validate-every",
    "1000", "--no-test",
]  # fmt: skip


def main() -> None:
    """Train what is missing, and keep both students' scores and their teacher's."""
    teacher = load_checkpoint(sys.argv[1])
    epochs = sys.argv[2] if len(sys.argv) > 2 else "12"
    if trained_on(teacher.recipe, "camvid", "val") is not False:
        raise UsageError(f"{teacher.path} saw val in training: val would say nothing of its student")
    sides = {"labels alone": [], "labels and teacher": ["--teacher", str(teacher.path), "--distillation", PART]}
    students = {
        side: val_scores(FOLDER / f"{side.split()[-1]}-{epochs}", "spssn", [*SETTINGS, "--epochs", epochs, *more])
        for side, more in sides.items()
    }
    for side, scores in students.items():
        print(f"{side}: {100 * scores['miou']:.2f} %")
    taught = {"scores": teacher.metrics["camvid:val"], "recipe": dict(teacher.recipe)}
    keep(
        "distillation",
        {"epochs": int(epochs), "part": float(PART), "settings": SETTINGS, "students": students, "teacher": taught},
    )


if __name__ == "__main__":
    main()
