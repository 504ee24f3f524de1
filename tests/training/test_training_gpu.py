"""Training on a GPU: the same command, the same training. Skipped where there is none."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_training import TINY, Killed, killer, run
from test_training import six as six
from test_training import two as two

from calibration.datasets import Split
from edgekit.core.errors import TrainingError
from edgekit.core.files import read_json
from edgekit.networks.checkpoint import load_checkpoint
from edgekit.training import loop
from edgekit.training.loop import HISTORY_NAME
from edgekit.training.recipe import TrainingRecipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU that PyTorch can use")
RECIPE = replace(TINY, epochs=4, learning_rate=0.002, average=0.5)


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """float32 that is float32: TF32's 10 bits would hide a mistake."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def losses(recipe: TrainingRecipe, data: Split, folder: Path, **options: Any) -> list[float]:
    run(recipe, data, folder, **{"device": "cuda", **options})
    return [entry["loss"] for entry in read_json(folder / HISTORY_NAME)]


def test_it_trains_what_a_cpu_trains(six: Split, tmp_path: Path) -> None:
    here = losses(RECIPE, six, tmp_path / "cpu", device="cpu")
    there = losses(RECIPE, six, tmp_path / "cuda", workers=2)
    assert there == pytest.approx(here, rel=0.05)  # dropout draws otherwise there
    described = load_checkpoint(str(tmp_path / "cuda" / "tiny.safetensors")).recipe["devices"]
    assert described == [f"{torch.cuda.get_device_name()}, torch {torch.__version__}"]


def test_a_captured_pass_is_the_pass(six: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    captured = losses(RECIPE, six, tmp_path / "captured")
    monkeypatch.setattr(loop, "capture", lambda network, *_: network)
    launched = losses(RECIPE, six, tmp_path / "launched")
    assert captured == pytest.approx(launched, rel=0.01)
    first, second = (load_file(tmp_path / name / "tiny.safetensors") for name in ("captured", "launched"))
    counters = {key for key in first if key.endswith("num_batches_tracked")}
    assert counters, "the capture's own passes over a sample must not count"
    assert all(torch.equal(first[key], second[key]) for key in counters)
    apart = [
        float((first[key] - second[key]).norm() / second[key].norm().clamp_min(1e-6))
        for key in first
        if key not in counters
    ]
    assert np.median(apart) < 0.02


def test_mixed_precision_learns_and_resumes(six: Split, two: Split, tmp_path: Path) -> None:
    recipe = replace(
        RECIPE, precision="bfloat16", optimizer="adamw", class_balance=0.3, lovasz=0.2, loss_stride=2, epochs=6
    )
    whole = losses(recipe, six, tmp_path / "whole", validation=two, test=two)
    assert whole[-1] < 0.9 * whole[0]
    with pytest.raises(Killed):
        run(recipe, six, tmp_path / "killed", killer(4, 2), device="cuda")
    assert losses(recipe, six, tmp_path / "killed") == pytest.approx(whole, rel=0.05)
    on_cpu = losses(replace(recipe, epochs=7), six, tmp_path / "cpu", device="cpu")
    assert on_cpu[0] == pytest.approx(whole[0], rel=0.05)


def test_a_step_that_diverged_is_named(six: Split, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"(the loss became (nan|inf) in epoch 1, step 2:|not finite after epoch 1)"
    ):
        run(replace(RECIPE, learning_rate=1e20, epochs=8), six, tmp_path, device="cuda")
