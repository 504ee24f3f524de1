"""The commands: what they load, what they say, how they end."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from seam import MOMENT, Done, call, edgekit, environment, files, own_network, partials, short_latency

from calibration.datasets import open_split
from edgekit.core.contract import LATENCY_CONTRACTS, LatencyContract
from edgekit.core.errors import ConversionError
from edgekit.core.files import sha256_path
from edgekit.core.values import Provenance, Size
from edgekit.networks.checkpoint import Description, load_checkpoint, load_network, save_checkpoint, trained_on
from edgekit.pipeline.inputs import evaluation_split, verification_split
from edgekit.pipeline.int8 import fewest
from reports.quantization import FrameCount, Loss, Quantized, Repair, Step, Verdict, Where, over_budget

HEAVY = (
    "torch", "coremltools", "openvino", "litert_torch", "ai_edge_litert", "ai_edge_quantizer", "onnx", "onnxruntime",
    "onnxscript", "nncf", "matplotlib",
)  # fmt: skip
COMMANDS = (
    "run", "lint", "convert", "quantize", "sensitivity", "compare", "evaluate", "bench", "report", "predict", "train", "targets", "doctor",
    "devices",
)  # fmt: skip
OWN = {
    "coreml": "coreml",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tflite": "tflite",
}
SIZE = "64x96"
BARE = f"""
import sys
from importlib.machinery import PathFinder
HEAVY = {HEAVY!r}
class Bare:  # nothing heavy is installed: finders answer that they do not know it, as in a bare environment
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in HEAVY else PathFinder.find_spec(name, path, target)
    find_distributions = PathFinder.find_distributions
    invalidate_caches = PathFinder.invalidate_caches
sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]
"""
Call = Callable[..., Done]


@pytest.fixture
def run_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    """``run_here("convert", ...)`` from an empty folder, in this process."""
    monkeypatch.chdir(tmp_path)
    for variable in ("CITYSCAPES_DATASET", "CAMVID_ROOT"):
        monkeypatch.delenv(variable, raising=False)
    return lambda *arguments: call(monkeypatch, capfd, *arguments)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a user's network and its state dict."""
    folder = tmp_path_factory.mktemp("cli")
    own_network(folder)
    return folder


@pytest.fixture(scope="module")
def converted(place: Path) -> Done:
    return edgekit(
        "convert", "own.pth", "--network", "ownnet:factory", "--classes", "streets", "--target", "onnxruntime",
        "--size", SIZE, "--out", "made", "--json", cwd=place, env=environment(place),
    )  # fmt: skip


@pytest.fixture(scope="module")
def quantized(place: Path) -> Done:
    """With a budget that does not hold: on this one frame a layer of the three costs int8 nothing, so it is not put in float."""
    return edgekit(
        "quantize", "own.pth", "--network", "ownnet:factory", "--classes", "streets", "--target", "onnxruntime",
        "--size", SIZE, "--out", "made", "--json", "--calib", "streets", "--samples", 1, "--eval", "streets:val",
        "--frames", 2, "--max-drop", 0, "--threads", 1, cwd=place, env=environment(place),
    )  # fmt: skip


@pytest.fixture(scope="module")
def artifact(place: Path, converted: Done) -> Path:
    assert converted.code == 0, converted.err
    return Path(place / converted.document["artifacts"][0]["folder"])


def python(code: str, *paths: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], env=environment(*paths), capture_output=True, text=True, timeout=120
    )


# What is loaded


@pytest.mark.parametrize(
    "code",
    [
        "import edgekit",
        "import edgekit; dir(edgekit); edgekit.Size(64, 96)",
        "import edgekit.cli.app as a, sys; sys.argv = ['edgekit', '--help']\ntry: a.main()\nexcept SystemExit: pass",
        "import edgekit.cli.app as a, sys; sys.argv = ['edgekit', 'run', '--help']\ntry: a.main()\nexcept SystemExit: pass",
        "import edgekit.cli.app as a, sys; sys.argv = ['edgekit', 'targets']\ntry: a.main()\nexcept SystemExit: pass",
    ],
    ids=["import", "names", "help", "run help", "targets"],
)
def test_nothing_heavy_is_loaded(code: str) -> None:
    done = python(f"{code}\nimport sys; print('loaded', sorted(set({HEAVY!r}) & set(sys.modules)))")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "loaded []"


def test_every_target_module_imports_in_a_bare_environment() -> None:
    done = python(
        BARE + "import importlib, pkgutil, targets\n"
        "names = [m.name for m in pkgutil.iter_modules(targets.__path__, 'targets.')]\n"
        "for name in names: importlib.import_module(name)\n"
        "print(*names)"
    )
    assert done.returncode == 0, done.stderr
    assert {f"targets.{name}" for name in OWN} <= set(done.stdout.split())


def test_targets_in_a_bare_environment_say_what_mends_them() -> None:
    code = "import sys\nfrom edgekit.cli.app import main\nsys.argv = ['edgekit', 'targets', *sys.argv[1:]]\n"
    done = python(BARE + code + "sys.argv.append('--json')\nmain()")
    assert done.returncode == 0, done.stderr
    rows = {row["target"]: row for row in json.loads(done.stdout)["targets"]}
    assert set(OWN) <= set(rows)
    for name, extra in OWN.items():
        assert not rows[name]["available"]
        assert f"pip install 'edgekit[{extra}]'" in rows[name]["missing"]
    words = python(BARE + code + "main()")
    assert words.returncode == 0
    assert words.stdout.count("pip install") == len(OWN)


def test_commands_in_a_bare_environment_say_what_mends_them(tmp_path: Path) -> None:
    code = BARE + "import sys\nfrom edgekit.cli.app import main\nsys.argv = {}\nmain()"
    for arguments in (["edgekit", "doctor"], ["edgekit", "convert", "x.pth", "--target", "openvino"]):
        done = python(code.format(repr(arguments)))
        assert "Traceback" not in done.stderr
        assert done.returncode == (0 if arguments[1] == "doctor" else 1)


# What they say


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command: str, run_here: Call) -> None:
    done = run_here(command, "--help")
    assert done.code == 0
    assert f"Example: edgekit {command}" in " ".join(done.out.split())
    assert "--json" in done.out


def test_the_commands_are_these(run_here: Call) -> None:
    done = run_here("--help")
    listed = re.findall(r"^  ([a-z]+)  ", done.out.split("Commands:")[1], re.M)
    assert tuple(listed) == COMMANDS


def test_version(run_here: Call) -> None:
    from edgekit import __version__

    assert run_here("--version").out == f"{__version__}\n"


# Exit codes


USAGE = {
    "too small": (["convert", "x.pth", "--size", "32x128"], "at least 64 pixels"),
    "not a size": (["convert", "x.pth", "--size", "banana"], "512x1024"),
    "a size of one number": (["predict", "CHECKPOINT", "IMAGE", "--size", "512"], "512x1024"),
    "a negative size": (["evaluate", "CHECKPOINT", "--size", "-64x96"], "512x1024"),
    "target": (["convert", "x.pth", "--target", "banana"], "onnxruntime"),
    "targets of run": (["run", "CHECKPOINT", "--targets", "onnxruntime,banana"], "banana"),
    "precision": (["run", "CHECKPOINT", "--precisions", "int4"], "fp32"),
    "precision that no target has": (["run", "CHECKPOINT", "--targets", "tflite", "--precisions", "fp16"], "fp16"),
    "int8 of convert": (["convert", "CHECKPOINT", "--precision", "int8"], "edgekit quantize"),
    "dataset": (["evaluate", "CHECKPOINT", "--data", "banana"], "streets"),
    "calibration dataset": (["quantize", "CHECKPOINT", "--calib", "banana"], "streets"),
    "split": (["evaluate", "CHECKPOINT", "--split", "banana", "--size", SIZE], "train, val, test"),
    "eval": (["quantize", "CHECKPOINT", "--calib", "streets", "--eval", "streets"], "streets:val"),
    "device of bench": (["bench", "x", "--device", "banana"], "local"),
    "device of run": (["run", "CHECKPOINT", "--device", "banana"], "local"),
    "output": (["convert", "CHECKPOINT", "--output", "banana"], "logits"),
    "output stride": (["convert", "CHECKPOINT", "--output-stride", "3"], "1, 2, 4 or 8"),
    "output stride of logits": (
        ["convert", "CHECKPOINT", "--output", "logits", "--output-stride", "8"],
        "--output labels",
    ),
    "preset": (["train", "--preset", "banana"], "paper-camvid"),
    "split of train": (["train", "--split", "test"], "train+val"),
    "precision of train": (["train", "--precision", "float16"], "bfloat16"),
    "epochs of the step schedule": (["train", "--schedule", "step", "--step-epochs", "100,soon"], "100,150"),
    "teacher without its part": (["train", "--teacher", "spssn-camvid"], "--distillation"),
    "part without its teacher": (["train", "--distillation", "0.5"], "--teacher"),
    "network of no teacher": (["train", "--teacher-network", "spssn"], "--teacher"),
    "precision of no target": (
        ["convert", "CHECKPOINT", "--target", "tflite,onnxruntime", "--precision", "fp16"],
        "none has fp16",
    ),
    "step epochs without their schedule": (["train", "--step-epochs", "100"], "--schedule step"),
    "budget of points": (["quantize", "CHECKPOINT", "--calib", "streets", "--max-drop", "1"], "0.01 allows one point"),
    "budget that is none": (["quantize", "CHECKPOINT", "--calib", "streets", "--max-drop", "nan"], "0.01"),
    "negative budget": (["quantize", "CHECKPOINT", "--calib", "streets", "--max-drop=-1"], "0 or more"),
    "empty target": (["convert", "CHECKPOINT", "--target", ""], "--target was given and names nothing"),
    "empty targets": (["run", "CHECKPOINT", "--targets", " ,"], "--targets was given and names nothing"),
    "empty precisions": (["run", "CHECKPOINT", "--precisions", ""], "--precisions was given and names nothing"),
    "empty device": (["bench", "x", "--device", ""], "--device was given and names nothing"),
    "folder whose name is no text": (["convert", "CHECKPOINT", "--out", "a\udcff"], "UTF-8"),
    "network": (["convert", "x.pth", "--network", "no.such:thing", "--classes", "streets"], "package.module:factory"),
}


@pytest.mark.parametrize("case", USAGE)
def test_usage(case: str, run_here: Call, tmp_path: Path, small_checkpoint: Path) -> None:
    """Two, one sentence that says what would be right, and nothing written."""
    (tmp_path / "x.pth").write_bytes(b"")
    Image.new("RGB", (8, 8)).save(tmp_path / "image.png")
    before = files(tmp_path)
    arguments, expected = USAGE[case]
    names = {"CHECKPOINT": small_checkpoint, "IMAGE": tmp_path / "image.png", "x.pth": small_checkpoint}
    if case == "network":
        names.pop("x.pth")
    done = run_here(*[names.get(part, part) for part in arguments])
    assert done.code == 2, done.err
    assert expected in done.sentence
    assert done.out == ""
    assert files(tmp_path) == before


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["convert", "--nonsense"], ["quantize"], ["run", "--frames", "none"], ["bench"]]
)
def test_usage_by_the_parser(arguments: list[str], run_here: Call) -> None:
    done = run_here(*arguments)
    assert done.code == 2
    assert done.out == ""
    assert "Error" in done.err
    assert "Traceback" not in done.err


MENDABLE = {
    "checkpoint": (["convert", "nowhere"], "there is no checkpoint 'nowhere'"),
    "damaged checkpoint": (["convert", "damaged.safetensors"], "damaged.safetensors"),
    "pickle that is none": (["convert", "damaged.pth", "--network", "spssn", "--classes", "streets"], "damaged.pth"),
    "artifact": (["bench", "nowhere"], "edgekit convert"),
    "image": (["predict", "CHECKPOINT", "nowhere.png"], "nowhere.png"),
    "data root": (["evaluate", "CHECKPOINT", "--data", "cityscapes", "--data-root", "nowhere"], "nowhere"),
    "classes": (["evaluate", "CHECKPOINT", "--data", "camvid", "--data-root", "."], "train"),
}


@pytest.mark.parametrize("case", MENDABLE)
def test_what_the_user_can_mend(case: str, run_here: Call, tmp_path: Path, small_checkpoint: Path) -> None:
    (tmp_path / "damaged.safetensors").write_bytes(small_checkpoint.read_bytes()[:-100])
    (tmp_path / "damaged.pth").write_bytes(b"PK\x03\x04 and nothing more")
    arguments, expected = MENDABLE[case]
    before = files(tmp_path)
    done = run_here(
        *[small_checkpoint if part == "CHECKPOINT" else part for part in arguments],
        *["--size", SIZE][: 2 * (arguments[0] != "bench")],
    )
    assert done.code == 1, done.err
    if case != "classes":
        assert expected in done.sentence
    assert done.out == ""
    assert [name for name in files(tmp_path) if name not in before and not name.endswith(".log")] == []


def test_a_folder_that_is_no_run(run_here: Call, tmp_path: Path) -> None:
    done = run_here("report", ".")
    assert (done.code, done.out) == (2, "")
    assert "not a run's folder" in done.sentence


def test_calibration_without_a_root(run_here: Call, tmp_path: Path, small_checkpoint: Path) -> None:
    done = run_here("quantize", small_checkpoint, "--calib", "cityscapes", "--target", "onnxruntime", "--size", SIZE)
    assert done.code == 1
    assert done.out == ""
    for part in ("--data-root", "CITYSCAPES_DATASET", "--calib streets"):
        assert part in done.sentence
    assert list(tmp_path.iterdir()) == []


def test_a_bug(run_here: Call, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a slip of ours")

    monkeypatch.setattr("edgekit.pipeline.commands.convert", broken)
    done = run_here("convert", small_checkpoint, "--target", "onnxruntime")
    assert done.code == 3
    assert done.out == ""
    assert "Traceback" in done.err
    assert "ZeroDivisionError: a slip of ours" in done.err
    found = re.search(r"(\S+\.log)$", done.err.strip())
    assert found
    log = Path(found[1])
    text = log.read_text()
    log.unlink()
    assert "ZeroDivisionError: a slip of ours" in text
    assert "edgekit convert" in text
    assert "Python 3" in text


def test_a_target_that_fails_leaves_the_others_standing(
    run_here: Call, small_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not converted, or converted and not opened: its row says so, and the others are whole."""
    from edgekit.pipeline import int8

    convert_all = int8.convert_all

    def without_openvino(order: Any, jobs: Any, progress: Any) -> list[Any]:
        others = [job for job in jobs if job.target != "openvino"]
        made = iter(convert_all(order, others, progress))
        return [ConversionError("its parser broke") if job.target == "openvino" else next(made) for job in jobs]

    monkeypatch.setattr(int8, "convert_all", without_openvino)
    done = run_here(
        "quantize", small_checkpoint, "--calib", "streets", "--target", "openvino,onnxruntime", "--samples", 2,
        "--frames", 2, "--size", SIZE, "--json",
    )  # fmt: skip
    assert done.code == 1, done.err
    assert "1 of 2 targets failed, first openvino: its parser broke" in done.sentence
    failed, whole = done.document["rows"]
    assert failed == {"target": "openvino", "precision": "int8", "size": [64, 96], "failed": "its parser broke"}
    assert whole["miou"] is not None


def test_an_interrupt(run_here: Call, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("edgekit.pipeline.commands.convert", interrupted)
    done = run_here("convert", small_checkpoint, "--target", "onnxruntime")
    assert done.code == 130
    assert "interrupted" in done.sentence


def test_a_size_that_memory_cannot_hold(run_here: Call, small_checkpoint: Path, tmp_path: Path) -> None:
    done = run_here("convert", small_checkpoint, "--target", "onnxruntime", "--size", "99999x99999")
    assert done.code == 1
    assert "--size" in done.sentence
    assert not partials(tmp_path)


def test_a_budget_that_does_not_hold(quantized: Done, place: Path) -> None:
    """Four; the artifact is kept, and the JSON is whole."""
    assert quantized.code == 4, quantized.err
    (row,) = quantized.document["rows"]
    assert row["budget"] == {"max_drop": 0.0, "holds": False}
    assert row["verification"]["evaluation"]["split"] == "test"
    assert row["evaluation"]["trained_on"] is None  # a state dict does not say
    kept = [step["kept"] for step in row["repair"]["steps"]]
    assert [len(layers) for layers in kept] == [1, 2]
    assert kept[1][:1] == kept[0]
    assert row["repair"]["kept"] == kept[1]
    assert row["artifact"].endswith("-float2")
    assert re.search("with up to 2 layers in float:|more frames, by --frames .* would decide it", quantized.sentence)
    assert row["miou"] is not None
    assert row["miou_drop_ci"][0] <= row["miou_drop"] <= row["miou_drop_ci"][1]
    assert row["agreement"] > 0.8
    assert "--max-drop" in quantized.sentence
    assert row["artifact"] in quantized.sentence
    assert (place / row["artifact"] / "manifest.json").is_file()
    assert not partials(place)


@pytest.mark.slow
def test_a_budget_that_a_layer_in_float_keeps(small_checkpoint: Path, tmp_path: Path) -> None:
    """A channel that is never active and weighs a millionfold leaves its convolution's other weights no int8 step."""
    checkpoint = load_checkpoint(str(small_checkpoint))
    network = load_network(checkpoint)
    state = network.state_dict()
    block = "units.0.0.block."
    state[f"{block}1.1.weight"][0], state[f"{block}1.1.bias"][0] = 0.0, -1.0
    state[f"{block}2.0.weight"][:, 0] = 1e6
    save_checkpoint(
        tmp_path / "dead.safetensors",
        network,
        Description(
            network="spssn",
            arguments={},
            class_names=checkpoint.class_names,
            normalization=checkpoint.normalization,
            dataset="streets",
            recipe={},
            metrics={},
        ),
    )
    arguments = ("dead.safetensors", "--calib", "streets", "--samples", 4, "--size", "96x160", "--out", "out")
    (tmp_path / "sitecustomize.py").write_text(MOMENT)  # what the repair costs is timed
    done = edgekit(
        "quantize", *arguments, "--target", "onnxruntime", "--frames", 6, "--max-drop", 0.08, "--json", cwd=tmp_path,
        env=environment(tmp_path),
    )  # fmt: skip
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["budget"] == {"max_drop": 0.08, "holds": True}
    (step,) = row["repair"]["steps"]
    assert step["kept"] == row["repair"]["kept"] == [f"{block}2.0"]
    assert step["model_bytes"] > row["repair"]["bytes_before"] + 2 * 64 * 384
    assert row["repair"]["latency_ratio"][0] > 0
    assert not (tmp_path / "out" / "measurements" / "latency.local.json").exists(), "edgekit run's, with its own scope"
    assert f"{block}2.0" in row["kept_float"]
    assert row["miou_drop_ci"][1] <= 0.08
    assert row["verification"]["evaluation"] == {
        "dataset": "streets",
        "split": "test",
        "frames": 6,
        "trained_on": None,
    }
    # The ranking is there already; by hand, the same layer.
    done = edgekit("sensitivity", *arguments, cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.splitlines()[1].startswith(f"{block}2.0: ")
    page = (tmp_path / "out" / "sensitivity" / "index.md").read_text()
    assert f"| {block}2.0" in page
    assert (tmp_path / "out" / "sensitivity" / "layers.svg").read_bytes().startswith(b"<?xml")
    done = edgekit(
        "quantize", *arguments, "--target", "onnxruntime", "--frames", 2, "--keep-float", "units.9", cwd=tmp_path
    )
    assert done.code == 2
    assert "no layer 'units.9'" in done.sentence


def test_val_proves_where_test_is_kept_back(cityscapes_tree: Path, small_checkpoint: Path) -> None:
    """By the frames that do not guide; and a root belongs to the one dataset that has a folder."""
    checkpoint = replace(load_checkpoint(str(small_checkpoint)), dataset="cityscapes")
    val = open_split("cityscapes", "val", cityscapes_tree)
    common = (cityscapes_tree, "streets", Size(128, 256))
    guide, _ = evaluation_split(checkpoint, None, "val", *common, 1)
    assert guide is not None
    proof, why_not = verification_split(checkpoint, None, guide, *common, 1)
    assert proof is not None
    assert not why_not
    assert [one.name for one in (*guide.references, *proof.references)] == [one.name for one in val.references]
    proof, why_not = verification_split(checkpoint, None, val, *common, None)
    assert proof is None
    assert "keeps the labels of its test split to itself, and all frames of val guide it" in why_not
    named, _ = verification_split(checkpoint, "cityscapes:train", val, *common, None)
    assert named is not None
    assert len(named) == 3


def test_frames_that_guide_do_not_prove(run_here: Call, small_checkpoint: Path) -> None:
    done = run_here(
        "quantize", small_checkpoint, "--calib", "streets", "--eval", "streets:test", "--frames", 3, "--max-drop", 0.01,
        "--samples", 2, "--target", "onnxruntime", "--size", SIZE,
    )  # fmt: skip
    assert done.code == 2
    assert "both guide what stays in float and prove the budget" in done.sentence
    assert "--verify DATA:SPLIT" in done.sentence
    done = run_here(
        "quantize", small_checkpoint, "--calib", "streets", "--frames", 1, "--max-drop", 0.01, "--samples", 2, "--target",
        "onnxruntime", "--size", SIZE,
    )  # fmt: skip
    assert done.code == 2
    assert "judged by the spread over frames, and there is one of streets val" in done.sentence


def test_what_a_network_was_trained_on_is_known_or_said_not_to_be() -> None:
    first = {"dataset": "streets", "split": "train", "initial_checkpoint": None}
    other = {"dataset": "camvid", "split": "train+val"}
    for recipe, expected in (
        ({}, None),
        (first, True),
        (other, False),
        ({"dataset": "camvid", "split": "train", "initial_checkpoint": {"name": "first", "recipe": first}}, True),
        (other | {"initial_checkpoint": {"name": "first", "recipe": {}}}, None),
        (other | {"teacher_checkpoint": {"name": "first", "recipe": first}}, True),
        (other | {"teacher_checkpoint": {"name": "first", "recipe": {}}}, None),
        (
            other
            | {
                "initial_checkpoint": {"name": "first", "recipe": {}},
                "teacher_checkpoint": {"name": "b", "recipe": first},
            },
            True,
        ),
    ):
        assert trained_on(recipe, "streets", "train") is expected


@given(st.integers(1, 40), st.integers(1, 50))
def test_the_fewest_that_hold_are_found(most: int, enough: int) -> None:
    tried: list[int] = []

    def holds(count: int) -> bool:
        tried.append(count)
        return count >= enough

    assert fewest(most, holds) == (enough if enough <= most else None)
    assert len(tried) == len(set(tried)) <= 11
    assert set(tried) <= set(range(1, most + 1))


def test_a_budget_that_does_not_hold_says_no_more_than_was_tried() -> None:
    steps = tuple(Step(1, 0.02, (0.015, 0.03), kept, holds=False) for kept in (("a",), ("a", "b")))
    repair = Repair(steps, ("a", "b"), 1)

    def over(loss: Loss, **more: Any) -> str:
        row = Quantized(
            "tflite", Size(64, 128), Path("a"), 1, FrameCount("streets", "train", 4), (), (), 1.0, 4, Provenance("measured", "x"),
            loss, budget=Verdict(0.01, holds=False), **more,
        )  # fmt: skip
        return over_budget(row)

    def loss(drop: float, low: float, high: float) -> Loss:
        return Loss(0.6, 0.6 + drop, drop, (low, high), {}, Where("camvid", "val", 32, False))

    assert over(loss(0.02, 0.015, 0.03), repair=repair) == ", with up to 2 layers in float"
    text = over(loss(0.004, 0.001, 0.008), repair=repair, verification=loss(0.012, 0.002, 0.02))
    assert text == ", though it holds on the 32 frames that guided it"
    wide = over(loss(0.004, -0.02, 0.03))
    assert "more frames, by --frames where the split has them, would decide it" in wide


def test_a_proof_without_a_budget(run_here: Call) -> None:
    done = run_here("quantize", "--calib", "streets", "--verify", "streets:test", "--target", "onnxruntime")
    assert done.code == 2
    assert "--max-drop" in done.sentence
    done = run_here("sensitivity", "--calib", "streets", "--scheme", "lopsided")
    assert done.code == 2
    assert "symmetric, asymmetric" in done.sentence


# JSON and noise


def test_convert_json_and_noise(converted: Done, place: Path) -> None:
    (row,) = converted.document["artifacts"]
    assert row["target"] == "onnxruntime"
    assert row["size"] == [64, 96]
    assert (place / row["folder"] / row["model"]).is_file()
    lines = converted.err.splitlines()
    assert len(lines) == 4, converted.err
    assert re.fullmatch(r"exporting own at 64x96: \d+ s", lines[0])
    assert all(line.startswith("own: the network gives ") for line in lines[1:3])
    assert re.fullmatch(r"ONNX Runtime fp32: converting at 64x96: \d+ s", lines[3])
    assert (place / "made" / "logs").is_dir()


def test_quantize_noise(quantized: Done) -> None:
    lines = [line for line in quantized.err.splitlines() if not line.startswith("edgekit: ")]
    known = (
        r"(calibrating on|exporting|labelling with float PyTorch|float PyTorch labelled|PyTorch fp32:|ONNX Runtime int8:"
        r"|onnxruntime int8:|ranking the layers|own: the network gives) ?.*"
    )
    assert all(re.fullmatch(known, line) for line in lines), quantized.err


def test_targets_and_doctor_json(run_here: Call) -> None:
    rows = run_here("targets", "--json").document["targets"]
    assert set(OWN) <= {row["target"] for row in rows}
    document = run_here("doctor", "--json").document
    assert {"edgekit", "findings", "environment"} <= set(document)
    texts = {finding["subject"]: finding["text"] for finding in document["findings"]}
    assert "CITYSCAPES_DATASET" in texts["data cityscapes"]


def test_evaluate_json(run_here: Call, artifact: Path) -> None:
    done = run_here("evaluate", artifact, "--data", "streets", "--frames", 1, "--threads", 1, "--json")
    assert done.code == 0, done.err
    document = done.document
    assert 0 < document["miou"] < 1
    assert len(document["per_class_iou"]) == 19
    assert document["provenance"]["kind"] == "measured"


def test_frames_that_the_network_was_trained_on_are_told(run_here: Call, tmp_path: Path) -> None:
    """Of a checkpoint, and of an artifact, whose manifest keeps how its checkpoint was trained."""
    made = run_here("convert", "spssn-streets", "--target", "onnxruntime", "--size", SIZE, "--out", tmp_path, "--json")
    (folder,) = (entry["folder"] for entry in made.document["artifacts"])
    for subject, size in (("spssn-streets", ("--size", SIZE)), (folder, ())):
        for split, saw in (("train", True), ("val", False)):
            given = ("evaluate", subject, "--split", split, "--frames", 1, *size, "--threads", 1, "--out", tmp_path)
            assert run_here(*given, "--json").document["trained_on"] is saw
            assert ("was trained on these frames" in run_here(*given).out) is saw


def test_a_folder_that_a_file_is_in_the_way_of_is_named(run_here: Call, artifact: Path, tmp_path: Path) -> None:
    """It is the place that is at fault, not the artifact that could not be opened for it."""
    (tmp_path / "file").write_text("")
    done = run_here("evaluate", artifact, "--data", "streets", "--frames", 1, "--out", tmp_path / "file" / "x")
    assert done.code == 1
    assert "a file stands in its way" in done.sentence and "--out" in done.sentence


def test_bench_tells_two_checkpoints_apart(
    run_here: Call, artifact: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it measures, too: two artifacts of one kind are not two identical lines."""
    state = torch.load(place / "own.pth")
    torch.save({key: value * 0.5 for key, value in state.items()}, tmp_path / "half.pth")
    done = edgekit(
        "convert", tmp_path / "half.pth", "--network", "ownnet:factory", "--classes", "streets", "--target", "onnxruntime",
        "--size", SIZE, "--out", "made", cwd=tmp_path, env=environment(place),
    )  # fmt: skip
    assert done.code == 0, done.err
    (other,) = (tmp_path / "made" / "artifacts").iterdir()
    short_latency(monkeypatch)
    done = run_here("bench", artifact, other, "--threads", 1, "--out", "bench")
    assert done.code == 0, done.err
    told = [line for line in done.err.splitlines() if "ms a frame" in line]
    assert [line.split(":")[0] for line in told] == ["onnxruntime fp32 of own", "onnxruntime fp32 of half"]


def test_evaluate_checkpoint_json(run_here: Call, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(place)
    done = run_here(
        "evaluate", place / "own.pth", "--network", "ownnet:factory", "--data", "streets", "--frames", 1, "--size", SIZE,
        "--threads", 1, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "PyTorch" in done.document["provenance"]["by"]


def test_bench_json(run_here: Call, artifact: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_latency(monkeypatch)
    done = run_here("bench", artifact, "--threads", 1, "--json")
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["summary"]["n"] >= 8
    assert row["summary"]["p50"] > 0
    assert row["latency"]["scope"] == "frame-to-labels"
    assert row["latency"]["settings"]["threads"] == 1


def test_bench_takes_turns_in_several_processes(
    run_here: Call, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that begins badly stays so: half of the rounds are of another."""
    monkeypatch.setitem(LATENCY_CONTRACTS, "quick", LatencyContract(1, 0.0, 8, 0.0, 2))
    done = run_here("bench", artifact, "--threads", 1, "--json")
    assert done.code == 0, done.err
    (row,) = done.document["rows"]
    assert row["latency"]["process_rounds"] == [4, 4]
    assert len(row["latency"]["rounds_ms"]) == len(row["latency"]["conditions"]) == 8
    taken = [one["cores_taken"] for one in row["latency"]["conditions"] if "cores_taken" in one]
    assert all(share is None or share >= 0 for share in taken)


def test_predict_json(run_here: Call, artifact: Path, tmp_path: Path) -> None:
    for name, shape in (("wide.png", (80, 200, 3)), ("tall.jpg", (130, 70, 3))):
        Image.fromarray(np.random.default_rng(0).integers(0, 255, shape, np.uint8)).save(tmp_path / name)
    done = run_here("predict", artifact, tmp_path / "wide.png", tmp_path / "tall.jpg", "--threads", 1, "--json")
    assert done.code == 0, done.err
    for row, shape in zip(done.document["images"], ((80, 200), (130, 70)), strict=True):
        with Image.open(row["labels"]) as labels, Image.open(row["overlay"]) as overlay:
            assert np.asarray(labels).shape == shape
            assert np.asarray(labels).max() < 19
            assert np.asarray(overlay).shape == (*shape, 3)
        assert abs(sum(row["classes"].values()) - 1) < 0.01


@pytest.mark.parametrize("damage", ["truncated", "text", "empty"])
def test_predict_refuses_bad_images(damage: str, run_here: Call, artifact: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 96, 3), np.uint8)).save(good)
    bad.write_bytes({"truncated": good.read_bytes()[:9000], "text": b"not an image at all", "empty": b""}[damage])
    before = files(tmp_path)
    done = run_here("predict", artifact, good, bad, "--threads", 1)
    assert done.code == 1
    assert str(bad) in done.sentence
    assert files(tmp_path) == before
    assert {entry.name for entry in tmp_path.iterdir()} == {"good.png", "bad.png"}


def test_run_and_report_json(
    run_here: Call, place: Path, converted: Done, monkeypatch: pytest.MonkeyPatch, cityscapes_tree: Path
) -> None:
    """In the folder that ``convert`` wrote: its artifact is taken as it is; without int8 no training frame is asked for."""
    monkeypatch.syspath_prepend(place)
    monkeypatch.setenv("CITYSCAPES_DATASET", str(cityscapes_tree))
    for folder in ("leftImg8bit", "gtFine"):
        shutil.rmtree(cityscapes_tree / folder / "train")
    short_latency(monkeypatch)
    done = run_here(
        "run", place / "own.pth", "--network", "ownnet:factory", "--data", "cityscapes", "--targets", "onnxruntime",
        "--precisions", "fp32", "--size", SIZE, "--frames", 2, "--samples", 2, "--threads", 1, "--out", place / "made",
        "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "already converted" in done.err
    assert done.document["rows"][0]["target"] == "pytorch"
    again = run_here("report", place / "made", "--json")
    assert again.code == 0
    assert again.document["rows"] == done.document["rows"]
    words = run_here("report", place / "made")
    assert words.code == 0
    assert "onnxruntime" in words.out
    measurement = place / "made" / "measurements" / f"onnxruntime-fp32-{SIZE}.local.json"
    manifest = place / "made" / "artifacts" / f"onnxruntime-fp32-{SIZE}" / "manifest.json"
    kept = {path: path.read_text() for path in (measurement, manifest, place / "made" / "run.json")}

    def refused(path: Path, content: str | None, *expected: str) -> None:
        path.unlink() if content is None else path.write_text(content)
        said = run_here("report", place / "made")
        path.write_text(kept[path])
        assert said.code == 1 and "Traceback" not in said.err
        assert all(word in said.sentence for word in (*expected, "run again")), said.sentence

    refused(measurement, None, "is gone", "edgekit run")
    refused(measurement, "[]", "not a measurement", "edgekit run")
    refused(place / "made" / "run.json", "{}", "run.json")
    other = json.loads(kept[manifest]) | {"key": "0" * 64, "command": "edgekit quantize again"}
    refused(manifest, json.dumps(other), "not what was measured", "edgekit quantize again")
    shutil.rmtree(place / "made" / "cache" / "pictures")
    assert "is gone" in run_here("report", place / "made").err


def test_train_from_a_preset_then_on_val_too(run_here: Call, camvid_tree: Path, tmp_path: Path) -> None:
    """Options beside a preset win; train+val looks at test once, settings compared with --no-test never do."""
    common = [
        "train", "--data-root", camvid_tree, "--epochs", 1, "--batch", 2, "--crop", "64x64", "--threads", 1, "--workers", 0,
        "--missing-classes", "--json",
    ]  # fmt: skip
    chosen = ["--preset", "paper-camvid", "--frame-size", "64x96", "--split", "train", "--no-test"]
    done = run_here(*common, *chosen, "--out", "first")
    assert done.code == 0, done.err
    assert set(done.document["metrics"]) == {"camvid:val"}
    first = load_checkpoint(done.document["checkpoint"])
    wanted = {
        "dataset": "camvid", "learning_rate": 0.005, "schedule": "step", "step_epochs": [100], "batch": 2, "crop": "64x64",
        "arguments": {"camvid": True}, "split": "train", "frame_size": "64x96",
    }  # fmt: skip
    assert wanted.items() <= first.recipe.items()
    again = ["--data", "camvid", "--camvid-variant", "--split", "train+val", "--initial", first.path]
    done = run_here(*common, *again, "--out", "second")
    assert done.code == 0, done.err
    assert set(done.document["metrics"]) == {"camvid:test"}
    second = load_checkpoint(done.document["checkpoint"])
    assert (second.recipe["split"], second.recipe["initial"]) == ("train+val", first.sha256)
    assert second.recipe["initial_checkpoint"]["recipe"]["command"].startswith("edgekit train")
    assert "starting from 294 of 294" in done.err
    taught = ["--teacher", second.path, "--distillation", 0.5, "--out", "third"]
    done = run_here(*common, *chosen, *taught)
    assert done.code == 0, done.err
    assert done.document["metrics"] == {}, "what a teacher saw says nothing of its student"
    assert f"val is not evaluated: {second.name} saw it in training" in done.err


def test_train_begins_with_and_learns_from_plain_state_dicts(
    run_here: Call, camvid_tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a network of one's own, by a preset whose schedule and arguments are left aside."""
    monkeypatch.syspath_prepend(tmp_path)
    source = "from torch import nn\n\ndef make(classes):\n    return nn.Conv2d(3, classes, 3, 2, 1)\n"
    (tmp_path / "plainnet.py").write_text(source)
    torch.save(torch.nn.Conv2d(3, 11, 3, 2, 1).state_dict(), tmp_path / "plain.pth")
    common = [
        "train", "--preset", "paper-camvid", "--schedule", "poly", "--network", "plainnet:make", "--data-root", camvid_tree,
        "--epochs", 1, "--batch", 2, "--crop", "64x64", "--frame-size", "64x96", "--split", "train", "--threads", 1,
        "--workers", 0, "--missing-classes", "--no-test", "--json",
    ]  # fmt: skip
    given = ["--initial", tmp_path / "plain.pth", "--teacher", tmp_path / "plain.pth", "--distillation", 0.5]
    done = run_here(*common, *given, "--out", "refused")
    assert done.code == 1
    assert "--teacher-network" in done.sentence
    done = run_here(*common, *given, "--teacher-network", "plainnet:make", "--out", "made")
    assert done.code == 0, done.err
    assert "starting from 2 of 2 of the weights of plain" in done.err
    recipe = load_checkpoint(done.document["checkpoint"], "plainnet:make").recipe
    wanted = {"schedule": "poly", "step_epochs": [], "arguments": {}, "learning_rate": 0.005, "distillation": 0.5}
    assert wanted.items() <= recipe.items()
    assert recipe["initial"] == sha256_path(tmp_path / "plain.pth"), "of a start its weights alone matter"
    assert recipe["teacher"] not in ("", recipe["initial"])
    assert "val may prove nothing: whether plain saw it in training is not known" in done.err


SAYING = """
import sys
from edgekit.cli.app import main
from edgekit.cli.output import print_text
from edgekit.core.errors import EdgekitError

def call(standalone_mode):
    for _ in range(int(sys.argv[1])):
        print_text("x" * 99)
    if sys.argv[2] == "fail":
        raise EdgekitError("what came after was wrong")

main(call)
"""


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(("lines", "end"), [(1, "well"), (1, "fail"), (1000, "well"), (1000, "fail")])
def test_a_reader_that_is_gone_changes_no_exit_code(tmp_path: Path, lines: int, end: str, unbuffered: str) -> None:
    """As of ``edgekit ... | head``, whether what is said is held back or not; nor does a standard output that is closed."""
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", SAYING, str(lines), end]
    common: dict[str, Any] = {
        "cwd": tmp_path, "env": environment(tmp_path, PYTHONUNBUFFERED=unbuffered), "stderr": subprocess.PIPE, "text": True,
        "check": False,
    }  # fmt: skip
    closed = ["bash", "-c", 'exec "$@" >&-', "bash", *command]
    for done in (subprocess.run(command, stdout=write, **common), subprocess.run(closed, **common)):
        assert done.returncode == (1 if end == "fail" else 0), done.stderr
        assert done.stderr == ("edgekit: what came after was wrong\n" if end == "fail" else "")
    os.close(write)


def test_train_names_a_bad_label_file(run_here: Call, camvid_tree: Path) -> None:
    bad = camvid_tree / "trainannot" / "frame_000.png"
    Image.fromarray(np.full((96, 128), 37, np.uint8)).save(bad)
    done = run_here(
        "train", "--data", "camvid", "--data-root", camvid_tree, "--epochs", 1, "--crop", "64x64", "--out", "run"
    )
    assert done.code == 1
    assert str(bad) in done.sentence
    assert "37" in done.sentence
