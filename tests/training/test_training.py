"""Training at the seam: a described checkpoint, exact resumption, and no bad number over a good one."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn import functional as F

from calibration.datasets import Frame, FrameReference, Split, open_split
from edgekit.core.errors import CheckpointError, DataError, TrainingError, UsageError
from edgekit.core.files import sha256_path
from edgekit.core.values import IGNORE, Normalization, Size
from edgekit.export.graph import normalize
from edgekit.networks.checkpoint import load_checkpoint, load_network
from edgekit.training import loop, mixed
from edgekit.training.data import BatchOrder, Crops, augment, decoded_frames, epoch_order, paste_classes
from edgekit.training.distributed import Group
from edgekit.training.loop import HISTORY_NAME, Progress, Reports, Training, group_loss, train
from edgekit.training.losses import class_weights, lovasz_softmax, taught_cross_entropy
from edgekit.training.recipe import PRESETS, TrainingRecipe
from edgekit.training.state import STATE_NAME

TINY = TrainingRecipe(
    dataset="streets", draw_size="64x128", epochs=3, batch=3, crop="64x128", learning_rate=0.01, colour_jitter=0.2
)


@pytest.fixture(scope="module")
def six() -> Split:
    return loaded(replace(open_split("streets", "train", size=Size(64, 128)).first(None), split="train"), 6)


@pytest.fixture(scope="module")
def two() -> Split:
    return loaded(open_split("streets", "val", size=Size(64, 128)), 2)


def loaded(split: Split, count: int) -> Split:
    """The first frames, drawn once for all tests."""

    def keep(reference: FrameReference) -> FrameReference:
        frame = reference.load()
        return replace(reference, load=lambda: frame)

    return replace(split, references=tuple(keep(reference) for reference in split.references[:count]))


def run(
    recipe: TrainingRecipe,
    data: Split,
    folder: Path,
    report: Callable[[Progress], None] = lambda progress: None,
    **options: Any,
) -> Path:
    reports = Reports(report, options.pop("say", lambda line: None), options.pop("decoding", None))
    given: dict[str, Any] = {"name": "tiny", "command": "edgekit train", "workers": 0, "missing_classes": True}
    return train(Training(recipe, data, folder, **{**given, **options}), reports)


class Killed(BaseException):
    """No Exception: nothing may catch it."""


def killer(epoch: int, step: int) -> Callable[[Progress], None]:
    def report(progress: Progress) -> None:
        if (progress.epoch, progress.step) == (epoch, step):
            raise Killed

    return report


def assert_same_weights(a: Path, b: Path) -> None:
    first, second = load_file(a), load_file(b)
    assert first.keys() == second.keys()
    different = [key for key in first if not torch.equal(first[key], second[key])]
    assert not different, f"{len(different)} of {len(first)} tensors differ, the first is {different[0]}"


def test_a_tiny_run_describes_itself(six: Split, two: Split, tmp_path: Path) -> None:
    seen: list[Progress] = []
    said: list[str] = []
    recipe = replace(TINY, epochs=2, average=0.9, loss_stride=4, warmup_steps=2)
    path = run(
        recipe, six, tmp_path / "run", seen.append, validation=two, test=two.first(1), name="mine",
        command="edgekit train --x", say=said.append, validate_every=1, workers=1,
    )  # fmt: skip
    assert path == tmp_path / "run" / "mine.safetensors"
    assert [(progress.epoch, progress.step) for progress in seen] == [(1, 1), (1, 2), (2, 1), (2, 2)]
    assert all(np.isfinite(progress.loss) and progress.steps == 2 and progress.epochs == 2 for progress in seen)
    assert seen[-1].seconds_left == 0
    checkpoint = load_checkpoint(str(path))
    assert (checkpoint.network, checkpoint.dataset, checkpoint.arguments) == ("spssn", "streets", {})
    assert checkpoint.class_names == six.classes.names
    assert recipe.to_json().items() <= checkpoint.recipe.items()
    assert checkpoint.recipe["command"] == "edgekit train --x"
    assert checkpoint.recipe["devices"] == [f"cpu, torch {torch.__version__}"]
    scores = checkpoint.metrics["streets:val"]
    assert scores["frames"] == 1, "the last split of that name; here val stands in for test"
    assert 0 <= scores["miou"] <= 1
    assert len(scores["per_class_iou"]) == 19
    assert sum("mIoU" in line for line in said) == 3
    with torch.no_grad():
        assert torch.isfinite(load_network(checkpoint)(torch.randn(1, 3, 64, 64))).all()


@pytest.mark.parametrize(
    ("workers", "changes"),
    [
        (0, {}),
        (1, {}),
        (1, {"optimizer": "adamw", "average": 0.95, "warmup_steps": 3}),
        (1, {"class_mix": 0.5}),
        (0, {"network": "fast-scnn"}),
    ],
)
def test_a_killed_run_resumes_exactly(six: Split, tmp_path: Path, workers: int, changes: dict[str, Any]) -> None:
    recipe = replace(TINY, **changes)
    whole = run(recipe, six, tmp_path / "whole", workers=workers)
    for epoch, step in ((2, 1), (3, 2)):
        with pytest.raises(Killed):
            run(recipe, six, tmp_path / "killed", killer(epoch, step), workers=workers)
        assert not (tmp_path / "killed" / "tiny.safetensors").exists()
    seen: list[Progress] = []
    torch.rand(17)  # the process has a past of its own
    resumed = run(recipe, six, tmp_path / "killed", seen.append, workers=workers)
    assert {progress.epoch for progress in seen} == {3}
    assert_same_weights(whole, resumed)
    assert not list((tmp_path / "killed").glob("*.partial")) + list((tmp_path / "killed").glob(".*.partial"))


def test_a_finished_run_is_not_trained_again(six: Split, tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=1)
    before = sha256_path(run(recipe, six, tmp_path))
    seen: list[Progress] = []
    assert sha256_path(run(recipe, six, tmp_path, seen.append)) == before
    assert not seen


@pytest.mark.parametrize(
    ("setting", "value"), [("learning_rate", 0.5), ("epochs", 4), ("crop", "64x64"), ("scale", (1.0, 1.0)), ("seed", 1)]
)
def test_another_recipe_in_the_same_folder(six: Split, tmp_path: Path, setting: str, value: Any) -> None:
    one = replace(TINY, epochs=1)
    run(one, six, tmp_path)
    state = (tmp_path / STATE_NAME).read_bytes()
    with pytest.raises(TrainingError, match=setting) as caught:
        run(replace(one, **{setting: value}), six, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "--out" in str(caught.value)
    assert (tmp_path / STATE_NAME).read_bytes() == state


def test_other_frames_in_the_same_folder(six: Split, tmp_path: Path) -> None:
    """As many, of the same names and recipe: a run on a mixture of two datasets would say that it was on one."""
    one = replace(TINY, epochs=2)
    with pytest.raises(Killed):
        run(one, six, tmp_path, killer(2, 1))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    first, *rest = six.references
    changed = replace(six, references=(replace(first, identity=lambda: "changed"), *rest))
    with pytest.raises(TrainingError, match=r"other streets frames.*--data-root.*--out") as caught:
        run(one, changed, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    path = tmp_path / STATE_NAME
    stored = torch.load(path, weights_only=True)
    del stored["frames"]  # of a state from before they were recorded
    torch.save(stored, path)
    run(one, six, tmp_path)


def test_what_validation_found_outlives_a_kill(six: Split, two: Split, tmp_path: Path) -> None:
    one = replace(TINY, epochs=2)
    with pytest.raises(Killed):
        run(one, six, tmp_path, killer(2, 1), validation=two, validate_every=1)
    found = json.loads((tmp_path / HISTORY_NAME).read_text())
    assert 0 <= found[0]["miou"] <= 1
    run(one, six, tmp_path, validation=two, validate_every=1)
    assert json.loads((tmp_path / HISTORY_NAME).read_text())[0] == found[0]


def test_an_epoch_is_kept_before_it_is_validated(
    six: Split, two: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever states --save-every asks for: validation may take longer than the epochs."""

    def killed(*_: Any) -> Any:
        raise Killed

    monkeypatch.setattr(loop, "evaluate_network", killed)
    with pytest.raises(Killed):
        run(replace(TINY, epochs=4), six, tmp_path, validation=two, validate_every=2, save_every=20)
    assert torch.load(tmp_path / STATE_NAME, weights_only=True)["epoch"] == 2


def test_another_network_in_the_same_folder(six: Split, tmp_path: Path) -> None:
    one = replace(TINY, epochs=1)
    run(one, six, tmp_path)
    with pytest.raises(TrainingError, match="network = spssn, not fast-scnn"):
        run(replace(one, network="fast-scnn"), six, tmp_path)


@pytest.mark.parametrize("content", [b"", b"garbage", "cut", {}, {"recipe": {}}])
def test_a_damaged_state_is_named(six: Split, tmp_path: Path, content: Any) -> None:
    one = replace(TINY, epochs=1)
    if content == "cut":
        run(one, six, tmp_path)
        data = (tmp_path / STATE_NAME).read_bytes()
        (tmp_path / STATE_NAME).write_bytes(data[: len(data) // 2])
    elif isinstance(content, bytes):
        (tmp_path / STATE_NAME).write_bytes(content)
    else:
        torch.save(content, tmp_path / STATE_NAME)
    with pytest.raises(TrainingError) as caught:
        run(one, six, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


# Bad numbers


@pytest.mark.parametrize(("batch", "epochs"), [(3, 2), (6, 2), (6, 1)])
def test_a_diverging_run_is_stopped(six: Split, tmp_path: Path, batch: int, epochs: int) -> None:
    """Also where the weights break in the last step of an epoch, or of the run, after its loss was still good."""
    recipe = replace(TINY, batch=batch, epochs=epochs, learning_rate=1e38)
    with pytest.raises(TrainingError, match="learning-rate"):
        run(recipe, six, tmp_path)
    assert not (tmp_path / "tiny.safetensors").exists()
    assert not (tmp_path / STATE_NAME).exists(), "weights that gave no finite loss are nothing to resume from"


def test_a_loss_of_nan_with_a_rate_far_too_high(six: Split, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss became.*epoch.*learning-rate.*1e\+20"):
        run(replace(TINY, learning_rate=1e20), six, tmp_path)
    assert not (tmp_path / "tiny.safetensors").exists()


DIVERGING = """
from torch import nn

LIMIT, CALLS = 1000, 0


class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Conv2d(3, 8, 3, 4, 1), nn.BatchNorm2d(8), nn.Dropout(0.5), nn.Conv2d(8, classes, 1))

    def forward(self, x):
        global CALLS
        CALLS += 1
        return super().forward(x) * (float("nan") if CALLS > LIMIT else 1.0)
"""


@pytest.fixture
def diverging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    (tmp_path / "diverging_network.py").write_text(DIVERGING)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    importlib.invalidate_caches()
    yield importlib.import_module("diverging_network")
    sys.modules.pop("diverging_network", None)


def test_the_last_good_state_survives(six: Split, tmp_path: Path, diverging: Any) -> None:
    """Of a network of the user's, too."""
    recipe = replace(TINY, network="diverging_network:Net")
    whole = run(recipe, six, tmp_path / "whole")
    states: list[bytes] = []

    def report(progress: Progress) -> None:
        if progress.epoch == 2:
            states.append((tmp_path / "run" / STATE_NAME).read_bytes())

    diverging.CALLS, diverging.LIMIT = 0, 5  # a look at the network, then two steps and one look at the logits an epoch
    with pytest.raises(TrainingError, match=r"nan in epoch 2, step 2.*epoch 1 is kept"):
        run(recipe, six, tmp_path / "run", report)
    assert states == [(tmp_path / "run" / STATE_NAME).read_bytes()]
    diverging.LIMIT = 1000
    assert_same_weights(run(recipe, six, tmp_path / "run"), whole)


@pytest.mark.parametrize("broken", [1, 2, 3])
def test_losses_read_every_few_steps(
    six: Split, tmp_path: Path, diverging: Any, monkeypatch: pytest.MonkeyPatch, broken: int
) -> None:
    """As on a GPU: each step's loss counts, and the first bad one is named, not the one at which it was read."""
    recipe = replace(TINY, network="diverging_network:Net", batch=2, epochs=2)
    each: list[Progress] = []
    run(recipe, six, tmp_path / "each", each.append)
    monkeypatch.setattr(loop, "read_every", lambda device: 2)
    few: list[Progress] = []
    run(recipe, six, tmp_path / "few", few.append)
    assert [(one.epoch, one.step) for one in few] == [(1, 2), (1, 3), (2, 2), (2, 3)]
    assert_same_weights(tmp_path / "few" / "tiny.safetensors", tmp_path / "each" / "tiny.safetensors")
    kinds = [json.loads((tmp_path / kind / HISTORY_NAME).read_text()) for kind in ("each", "few")]
    assert [entry["loss"] for entry in kinds[0]] == [entry["loss"] for entry in kinds[1]]
    diverging.CALLS, diverging.LIMIT = 0, 4 + broken  # a look, an epoch of three steps and a look; then so many more
    with pytest.raises(TrainingError, match=rf"nan in epoch 2, step {broken}:.*epoch 1 is kept"):
        run(recipe, six, tmp_path / "run")


def test_the_optimizer_stays_the_devices_own(six: Split, tmp_path: Path) -> None:
    """A state that another device wrote brings its numbers, not its choice of kernels."""
    recipe = replace(TINY, optimizer="adamw", epochs=2)
    with pytest.raises(Killed):
        run(recipe, six, tmp_path, killer(2, 1))
    state = torch.load(tmp_path / STATE_NAME, weights_only=True)
    state["optimizer"]["param_groups"][0]["fused"] = True
    torch.save(state, tmp_path / STATE_NAME)
    run(recipe, six, tmp_path)
    after = torch.load(tmp_path / STATE_NAME, weights_only=True)
    assert [group["fused"] for group in after["optimizer"]["param_groups"]] == [None]


def test_a_network_whose_source_changed_does_not_resume(six: Split, tmp_path: Path, diverging: Any) -> None:
    recipe = replace(TINY, network="diverging_network:Net")
    with pytest.raises(Killed):
        run(recipe, six, tmp_path / "run", killer(2, 1))
    (tmp_path / "diverging_network.py").write_text(DIVERGING.replace("3, 8, 3", "3, 4, 3").replace("(8", "(4"))
    sys.modules.pop("diverging_network")
    importlib.invalidate_caches()
    with pytest.raises(TrainingError, match=r"does not fit.*diverging_network"):
        run(recipe, six, tmp_path / "run")


def test_a_network_whose_source_changed_goes_on_and_says_so(six: Split, tmp_path: Path, diverging: Any) -> None:
    """It may be a comment, and it may be what the network computes."""
    recipe = replace(TINY, network="diverging_network:Net")
    with pytest.raises(Killed):
        run(recipe, six, tmp_path / "run", killer(2, 1))
    (tmp_path / "diverging_network.py").write_text(DIVERGING + "# a comment\n")
    said: list[str] = []
    run(recipe, six, tmp_path / "run", say=said.append)
    assert any("source of diverging_network:Net has changed" in line for line in said)
    again: list[str] = []
    run(recipe, six, tmp_path / "run", say=again.append)
    assert not any("has changed" in line for line in again), "the state is of what it is now"


OWN = """
import torch
from torch import nn


class Wide(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Conv2d(3, classes, 3, 4, 1))

    def forward(self, x):
        assert x.shape[3] % 256 == 0, "a width of 256, or twice"
        return super().forward(x)


def frozen(classes):
    return nn.Conv2d(3, classes, 3, 4, 1).requires_grad_(False)


def nothing(classes):
    return nn.AvgPool2d(4)


def lazy(classes):
    return nn.LazyConv2d(classes, 1)
"""


@pytest.mark.parametrize(
    ("factory", "words"),
    [
        ("Wide", r"fails on a crop of 64x128 \(AssertionError: a width of 256, or twice\): choose a --crop"),
        ("frozen", "has no weight to train"),
        ("nothing", "has no weight to train"),
        ("lazy", "has lazy layers"),
    ],
)
def test_a_network_that_cannot_be_trained_is_told_before_anything_else(
    six: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factory: str, words: str
) -> None:
    (tmp_path / "own_network.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        with pytest.raises(TrainingError, match=words):
            run(replace(TINY, network=f"own_network:{factory}"), six, tmp_path / "run")
    finally:
        sys.modules.pop("own_network", None)
    assert not (tmp_path / "run").exists()


def test_a_network_with_weights_of_five_axes_learns(six: Split, tmp_path: Path) -> None:
    network = "strangers:Volume"
    path = run(replace(TINY, network=network, epochs=1), loaded(six, 4), tmp_path / "run")
    assert load_checkpoint(str(path), network).network == network


def test_a_finished_run_keeps_what_it_was_evaluated_on(six: Split, two: Split, tmp_path: Path) -> None:
    one = replace(TINY, epochs=1)
    path = run(one, six, tmp_path, validation=two, test=replace(two, split="test"))
    before = load_checkpoint(str(path)).metrics
    assert set(before) == {"streets:val", "streets:test"}
    run(one, six, tmp_path)
    assert load_checkpoint(str(path)).metrics == before


def test_a_start_of_nan_is_named(six: Split, tmp_path: Path) -> None:
    path = run(replace(TINY, epochs=1), six, tmp_path / "start")
    initial = load_checkpoint(str(path))
    state = load_file(path)
    next(value for value in state.values() if value.is_floating_point()).view(-1)[0] = float("nan")
    torch.save(state, tmp_path / "nan.pt")
    broken = replace(initial, path=tmp_path / "nan.pt", file_sha256="")
    with pytest.raises(CheckpointError, match=r"nan\.pt holds NaN or infinity in "):
        run(replace(TINY, initial="x"), six, tmp_path / "run", initial=broken)


def test_more_than_there_is_is_said(six: Split, tmp_path: Path) -> None:
    said: list[str] = []
    run(replace(TINY, epochs=1, batch=50, frames=100), six, tmp_path, say=said.append)
    assert "--batch 50 is more than the 6 frames of streets train: it is 6" in said
    assert "--frames 100 is more than the 6 frames of streets train: it is 6" in said


def test_frames_that_were_half_decoded_leave_nothing(six: Split, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is damaged"):
        decoded_frames(counted(six, [], six.references[4].name), tmp_path)
    assert list(tmp_path.iterdir()) == []


def void(split: Split, *which: int) -> Split:
    """The split with some frames all void."""

    def blank(reference: FrameReference) -> FrameReference:
        frame = reference.load()
        blanked = replace(frame, labels=np.full_like(frame.labels, IGNORE))
        return replace(reference, identity=lambda: "void " + reference.name, load=lambda: blanked)

    return replace(
        split, references=tuple(blank(item) if index in which else item for index, item in enumerate(split.references))
    )


def test_batches_of_nothing_but_void_teach_nothing(six: Split, tmp_path: Path) -> None:
    losses: list[float] = []
    path = run(
        replace(TINY, batch=2, epochs=1),
        void(six, 0, 1, 2, 3, 4),
        tmp_path,
        lambda progress: losses.append(progress.loss),
    )
    assert np.isfinite(losses).all()
    assert losses.count(0.0) >= 2
    load_network(load_checkpoint(str(path)))


def test_no_frame_holds_a_class(six: Split, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="class"):
        run(TINY, void(six, *range(6)), tmp_path)


@pytest.mark.parametrize("stride", [1, 2, 4, 8])
def test_loss(stride: int) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 5, 8, 12, requires_grad=True)
    labels = torch.randint(0, 5, (2, 64, 96), dtype=torch.uint8)
    labels[:, :20] = IGNORE
    alone = Group(0, 1, torch.device("cpu"))
    recipe = replace(TINY, loss_stride=stride)
    loss = group_loss(logits, labels, recipe, None, alone)
    if stride == 1:
        full = F.interpolate(logits, size=(64, 96), mode="bilinear", align_corners=False)
        torch.testing.assert_close(loss, F.cross_entropy(full, labels.long(), ignore_index=IGNORE))
        weights = torch.rand(5)
        torch.testing.assert_close(
            group_loss(logits, labels, recipe, weights, alone),
            F.cross_entropy(full, labels.long(), weights, ignore_index=IGNORE),
        )
    assert torch.isfinite(loss)
    assert float(loss.detach()) > 0
    nothing = group_loss(logits, torch.full_like(labels, IGNORE), replace(recipe, lovasz=1.0), None, alone)
    assert float(nothing.detach()) == 0.0
    nothing.backward()
    assert not logits.grad.any()


@pytest.mark.parametrize(("frames", "batch"), [(6, 1), (1, 4)])
def test_one_image_a_step_is_refused_where_batch_norm_cannot_take_it(
    six: Split, tmp_path: Path, frames: int, batch: int
) -> None:
    with pytest.raises((TrainingError, UsageError), match="--batch") as caught:
        run(replace(TINY, batch=batch), replace(six, references=six.references[:frames]), tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"epochs": 0}, {"batch": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"learning_rate": -1.0},
        {"scale": (0.0, 1.0)}, {"scale": (2.0, 1.0)}, {"loss_stride": 3}, {"average": 1.0}, {"average": -0.1},
        {"class_mix": -0.1}, {"class_mix": 1.5},
        {"teacher": "hash"}, {"distillation": 0.5}, {"teacher": "hash", "distillation": 1.1},
        {"crop": "10x10"}, {"crop": "64"}, {"draw_size": "1x1"}, {"seed": -1}, {"seed": 1 << 43}, {"warmup_steps": -5},
        {"lovasz": -0.5}, {"step_factor": 0.0}, {"colour_jitter": -0.1}, {"white_balance": 1.1},
    ],
)  # fmt: skip
def test_settings_that_cannot_be_trained_with(six: Split, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        run(replace(TINY, **changes), six, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_camvid(camvid_tree: Path, tmp_path: Path) -> None:
    recipe = replace(TINY, dataset="camvid", arguments={"camvid": True}, batch=2, epochs=2, crop="64x64")
    splits = [open_split("camvid", name, camvid_tree) for name in ("train", "val", "test")]
    path = run(recipe, splits[0], tmp_path / "run", validation=splits[1], test=splits[2])
    checkpoint = load_checkpoint(str(path))
    assert (checkpoint.dataset, checkpoint.arguments, len(checkpoint.class_names)) == ("camvid", {"camvid": True}, 11)
    assert set(checkpoint.metrics) == {"camvid:val", "camvid:test"}
    assert checkpoint.metrics["camvid:val"]["iiou"] is None
    assert load_network(checkpoint)(torch.randn(1, 3, 64, 64)).shape == (1, 11, 8, 8)


def test_a_class_that_never_occurs(six: Split, tmp_path: Path) -> None:
    """Named, before anything is trained."""
    few = replace(six, references=six.references[:2])
    with pytest.raises(TrainingError, match=r"never occur.*--missing-classes"):
        run(TINY, few, tmp_path, missing_classes=False)
    assert not (tmp_path / STATE_NAME).exists()


def test_a_kill_before_its_validation_leaves_no_epoch_unmeasured(
    six: Split, two: Split, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when the state was kept and its mIoU was not measured: a resumed run measures it first."""
    from edgekit.training import loop

    def killed(*_: Any) -> Any:
        raise Killed

    recipe = replace(TINY, epochs=3)
    options: dict[str, Any] = {"validation": two, "validate_every": 1}
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(loop, "evaluate_network", killed)
        run(recipe, six, tmp_path / "run", **options)
    run(recipe, six, tmp_path / "run", **options)
    history = json.loads((tmp_path / "run" / "history.json").read_text())
    assert [("miou" in entry) for entry in history] == [True, True, False]  # the last is in the checkpoint's metrics


def test_the_history_of_a_run_survives_a_kill(six: Split, two: Split, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        run(TINY, six, tmp_path, killer(3, 1), validation=two, validate_every=2)
    run(TINY, six, tmp_path, validation=two, validate_every=2)
    history = json.loads((tmp_path / HISTORY_NAME).read_text())
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert all(entry["loss"] > 0 and entry["images_per_second"] > 0 for entry in history)
    assert history[0]["learning_rate"] > history[2]["learning_rate"]


# Recipes


def test_the_paper_s_recipe_for_camvid() -> None:
    """Section 5.2: 0.005 for 100 epochs, then 0.0005."""
    recipe = TrainingRecipe(**PRESETS["paper-camvid"])
    recipe.check()
    assert (recipe.batch, recipe.momentum, recipe.weight_decay, recipe.arguments) == (8, 0.9, 1e-5, {"camvid": True})
    rates = [recipe.learning_rate_at(epoch * 58 + step, 58) for epoch in (0, 99, 100, 199) for step in (0, 57)]
    assert rates == pytest.approx([0.005] * 4 + [0.0005] * 4)


def test_the_paper_s_recipe_for_cityscapes() -> None:
    """Section 5.2: poly with power 0.9 over 800 epochs."""
    recipe = TrainingRecipe(**PRESETS["paper-cityscapes"])
    assert (recipe.batch, recipe.crop, recipe.epochs, recipe.learning_rate) == (4, "1024x2048", 800, 0.02)
    assert recipe.learning_rate_at(400 * 743, 743) == pytest.approx(0.02 * 0.5**0.9)


def test_weights_of_rare_classes() -> None:
    counts = np.array([1000, 100, 10], np.int64)
    assert class_weights(counts, 0.0) is None
    weights = class_weights(counts, 1.0)
    assert weights is not None
    assert (weights.numpy() * counts).sum() == pytest.approx(counts.sum()), "mean 1 over the pixels"
    assert weights[2] / weights[0] == pytest.approx(100)
    absent = class_weights(np.array([1000, 0, 100, 10, 0], np.int64), 1.0)
    assert absent is not None
    assert absent.numpy() == pytest.approx(weights.numpy()[[0, 2, 1, 2, 2]]), "a teacher may name a class of no label"


@given(st.integers(0, 1 << 30))
def test_lovasz_is_the_jaccard_loss_of_labels(seed: int) -> None:
    """Of one-hot probabilities it is the mean over the present classes of 1 - IoU, computed here by counting."""
    generator = np.random.default_rng(seed)
    truth, labels = generator.integers(0, 4, (2, 1, 6, 7))
    truth[0, 0] = IGNORE
    logits = torch.from_numpy(np.eye(4, dtype=np.float32)[labels] * 1000).permute(0, 3, 1, 2)
    expected = []
    for index in np.unique(truth[truth != IGNORE]):
        a, b = (labels == index) & (truth != IGNORE), truth == index
        expected.append(1 - (a & b).sum() / (a | b).sum())
    loss = float(lovasz_softmax(logits, torch.from_numpy(truth.astype(np.int64))))
    assert loss == pytest.approx(np.mean(expected), abs=1e-5)


def test_training_goes_on_from_a_checkpoint(six: Split, tmp_path: Path) -> None:
    """Of other classes, too: the classifier starts anew, all else is taken; what it was is written down."""
    first = load_checkpoint(str(run(replace(TINY, epochs=1), six, tmp_path / "first")))
    recipe = replace(TINY, epochs=1, initial=first.sha256, learning_rate=1e-9, scale=(1.0, 1.0))
    second = load_checkpoint(str(run(recipe, six, tmp_path / "second", initial=first)))
    before, after = load_file(first.path), load_file(second.path)
    for key, value in before.items():
        if key.endswith("weight"):
            torch.testing.assert_close(after[key], value, atol=1e-5, rtol=0)
    assert second.recipe["initial"] == first.sha256
    assert second.recipe["initial_checkpoint"]["recipe"]["learning_rate"] == TINY.learning_rate
    with pytest.raises(TrainingError, match="initial"):
        run(replace(recipe, seed=2), six, tmp_path / "first", initial=first)


def test_a_checkpoint_of_another_kind_is_no_start(six: Split, tmp_path: Path) -> None:
    first = load_checkpoint(str(run(replace(TINY, epochs=1), six, tmp_path / "first")))
    (tmp_path / "other_kind.py").write_text(DIVERGING)
    sys.path.insert(0, str(tmp_path))
    try:
        recipe = replace(TINY, network="other_kind:Net", initial=first.sha256)
        with pytest.raises(TrainingError, match="--initial"):
            run(recipe, six, tmp_path / "second", initial=first)
    finally:
        sys.path.remove(str(tmp_path))


def test_a_teacher_teaches(six: Split, tmp_path: Path) -> None:
    """By its part of the loss: all of it, and what the labels say is nothing to the student; it resumes, and is recorded."""
    teacher = load_checkpoint("spssn-streets")
    recipe = replace(TINY, teacher=teacher.sha256, distillation=1.0)
    first = run(recipe, six, tmp_path / "first", teacher=teacher)

    def mirrored(reference: FrameReference) -> FrameReference:
        frame = reference.load()
        return replace(reference, load=lambda: replace(frame, labels=frame.labels[:, ::-1].copy()))

    other = replace(six, references=tuple(mirrored(reference) for reference in six.references))
    assert_same_weights(first, run(recipe, other, tmp_path / "other", teacher=teacher))
    with pytest.raises(Killed):
        run(recipe, six, tmp_path / "killed", killer(2, 1), teacher=teacher)
    assert_same_weights(first, run(recipe, six, tmp_path / "killed", teacher=teacher))
    labels = run(TINY, six, tmp_path / "labels")
    assert any(not torch.equal(value, load_file(labels)[key]) for key, value in load_file(first).items())
    described = load_checkpoint(str(first)).recipe
    assert (described["teacher"], described["distillation"]) == (teacher.sha256, 1.0)
    assert described["teacher_checkpoint"] == {"name": "spssn-streets", "recipe": dict(teacher.recipe)}
    x = torch.from_numpy(np.stack([reference.load().image for reference in six.references]))
    x = normalize(x, teacher.normalization)
    made = [run(replace(recipe, epochs=epochs), six, tmp_path / f"of {epochs}", teacher=teacher) for epochs in (1, 30)]
    with torch.no_grad():  # the longer, the nearer to what the teacher says
        taught = load_network(teacher)(x).argmax(1)
        agreeing = [
            float((load_network(load_checkpoint(str(one)))(x).argmax(1) == taught).float().mean()) for one in made
        ]
    assert agreeing[1] > agreeing[0]


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 1 << 16), st.integers(2, 12), st.sampled_from([1, 2, 4]))
def test_what_a_teacher_s_part_weighs(seed: int, classes: int, stride: int) -> None:
    """By its definition, in numpy; as sure of itself as labels are, a teacher is worth what labels are worth."""
    generator = torch.Generator().manual_seed(seed)
    ours, theirs = (torch.randn(2, classes, 8, 12, generator=generator) * 3 for _ in range(2))
    weights = torch.rand(classes, generator=generator) + 0.1
    labels = torch.randint(0, classes, (2, 8, 12), generator=generator, dtype=torch.uint8)
    p, q = (value.double().softmax(1).numpy() for value in (theirs, ours))
    w = weights.double().numpy()[:, None, None]
    total, weight = taught_cross_entropy(ours, theirs, weights)
    assert float(total / weight) == pytest.approx(-(w * p * np.log(q)).sum() / (w * p).sum(), rel=1e-4)
    alone = Group(0, 1, torch.device("cpu"))
    recipe = replace(TINY, loss_stride=stride, teacher="hash", distillation=0.25)
    sure = 1e4 * F.one_hot(labels.long(), classes).permute(0, 3, 1, 2).float()
    full = replace(recipe, loss_stride=1)
    assert float(group_loss(ours, labels, full, weights, alone, sure)) == pytest.approx(
        float(group_loss(ours, labels, full, weights, alone)), rel=1e-4
    )
    labels[0, :3] = IGNORE
    both, taught, labelled = (
        float(group_loss(ours, labels, one, weights, alone, other))
        for one, other in ((recipe, theirs), (replace(recipe, distillation=1.0), theirs), (recipe, None))
    )
    assert both == pytest.approx(0.75 * labelled + 0.25 * taught, rel=1e-5)


def test_a_teacher_of_another_kind_is_refused(six: Split, tmp_path: Path) -> None:
    streets = load_checkpoint("spssn-streets")
    for teacher, sentence in (
        (load_checkpoint("spssn-camvid"), "knows 11 classes that are not the 19 of streets"),
        (replace(streets, normalization=Normalization(mean=(0.0, 0.0, 0.0))), "reads pixels normalized by"),
    ):
        recipe = replace(TINY, teacher=teacher.sha256, distillation=0.5)
        with pytest.raises(TrainingError, match=sentence):
            run(recipe, six, tmp_path / "run", teacher=teacher)


def test_a_state_from_before_a_setting_existed_goes_on(six: Split, tmp_path: Path) -> None:
    """With the effect that the setting's default has."""
    whole = run(TINY, six, tmp_path / "whole")
    with pytest.raises(Killed):
        run(TINY, six, tmp_path / "older", killer(2, 1))
    path = tmp_path / "older" / STATE_NAME
    stored = torch.load(path, weights_only=True)
    del stored["recipe"]["teacher"], stored["recipe"]["distillation"]
    torch.save(stored, path)
    assert_same_weights(whole, run(TINY, six, tmp_path / "older"))
    torch.save(stored, path)
    with pytest.raises(TrainingError, match="a run with another --teacher"):
        run(replace(TINY, teacher="hash", distillation=0.5), six, tmp_path / "older")


def test_mixed_precision_is_the_same_training_but_for_rounding(six: Split, tmp_path: Path) -> None:
    losses = []
    for precision in ("float32", "bfloat16"):
        seen: list[Progress] = []
        recipe = replace(TINY, precision=cast(Any, precision), epochs=2, learning_rate=1e-3)
        state = load_file(run(recipe, six, tmp_path / precision, seen.append))
        assert all(value.dtype == torch.float32 for value in state.values() if value.is_floating_point())
        losses.append([progress.loss for progress in seen])
    assert losses[1] == pytest.approx(losses[0], rel=0.05)
    assert losses[1] != losses[0]


@pytest.mark.parametrize(("kernel", "stride"), [(3, 1), (3, 2), (5, 1), (5, 2)])
def test_gradients_of_depthwise_convolutions_in_mixed_precision(kernel: int, stride: int) -> None:
    """Those of float32 but for rounding, whichever precision a convolution runs in, by the same parameters and names."""
    torch.manual_seed(0)
    layer = torch.nn.Sequential(torch.nn.Conv2d(8, 8, kernel, stride, kernel // 2, groups=8))
    x = torch.randn(2, 8, 16, 24)
    names = list(layer.state_dict())
    found = []
    for precision in ("float32", "bfloat16"):
        if precision == "bfloat16":
            mixed.prepare(layer)
        layer.zero_grad()
        with mixed.autocast(torch.device("cpu"), precision):
            y = layer(x)
        y.float().square().mean().backward()
        found.append((y.float().detach(), layer[0].weight.grad.clone()))
    assert y.dtype == (torch.float32 if kernel > 3 or stride > 1 else torch.bfloat16)  # where oneDNN is slow
    for exact, rounded in zip(*found, strict=True):
        torch.testing.assert_close(rounded, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))
    assert list(layer.state_dict()) == names


def test_frames_brought_to_another_size(six: Split, two: Split, tmp_path: Path) -> None:
    """Crops hold upscaled pixels, and validation sees what training saw, scored at the labels' own size."""
    recipe = replace(TINY, frame_size="128x256", crop="128x256", scale=(1.0, 1.0), flip=False, colour_jitter=0.0)
    packed = marked(64, 128)
    image, labels = augment(packed, recipe, np.random.default_rng(0))
    assert np.array_equal(labels, packed[..., 3].repeat(2, 0).repeat(2, 1))
    assert image.shape == (128, 256, 3)
    path = run(replace(recipe, epochs=1, batch=2), six, tmp_path, validation=two)
    assert load_checkpoint(str(path)).metrics["streets:val"]["frames"] == 2


# Samples


def marked(height: int, width: int) -> np.ndarray:
    """A frame whose every channel tells the label."""
    labels = (np.indices((height, width)).sum(0) // 16 % 12).astype(np.uint8)
    return np.dstack([labels * 20] * 3 + [labels])


@pytest.mark.parametrize("size", [(64, 128), (200, 300), (70, 65)])
def test_augmented_pixels_and_labels_stay_together(size: tuple[int, int]) -> None:
    recipe = replace(TINY, crop="80x96", colour_jitter=0.0)
    padded = False
    for seed in range(20):
        image, labels = augment(marked(*size), recipe, np.random.default_rng(seed))
        again, _ = augment(marked(*size), recipe, np.random.default_rng(seed))
        assert np.array_equal(image, again)
        assert image.shape == (80, 96, 3)
        assert labels.shape == (80, 96)
        assert image.dtype == labels.dtype == np.uint8
        assert image.flags.c_contiguous
        assert labels.flags.c_contiguous
        inside = labels != IGNORE
        padded |= not inside.all()
        assert set(np.unique(labels[inside]).tolist()) <= set(range(12))
        assert (image[~inside] == 124).all()
        agree = np.abs(image[..., 0][inside].astype(int) - labels[inside] * 20) <= 10
        assert agree.mean() > 0.75, "edges between labels are blurred, nothing else"
    assert padded == (size != (200, 300))


def test_unscaled_whole_crops_are_the_frame() -> None:
    packed = marked(64, 128)
    image, labels = augment(
        packed, replace(TINY, scale=(1.0, 1.0), flip=False, colour_jitter=0.0), np.random.default_rng(0)
    )
    assert np.array_equal(image, packed[..., :3])
    assert np.array_equal(labels, packed[..., 3])


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), classes=st.integers(0, 6))
def test_classes_are_laid_over_whole(seed: int, classes: int) -> None:
    generator = np.random.default_rng(seed)
    truths = [generator.choice([*range(classes), IGNORE], (8, 12)).astype(np.uint8) for _ in range(2)]
    images = [np.full((8, 12, 3), fill, np.uint8) for fill in (10, 200)]
    image, labels = paste_classes((images[0], truths[0]), (images[1], truths[1]), generator)
    laid = image[..., 0] == 200
    assert np.array_equal(labels, np.where(laid, truths[1], truths[0]))
    shown = set(np.unique(truths[1]).tolist()) - {IGNORE}
    chosen = set(np.unique(truths[1][laid]).tolist())
    assert len(chosen) == (len(shown) + 1) // 2
    assert chosen <= shown
    assert np.array_equal(laid, np.isin(truths[1], list(chosen))), "all pixels of a chosen class, no others"


def test_the_share_of_mixed_crops(six: Split, tmp_path: Path) -> None:
    index, path = decoded_frames(six, tmp_path)
    plain = replace(TINY, epochs=20)
    crops = {share: Crops(index, path, replace(plain, class_mix=share)) for share in (0.0, 0.5, 1.0)}
    same = {
        share: np.mean([torch.equal(crops[0.0][n][0], crops[share][n][0]) for n in range(100)]) for share in (0.5, 1.0)
    }
    assert same[1.0] == 0
    assert 0.3 < same[0.5] < 0.7, "a crop that is not mixed is the one that it was without mixing"


def test_every_epoch_has_its_own_order() -> None:
    first, second = (epoch_order(50, TINY, epoch) for epoch in (0, 1))
    assert first == epoch_order(50, TINY, 0)
    assert sorted(first) == list(range(50))
    assert sorted(second) == list(range(50, 100))
    assert [position - 50 for position in second] != first


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 40), st.integers(0, 3))
def test_processes_share_every_batch(size: int, share: int, frames: int, epoch: int) -> None:
    """Together they see, in every batch of every epoch, what one process would; a resumed one goes on where it stopped."""
    recipe = replace(TINY, batch=size * share)
    alone = list(BatchOrder(frames, recipe))
    steps = max(1, frames // recipe.batch)
    assert len(alone) == len(BatchOrder(frames, recipe)) == steps * recipe.epochs
    assert list(BatchOrder(frames, recipe, epoch)) == alone[steps * epoch :]
    assert {len(batch) for batch in alone} == {min(frames, recipe.batch)}
    for number in range(recipe.epochs):
        seen = [position for batch in alone[steps * number : steps * (number + 1)] for position in batch]
        assert seen == epoch_order(frames, recipe, number)[: len(seen)]
    together = [list(BatchOrder(frames, recipe, rank=rank, size=size)) for rank in range(size)]
    for batch, parts in zip(alone, zip(*together, strict=True), strict=True):
        assert sorted(position for part in parts for position in part) == sorted(batch)


def test_colours_change_as_the_recipe_says(six: Split) -> None:
    """One pass over the pixels gives what brightness, contrast, saturation and gains one after another give."""
    frame = six.references[0].load()
    packed = np.dstack([frame.image // 3 + 60, frame.labels])  # nothing that any factor would clip
    recipe = replace(TINY, scale=(1.0, 1.0), flip=False, colour_jitter=0.2, white_balance=0.1)
    changed, labels = augment(packed, recipe, np.random.default_rng(3))
    drawn = np.random.default_rng(3)
    drawn.uniform(), drawn.integers(0, 1), drawn.integers(0, 1)  # its scale and place
    brightness, contrast, saturation = drawn.uniform(0.8, 1.2, 3)
    gains = drawn.uniform(0.9, 1.1, 3)
    values = packed[..., :3] * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = values.mean(2, keepdims=True)
    expected = (grey + (values - grey) * saturation) * gains
    assert expected.min() > 0
    assert expected.max() < 255
    assert np.abs(changed - expected).max() <= 0.51
    assert np.array_equal(labels, frame.labels)
    assert np.abs(changed.astype(int) - packed[..., :3]).max() > 5


def test_a_state_is_kept_every_few_epochs(six: Split, tmp_path: Path) -> None:
    recipe = replace(TINY, epochs=5)
    whole = run(recipe, six, tmp_path / "whole")
    with pytest.raises(Killed):
        run(recipe, six, tmp_path / "killed", killer(4, 2), save_every=2)
    said: list[str] = []
    assert_same_weights(run(recipe, six, tmp_path / "killed", say=said.append, save_every=2), whole)
    assert "resuming after epoch 2 of 5" in said
    assert torch.load(tmp_path / "killed" / STATE_NAME, weights_only=True)["epoch"] == 5, (
        "the last one whatever its number"
    )


def counted(split: Split, loads: list[str], broken: str = "") -> Split:
    def count(reference: FrameReference) -> FrameReference:
        def load() -> Frame:
            if reference.name == broken:
                raise DataError(f"{broken} is damaged")
            loads.append(reference.name)
            return reference.load()

        return replace(reference, load=load)

    return replace(split, references=tuple(count(reference) for reference in split.references))


def test_frames_are_decoded_once(six: Split, tmp_path: Path) -> None:
    loads: list[str] = []
    index, path = decoded_frames(counted(six, loads), tmp_path)
    again, _ = decoded_frames(counted(six, loads), tmp_path)
    assert index == again
    assert len(loads) == 6
    data = np.memmap(path, np.uint8, "r")
    for (offset, height, width), reference in zip(index, six.references, strict=True):
        packed = data[offset : offset + height * width * 4].reshape(height, width, 4)
        frame = reference.load()
        assert np.array_equal(packed[..., :3], frame.image)
        assert np.array_equal(packed[..., 3], frame.labels)
    decoded_frames(counted(six.first(3), loads), tmp_path)
    assert len(loads) == 9, "other frames are decoded anew"


def test_a_bad_frame_is_named_and_mended_by_the_next_run(six: Split, tmp_path: Path) -> None:
    loads: list[str] = []
    name = six.references[3].name
    with pytest.raises(DataError, match=name):
        decoded_frames(counted(six, loads, broken=name), tmp_path)
    index, _ = decoded_frames(counted(six, loads), tmp_path)
    assert len(index) == 6
    assert len(loads) == 9
