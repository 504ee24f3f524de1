"""The package as it is installed: its names, its pins, its contents."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import edgekit

ROOT = Path(__file__).parents[2]
PUBLIC = {
    "Artifact", "Batches", "Checkpoint", "ConversionError", "Converted", "DeployableGraph", "EdgekitError", "Engine",
    "FrameToLabels", "Inspectable", "Normalization", "OutputKind", "Precision", "Quantization", "Recipe", "Session",
    "SessionOptions", "Size",
    "Target", "TargetError", "TensorForm",
    "check_target", "decode", "deployable", "load_checkpoint", "reference_labels", "__version__",
}  # fmt: skip


@pytest.fixture(scope="module")
def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


@pytest.mark.parametrize("name", ["edgekit", "targets", "calibration", "reports"])
def test_no_other_distribution_has_our_top_level_names(name: str) -> None:
    """Two of them in one environment would overwrite each other's files."""
    assert set(packages_distributions().get(name, ())) <= {"edgekit"}


def test_exported_names() -> None:
    assert set(edgekit.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(edgekit, name) is not None
    assert set(dir(edgekit)) == PUBLIC
    with pytest.raises(AttributeError, match="no_such_name"):
        edgekit.no_such_name  # noqa: B018


def _requirements(project: dict[str, dict[str, object]]) -> list[Requirement]:
    described = project["project"]
    texts = list(described["dependencies"])  # type: ignore[call-overload]
    for extra in described["optional-dependencies"].values():  # type: ignore[attr-defined]
        texts += extra
    return [Requirement(text) for text in texts]


def test_constraints_are_what_the_project_allows(project: dict[str, dict[str, object]]) -> None:
    lines = [line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    pins = {}
    for line in filter(None, lines):
        found = re.fullmatch(r"([A-Za-z0-9._-]+)==([^;\s]+)(\s*;.*)?", line)
        assert found, f"'{line}' is no pin"
        pins[canonicalize_name(found[1])] = found[2]
    if not pins:
        pytest.skip("constraints.txt is empty")
    for requirement in _requirements(project):
        name = canonicalize_name(requirement.name)
        if name != "edgekit" and name in pins:
            assert requirement.specifier.contains(pins[name].partition("+")[0], prereleases=True), requirement
    asked = {canonicalize_name(requirement.name) for requirement in _requirements(project)} - {"edgekit"}
    assert asked & set(pins), "the pins name nothing that the project asks for"


def test_the_wheel_holds_the_shipped_checkpoints(project: dict[str, dict[str, object]]) -> None:
    """Every file of edgekit/checkpoints matches a package-data pattern, and the default one is there."""
    from edgekit.networks.checkpoint import DEFAULT_CHECKPOINT, SHIPPED_FOLDER

    patterns = project["tool"]["setuptools"]["package-data"]["edgekit"]  # type: ignore[index]
    package = ROOT / "edgekit"
    assert package / "checkpoints" == SHIPPED_FOLDER
    matched = {path for pattern in patterns for path in package.glob(pattern)}
    assert package / "py.typed" in matched
    shipped = set(SHIPPED_FOLDER.glob("*.safetensors"))
    if not shipped:
        pytest.skip("no checkpoint is shipped yet")
    assert shipped <= matched
    assert f"{DEFAULT_CHECKPOINT}.safetensors" in {path.name for path in shipped}


def test_the_wheel_holds_every_package(project: dict[str, dict[str, object]]) -> None:
    from setuptools import find_packages

    include = project["tool"]["setuptools"]["packages"]["find"]["include"]  # type: ignore[index]
    found = set(find_packages(str(ROOT), include=include))
    folders = {
        path.parent for top in ("edgekit", "targets", "calibration", "reports") for path in (ROOT / top).rglob("*.py")
    }
    assert found == {folder.relative_to(ROOT).as_posix().replace("/", ".") for folder in folders}


def test_every_pin_has_hashes_and_no_other_is_named() -> None:
    """What the README installs with --require-hashes is what was tested together."""

    def lines(name: str) -> list[str]:
        text = (ROOT / name).read_text().replace("\\\n", "")
        return [line for line in text.splitlines() if line and not line.startswith("#")]

    hashed = {re.split(r"\s+--hash", line)[0].strip(): line for line in lines("constraints-hashed.txt")}
    assert set(hashed) == set(lines("constraints.txt")), "run python .ci/hashes.py"
    assert all(re.search(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashed.values())
