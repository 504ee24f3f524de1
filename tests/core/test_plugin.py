"""A target from another package: found, checked, run and reported without a change in edgekit."""

from __future__ import annotations

import ast
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from seam import TESTS, Done, edgekit, environment, own_network, plug_in

from edgekit import check_target
from edgekit.networks.checkpoint import load_checkpoint

SIZE = "64x96"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder to work in, with a good, an unimportable and a raising plug-in and a user's network to import."""
    folder = tmp_path_factory.mktemp("plugin")
    plug_in(folder, "edgekit_torchscript", "torchscript")
    plug_in(folder, "edgekit_unimportable", "unimportable")
    plug_in(folder, "edgekit_raising", "raising")
    own_network(folder)
    return folder


@pytest.fixture(scope="module")
def finished(place: Path) -> Done:
    """One run that names both."""
    return edgekit(
        "run", "own.pth", "--network", "ownnet:factory", "--data", "streets", "--targets", "torchscript,unimportable",
        "--size", SIZE, "--frames", 2, "--samples", 2, "--threads", 1, "--out", "run", "--json",
        cwd=place, env=environment(place),
    )  # fmt: skip


def test_it_uses_only_what_edgekit_exports() -> None:
    tree = ast.parse((TESTS / "plugin" / "edgekit_torchscript" / "__init__.py").read_text())
    froms = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    plain = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    ours = {
        name
        for name in froms | plain
        if name and name.split(".")[0] in ("edgekit", "targets", "calibration", "reports")
    }
    assert ours == {"edgekit"}


def test_targets_lists_it(place: Path) -> None:
    done = edgekit("targets", "--json", cwd=place, env=environment(place))
    assert done.code == 0
    rows = {row["target"]: row for row in done.document["targets"]}
    assert rows["torchscript"]["available"]
    assert rows["torchscript"]["precisions"] == ["fp32"]
    assert rows["torchscript"]["engine"]["kind"] == "measured"
    assert not rows["unimportable"]["available"]
    assert "RuntimeError: the flux capacitor is dry" in rows["unimportable"]["missing"]
    assert not rows["raising"]["available"]
    assert "cannot say what it needs: ModuleNotFoundError: No module named 'flux'" in rows["raising"]["missing"]
    assert {"coreml", "openvino", "tflite", "onnxruntime", "tensorrt"} <= set(rows)


def test_targets_in_words(place: Path) -> None:
    done = edgekit("targets", cwd=place, env=environment(place))
    assert done.code == 0
    assert "flux capacitor" in done.out
    assert "torchscript" in done.out


def test_it_passes_the_suite(
    place: Path, tmp_path: Path, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(TESTS / "plugin")
    from edgekit_torchscript import TARGET

    assert check_target(TARGET, tmp_path, load_checkpoint(str(small_checkpoint))) == []
    from edgekit_raising import TARGET as RAISING

    (finding,) = check_target(RAISING, tmp_path, load_checkpoint(str(small_checkpoint)))
    assert finding == "describing itself, it raised ModuleNotFoundError: No module named 'flux'"
    findings = check_target(replace(TARGET, precisions=()), tmp_path, load_checkpoint(str(small_checkpoint)))
    assert any("its precisions () are not among" in text for text in findings)


def test_a_run_reports_it_with_measured_numbers(finished: Done) -> None:
    rows = {row["target"]: row for row in finished.document["rows"]}
    row = rows["torchscript"]
    assert row["provenance"]["miou"]["kind"] == "measured"
    assert "TorchScript" in row["provenance"]["miou"]["by"]
    assert 0 < row["miou"] < 1
    assert abs(row["miou_drop"]) < 1e-3
    assert row["provenance"]["latency"]["kind"] == "measured"
    assert row["latency_ms"]["n"] >= 64
    assert row["latency_scope"] == "frame-to-labels"


def test_an_unimportable_one_is_a_failed_row(finished: Done) -> None:
    assert finished.code == 1
    assert "flux capacitor" in finished.sentence
    row = next(row for row in finished.document["rows"] if row["target"] == "unimportable")
    assert row["miou"] is None
    assert row["provenance"]["miou"]["kind"] == "not measured"
    assert "flux capacitor" in row["provenance"]["miou"]["why"]
    assert finished.document["failed"][0]["target"] == "unimportable"


def test_it_does_not_stop_commands_that_take_every_target(place: Path) -> None:
    """``convert`` without --target makes what can be made; here all but the good plug-in are kept from being found."""
    hidden = place / "alone"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import importlib.metadata as metadata\n"
        "real = metadata.entry_points\n"
        "def only(**chosen):\n"
        "    found = real(**chosen)\n"
        "    if chosen.get('group') != 'edgekit.targets':\n"
        "        return found\n"
        "    return metadata.EntryPoints(e for e in found if e.name in ('torchscript', 'unimportable'))\n"
        "metadata.entry_points = only\n"
    )
    done = edgekit(
        "convert", "own.pth", "--network", "ownnet:factory", "--classes", "streets", "--size", SIZE, "--out", "made",
        "--json", cwd=place, env=environment(hidden, place),
    )  # fmt: skip
    assert done.code == 0, done.err
    assert [entry["target"] for entry in done.document["artifacts"]] == ["torchscript"]
    assert sys.modules.get("edgekit_unimportable") is None
