"""Nothing in a file decides what code runs, which file is read, or what is taken for measured."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from seam import Done, call, own_network

from edgekit.core.errors import ArtifactError, CheckpointError, EdgekitError
from edgekit.core.values import Normalization
from edgekit.networks.checkpoint import Description, load_checkpoint, load_network, load_start, save_checkpoint
from edgekit.networks.spssn import SPSSN
from edgekit.pipeline.artifacts import load_artifact

Call = Callable[..., Done]


@pytest.fixture
def edgekit(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Call:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: call(monkeypatch, capfd, *arguments)


def hostile(path: Path, command: str, **changes: Any) -> Path:
    """A checkpoint whose metadata names a function of Python's own as its network; plain tensors beside it."""
    description = {
        "schema": 1, "network": "os:system", "arguments": {"command": command}, "classes": ["road", "sky"], "dataset": "streets",
        "normalization": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}, "recipe": {}, "metrics": {}, **changes,
    }  # fmt: skip
    save_file({"weight": torch.zeros(1)}, path, {"edgekit": json.dumps(description)})
    return path


@pytest.mark.parametrize("command", ["lint", "evaluate", "convert", "run", "predict", "sensitivity", "quantize"])
def test_metadata_runs_no_command(edgekit: Call, tmp_path: Path, command: str) -> None:
    path, trace = tmp_path / "theirs.safetensors", tmp_path / "it-ran"
    hostile(path, f"touch {trace}")
    more = {"predict": ["photo.png"], "sensitivity": ["--calib", "streets"], "quantize": ["--calib", "streets"]}
    (tmp_path / "photo.png").write_bytes(b"")
    done = edgekit(command, path, *more.get(command, []))
    assert not trace.exists()
    assert done.code == 1
    assert "os:system" in done.sentence
    assert "--network" in done.sentence


def test_no_training_runs_what_a_start_or_a_teacher_names(edgekit: Call, tmp_path: Path) -> None:
    path, trace = tmp_path / "theirs.safetensors", tmp_path / "it-ran"
    hostile(path, f"touch {trace}")
    start = load_start(str(path), "spssn", ("road", "sky"))  # of whose file the weights alone matter
    assert start.network == "spssn"
    done = edgekit("train", "--data", "streets", "--teacher", path, "--distillation", "0.5", "--epochs", 1)
    assert done.code == 1
    assert "--teacher-network" in done.sentence
    assert not trace.exists()


def test_a_recorded_name_is_compared_and_never_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The user's own network, trained by edgekit: typed again it has its recorded arguments, typed as another none."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "recorded_net.py").write_text(
        "import torch\ndef make(classes, width=4):\n    return torch.nn.Conv2d(3, classes, width)\n"
        "def other(classes, width=2):\n    return torch.nn.Conv2d(3, classes, width)\n"
    )
    path = tmp_path / "own.safetensors"
    save_checkpoint(
        path,
        torch.nn.Conv2d(3, 2, 5),
        Description(
            network="recorded_net:make",
            arguments={"width": 5},
            class_names=("road", "sky"),
            normalization=Normalization(),
            dataset="",
            recipe={},
            metrics={},
        ),
    )
    with pytest.raises(CheckpointError, match="recorded_net:make"):
        load_checkpoint(str(path))
    network = load_network(load_checkpoint(str(path), network="recorded_net:make"))
    assert network.kernel_size == (5, 5)
    assert load_checkpoint(str(path), network="recorded_net:other").arguments == {}


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"network": "resnet"}, "resnet"),
        ({"network": 5}, "network"),
        ({"network": "spssn", "classes": ["a", "a"]}, "one name"),
        ({"network": "spssn", "classes": []}, "0 classes"),
        ({"network": "spssn", "classes": [str(index) for index in range(256)]}, "256 classes"),
        ({"network": "spssn", "classes": [1, None]}, "names"),
        ({"network": "spssn", "arguments": [1]}, "arguments"),
        ({"network": "spssn", "normalization": {"mean": [0, 0, 0], "std": [1, 0, 1]}}, "std"),
        ({"network": "spssn", "normalization": {"mean": [float("nan")] * 3, "std": [1, 1, 1]}}, "NaN"),
        ({"network": "spssn", "normalization": {"mean": [1e300] * 3, "std": [1, 1, 1]}}, "mean"),
        ({"network": "spssn", "normalization": {"mean": ["0"] * 3, "std": [1, 1, 1]}}, "mean"),
        ({"network": "spssn", "normalization": {"mean": {}, "std": {}}}, "mean"),
    ],
)
def test_odd_descriptions_are_one_sentence(edgekit: Call, tmp_path: Path, changes: dict[str, Any], word: str) -> None:
    path = hostile(tmp_path / "odd.safetensors", "false", **changes)
    done = edgekit("evaluate", path)
    assert done.code == 1
    assert word in done.sentence


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "1" * 5000, '{"schema": 1e999}'])
def test_deep_and_huge_json(tmp_path: Path, text: str) -> None:
    path = tmp_path / "deep.safetensors"
    save_file({"weight": torch.zeros(1)}, path, {"edgekit": text})
    with pytest.raises(CheckpointError, match=r"deep\.safetensors"):
        load_checkpoint(str(path))


@pytest.fixture(scope="module")
def made(whole: tuple[Path, Any, Done]) -> Path:
    """An ONNX int8 artifact that is right; do not write to it."""
    (folder,) = (whole[0] / "artifacts").glob("onnxruntime-int8-*")
    return folder


def changed(made: Path, to: Path, **changes: Any) -> Path:
    shutil.copytree(made, to)
    manifest = json.loads((to / "manifest.json").read_text())
    (to / "manifest.json").write_text(json.dumps(manifest | changes))
    return to


def test_a_manifest_names_no_checkpoint_to_follow(edgekit: Call, made: Path, tmp_path: Path) -> None:
    """Of a folder alone: the hidden file, which hashing passes over as a desktop's, is a checkpoint that names a command."""
    one, other = (changed(made, tmp_path / name) for name in ("a", "b"))
    trace = tmp_path / "it-ran"
    hidden = hostile(one / "._x.safetensors", f"touch {trace}")
    for folder in (one, other):
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["checkpoint"]["name"] = str(hidden)
        (folder / "manifest.json").write_text(json.dumps(manifest))
    done = edgekit("compare", one, other, "--data", "streets")
    assert done.code == 2
    assert "--checkpoint FILE" in done.sentence
    assert not trace.exists()


@pytest.mark.parametrize("kind", ["above", "absolute", "unhashed", "nowhere", "hidden"])
def test_a_manifests_model_is_one_that_it_has_a_hash_of(made: Path, tmp_path: Path, kind: str) -> None:
    """An int8 row must not be measured on the bytes of another model."""
    other = tmp_path / "other.onnx"
    shutil.copy(next(made.glob("*.onnx")), other)
    names = {
        "above": "../other.onnx",
        "absolute": str(other),
        "unhashed": "Thumbs.db",
        "nowhere": "x.onnx",
        "hidden": "._m.onnx",
    }
    folder = changed(made, tmp_path / "artifact", model=names[kind])
    if kind in ("unhashed", "hidden"):
        shutil.copy(other, folder / names[kind])
    with pytest.raises(ArtifactError, match="model"):
        load_artifact(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": [10**9, 1]}, {"size": "96x160"}, {"size": [1.5, 2]}, {"precision": "int4"}, {"output": 3}, {"class_names": [1]},
        {"class_names": ["x"] * 300}, {"files": []}, {"files": {"../x": "0"}}, {"notes": []}, {"notes": {"a": 1}}, {"checkpoint": {}},
        {"calibration": {"frames": 3}}, {"model_bytes": "many"}, {"output_stride": 0}, {"target": None},
    ],
)  # fmt: skip
def test_odd_manifests_are_one_sentence(made: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        load_artifact(changed(made, tmp_path / "artifact", **changes))


def test_a_checkpoint_replaced_while_a_command_runs_is_not_taken_for_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(SPSSN(3).state_dict(), path)
    checkpoint = load_checkpoint(str(path), "spssn", ("a", "b", "c"))
    torch.manual_seed(5)
    torch.save(SPSSN(3).state_dict(), tmp_path / "new")
    (tmp_path / "new").replace(path)
    with pytest.raises(EdgekitError, match=r"weights\.pth was replaced"):
        load_network(checkpoint)
    assert load_network(replace(checkpoint, file_sha256=load_checkpoint(str(path), "spssn", ("a",)).file_sha256))


@pytest.mark.parametrize("when", ["made", "imported"])
def test_what_a_network_reads_is_part_of_its_identity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    source = {
        "made": "def make():\n    return torch.nn.Conv2d(3, 2, json.load(open(HERE + '/cfg.json'))['kernel'])\n",
        "imported": "K = json.load(open(HERE + '/cfg.json'))['kernel']\ndef make():\n    return torch.nn.Conv2d(3, 2, K)\n",
    }
    (tmp_path / f"reads_{when}.py").write_text(
        f"import json, os, torch\nHERE = os.path.dirname(__file__)\n{source[when]}"
    )
    (tmp_path / "cfg.json").write_text('{"kernel": 3}')
    monkeypatch.chdir(tmp_path)
    torch.save(torch.nn.Conv2d(3, 2, 3).state_dict(), "own.pth")

    def identity() -> str:
        return load_checkpoint("own.pth", f"reads_{when}:make", ("a", "b")).identity()

    first = identity()
    assert identity() == first
    (tmp_path / "alien.json").write_text("{}")
    assert identity() == first, "a file that it does not read"
    (tmp_path / "cfg.json").write_text('{"kernel": 3, "more": 1}')
    assert identity() != first


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("model.", ["under 'model.'", "'loss.criterion.weight'", "removeprefix"]),
        ("_orig_mod.", ["under '_orig_mod.'"]),
        ("module.", ["under 'module.'", "'n_averaged'"]),
        ("more", ["all of the network's weights", "'total_ops'"]),
        ("auxiliary", ["all of the network's weights", "'aux_head.bias' and 1 more"]),
        ("shared", ["'body.0.weight' is missing", "shared"]),
        ("another", ["is missing", "the file has 'layer1.weight', 'layer2.weight' and 1 more"]),
    ],
)
def test_how_a_files_keys_differ(edgekit: Call, tmp_path: Path, form: str, words: list[str]) -> None:
    """As public repositories save them: what the file has is named, and what to do."""
    path = own_network(tmp_path)
    state = torch.load(path)
    beside = {"model.": {"loss.criterion.weight": torch.ones(3)}, "module.": {"n_averaged": torch.ones(())}}
    if form.endswith("."):
        state = {f"{form}{key}": value for key, value in state.items()} | beside.get(form, {})
    elif form == "more":
        state |= {"total_ops": torch.zeros(1), "total_params": torch.zeros(1)}
    elif form == "auxiliary":
        state |= {"aux_head.weight": torch.zeros(1), "aux_head.bias": torch.zeros(1), "aux.x": torch.zeros(1)}
    elif form == "shared":
        del state["body.0.weight"]
    else:
        state = {f"layer{index}.weight": torch.zeros(1) for index in (1, 2, 3)}
    torch.save(state, path)
    done = edgekit(
        "evaluate", path, "--network", "ownnet:factory", "--data", "streets", "--size", "64x64", "--frames", 1
    )
    assert done.code == 1
    for word in words:
        assert word in done.sentence


@pytest.mark.parametrize("kind", ["pt2", "torchscript", "onnx", "tflite"])
def test_what_is_no_checkpoint_is_named(edgekit: Call, tmp_path: Path, kind: str) -> None:
    own_network(tmp_path)
    network = torch.nn.Conv2d(3, 2, 3)
    path = tmp_path / f"net.{'pt' if kind == 'torchscript' else kind}"
    if kind == "pt2":
        torch.export.save(torch.export.export(network, (torch.zeros(1, 3, 8, 8),)), path)
    elif kind == "torchscript":
        torch.jit.trace(network, torch.zeros(1, 3, 8, 8)).save(path)
    else:
        path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(200))
    done = edgekit(
        "evaluate", path, "--network", "ownnet:factory", "--data", "streets", "--size", "64x64", "--frames", 1
    )
    assert done.code == 1
    assert "damaged" not in done.sentence
    assert "could run code" not in done.sentence
    assert "which edgekit does not read" in done.sentence


def test_weights_beyond_float32(edgekit: Call, tmp_path: Path) -> None:
    """They are finite until they are cast."""
    path = own_network(tmp_path)
    state = {key: value.double() if value.is_floating_point() else value for key, value in torch.load(path).items()}
    state["head.weight"][0] = 1e300
    torch.save(state, path)
    done = edgekit(
        "evaluate", path, "--network", "ownnet:factory", "--data", "streets", "--size", "64x64", "--frames", 1
    )
    assert done.code == 1
    assert "head.weight" in done.sentence
