"""Artifacts are held to their network as they are made; what is no number, or no layout, is not taken for one."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from seam import call, edgekit, environment, own_network, plug_in
from torch import nn

from edgekit import decode
from edgekit.core.errors import ArtifactError, CheckpointError, ConversionError, DataError
from edgekit.core.registry import load_target
from edgekit.core.values import Artifact, DeployableGraph, Normalization, OutputKind, Recipe, SessionOptions, Size
from edgekit.export.graph import export_aten
from edgekit.networks.checkpoint import Description, load_checkpoint
from edgekit.pipeline.accuracy import pytorch_labeller
from edgekit.pipeline.check import check_artifact, check_frames, doubt
from edgekit.runtimes.common import refuse_nan

SIZE = Size(64, 96)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(2)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 3, 1, 1), nn.ReLU())
        self.head = nn.Conv2d(8, 5, 1)
        with torch.no_grad():
            self.head.bias -= self(torch.randn(1, 3, 64, 96)).mean((0, 2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.inner(self.stem(x)))


def graph_of(network: nn.Module) -> DeployableGraph:
    module = export_aten(network.eval(), torch.zeros(1, 3, SIZE.height, SIZE.width))
    return DeployableGraph(module, SIZE, Size(32, 48), tuple("abcde"), Normalization(), "")


def made(graph: DeployableGraph, folder: Path, output: OutputKind = "logits", stride: int = 1) -> Artifact:
    folder.mkdir()
    target = load_target("onnxruntime")
    if (sentence := target.missing()) is not None:
        pytest.skip(sentence)
    converted = target.convert(graph, Recipe("fp32", output, stride), None, folder)
    return Artifact(
        folder, "onnxruntime", "fp32", SIZE, graph.class_names, output, stride, converted.model, {"notes": {}}
    )


@pytest.mark.parametrize(("output", "stride"), [("logits", 1), ("labels", 1), ("labels", 4)])
def test_an_artifact_that_is_its_network(tmp_path: Path, output: OutputKind, stride: int) -> None:
    graph = graph_of(Net())
    seen = check_artifact(
        load_target("onnxruntime"), made(graph, tmp_path / "a", output, stride), graph, check_frames("fp32", SIZE, [])
    )
    assert seen.wrong == 0
    assert seen.labels_alike > 0.999
    assert (seen.logits_distance is None) == (output == "labels")
    assert seen.logits_distance is None or seen.logits_distance < 1e-4


@pytest.mark.parametrize(("output", "stride"), [("logits", 1), ("labels", 1), ("labels", 4)])
@pytest.mark.parametrize("layer", ["inner.0", "head"])
def test_one_that_is_not(tmp_path: Path, output: OutputKind, stride: int, layer: str) -> None:
    """The sentence names the first layer where they part; of the last one there is none before."""
    network = Net()
    wrong = copy.deepcopy(network)
    with torch.no_grad():
        wrong.get_submodule(layer).weight.mul_(
            torch.linspace(0.5, 1.5, wrong.get_submodule(layer).weight.shape[0])[:, None, None, None]
        )
    artifact = made(graph_of(wrong), tmp_path / "a", output, stride)
    with pytest.raises(ConversionError, match=rf"not the network .* they part at '{layer}'"):
        check_artifact(load_target("onnxruntime"), artifact, graph_of(network), check_frames("fp32", SIZE, []))


def test_int8_is_told_rather_than_refused(tmp_path: Path) -> None:
    network, wrong = Net(), Net()
    with torch.no_grad():
        wrong.inner[0].weight.mul_(-1)
    artifact = replace(made(graph_of(wrong), tmp_path / "a"), precision="int8")
    seen = check_artifact(load_target("onnxruntime"), artifact, graph_of(network), check_frames("fp32", SIZE, []))
    told = doubt(replace(artifact, manifest={"check": seen.to_json()}))
    assert told is not None
    assert "edgekit compare" in told


def test_a_wrong_conversion_fails_its_command(tmp_path: Path) -> None:
    path = own_network(tmp_path)
    plug_in(tmp_path, "edgekit_torchscript", "torchscript")
    plug_in(tmp_path, "edgekit_faulty", "faulty")
    arguments = (
        "convert", path, "--network", "ownnet:factory", "--classes", "streets", "--size", "64x64", "--target", "faulty", "--json",
    )  # fmt: skip
    done = edgekit(*arguments, cwd=tmp_path, env=environment(tmp_path, EDGEKIT_FAULT="convert-wrong"))
    assert done.code == 1
    assert "faulty fp32 is not the network that it was made of" in done.sentence
    assert not list((tmp_path / "runs").rglob("manifest.json"))
    done = edgekit(*arguments, cwd=tmp_path, env=environment(tmp_path))
    assert done.code == 0, done.err
    check = done.document["artifacts"][0]["check"]
    assert check["frames"] == "2 drawn"
    assert check["wrong"] == 0


NAN = """
import torch
from torch import nn

class Logarithm(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 19, 1)

    def forward(self, x):
        return self.head(torch.log(x + 0.5))
"""


def test_nan_is_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A logarithm of dark pixels: finite on some frames, NaN on others. It was "mIoU 1.48 %, measured", exit code 0."""
    (tmp_path / "nannet.py").write_text(NAN)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(NAN, "nannet.py", "exec"), names)
    torch.save(names["Logarithm"]().state_dict(), "nan.pth")
    done = call(
        monkeypatch,
        capfd,
        "evaluate",
        "nan.pth",
        "--network",
        "nannet:Logarithm",
        "--data",
        "streets",
        "--size",
        "64x64",
        "--frames",
        1,
    )
    assert done.code == 1
    assert "NaN on a frame" in done.sentence
    with (
        pytest.raises(CheckpointError, match="NaN"),
        pytorch_labeller(
            load_checkpoint("nan.pth", "nannet:Logarithm", tuple(map(str, range(19)))), Size(64, 64)
        ) as label,
    ):
        label(np.zeros((1, 64, 64, 3), np.uint8))


def test_an_artifacts_nan_is_refused_where_it_is_evaluated(tmp_path: Path) -> None:
    class Root(Net):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.stem(x).sub(0.1).sqrt())

    artifact = made(graph_of(Root()), tmp_path / "a")
    with (
        load_target("onnxruntime").open(artifact, SessionOptions(1, look=refuse_nan)) as session,
        pytest.raises(ArtifactError, match="NaN"),
    ):
        session.run(np.zeros((1, 64, 96, 3), np.uint8))


def test_classes_last_are_no_labels_up_to_128() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 128, 256)).astype(np.float32)
    last = np.ascontiguousarray(logits.transpose(1, 2, 0))
    expected = decode(logits, (512, 1024))
    with pytest.raises(DataError, match="layout='HWC'"):
        decode(last, (512, 1024))
    assert (decode(last, (512, 1024), layout="HWC") == expected).all()
    assert (decode(logits, (512, 1024), layout="CHW") == expected).all()
    with pytest.raises(DataError, match="no layout 'NHWC'"):
        decode(last, (512, 1024), layout="NHWC")  # type: ignore[arg-type]
    assert decode(last, (512, 1024), layout="CHW").max() > 5, "who says so gets it"


GIVES = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, channels=3, gives=19, form="map"):
        super().__init__()
        self.head, self.form = nn.Conv2d(channels, gives, 3, 4, 1), form

    def forward(self, x):
        y = self.head(x)
        return {"list": [y, y.mean((2, 3)), y * 2], "dict": {"aux": y * 2, "out": y}, "map": y}[self.form]

def listed(): return Net(form="list")
def keyed(): return Net(form="dict")
def wide(): return Net(gives=21)
def grey(): return Net(channels=1)
def narrow(): return Net(gives=5)
"""


LISTED = ["gives 3 outputs, of which [1, 19, 16, 16] is taken and [1, 19], [1, 19, 16, 16] left out"]
GREY = ["takes 1 input channel, and a frame has three"]


@pytest.mark.parametrize(
    ("command", "factory", "code", "words"),
    [
        ("evaluate", "listed", 0, LISTED),
        ("convert", "listed", 0, LISTED),
        (
            "evaluate",
            "keyed",
            0,
            ["gives 2 outputs, of which [1, 19, 16, 16] is taken and 'aux' [1, 19, 16, 16] left out"],
        ),
        ("evaluate", "wide", 0, ["gives 21 channels for 19 classes: the first 19 are taken"]),
        ("evaluate", "grey", 1, GREY),
        ("convert", "grey", 1, GREY),
        ("evaluate", "narrow", 1, ["gives 5 channels for 19 classes", "none of edgekit's has 5"]),
    ],
)
def test_what_a_network_gives_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str, factory: str, code: int,
    words: list[str],
) -> None:  # fmt: skip
    (tmp_path / "gives.py").write_text(GIVES)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(GIVES, "gives.py", "exec"), names)
    torch.save(names[factory]().state_dict(), "net.pth")
    more = (
        ["--data", "streets", "--frames", 1]
        if command == "evaluate"
        else ["--classes", "streets", "--target", "onnxruntime"]
    )
    done = call(monkeypatch, capfd, command, "net.pth", "--network", f"gives:{factory}", "--size", "64x64", *more)
    assert done.code == code, done.err
    for word in words:
        assert word in done.err
    assert "try another --size" not in done.err


@pytest.mark.parametrize("command", ["convert", "quantize"])
def test_one_class_is_no_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], command: str
) -> None:
    """It converted, quantized and reported "100.00 % as float PyTorch": every label is 0."""
    from edgekit.networks.checkpoint import save_checkpoint

    monkeypatch.chdir(tmp_path)
    (tmp_path / "onechannel.py").write_text(
        "from torch import nn\ndef make(classes): return nn.Conv2d(3, classes, 3, 4, 1)\n"
    )
    save_checkpoint(
        tmp_path / "mask.safetensors",
        nn.Conv2d(3, 1, 3, 4, 1),
        Description(
            network="onechannel:make",
            arguments={},
            class_names=("mask",),
            normalization=Normalization(),
            dataset="",
            recipe={},
            metrics={},
        ),
    )
    more = {"quantize": ["--calib", "streets", "--samples", 2], "convert": ["--target", "onnxruntime"]}[command]
    done = call(
        monkeypatch, capfd, command, "mask.safetensors", "--network", "onechannel:make", "--size", "64x64", *more
    )
    assert done.code == 1
    assert "one class" in done.sentence


SIGNAL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 19, 3, 4, 1)

    def forward(self, x):
        y = self.head(x)
        return y + torch.fft.irfft2(torch.fft.rfft2(y), s=y.shape[2:])
"""


def test_convert_says_what_lint_knows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An operation that a target does not take: the module, the line and a remedy, before the converter's own words."""
    (tmp_path / "signalnet.py").write_text(SIGNAL)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(compile(SIGNAL, "signalnet.py", "exec"), names)
    torch.save(names["Net"]().state_dict(), "net.pth")
    arguments = ("net.pth", "--network", "signalnet:Net", "--size", "64x64")
    linted = call(monkeypatch, capfd, "lint", *arguments, "--classes", "streets", "--target", "tensorrt", "--json")
    grave = [finding for finding in linted.document["findings"] if finding["severity"] in ("fails", "wrong")]
    assert grave, linted.out
    done = call(monkeypatch, capfd, "convert", *arguments, "--classes", "streets", "--target", "tensorrt")
    assert done.code == 1
    for finding in grave:
        assert finding["remedy"] in done.err
