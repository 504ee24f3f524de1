"""Checkpoints at the seam: what comes back, what is refused, and that nothing in them ever runs."""

from __future__ import annotations

import importlib
import json
import os
import pickle
import shutil
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from edgekit.core.errors import CheckpointError, EdgekitError, UsageError
from edgekit.core.files import sha256_path
from edgekit.core.values import Normalization
from edgekit.networks.checkpoint import (
    SHIPPED_FOLDER,
    Description,
    load_checkpoint,
    load_network,
    load_state,
    save_checkpoint,
    shipped_names,
)
from edgekit.networks.fast_scnn import FastSCNN
from edgekit.networks.spssn import SPSSN

NAMES = ("road", "tree", "sky")


def refused(action: Callable[[], Any], kind: type[EdgekitError], *words: str) -> str:
    """The message of the error that ``action`` must end with: one sentence, mendable, with the words in it."""
    with pytest.raises(EdgekitError) as caught:
        action()
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert caught.value.exit_code == (2 if kind is UsageError else 1)
    assert message
    assert "\n" not in message
    for word in words:
        assert word in message, f"'{word}' is not in: {message}"
    return message


def randomized(network: nn.Module) -> nn.Module:
    """Running statistics too, so that a lost buffer shows."""
    torch.manual_seed(3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.5, 0.5)
            module.running_var.uniform_(0.5, 1.5)
    return network.eval()


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Writes a module of the user's; it is forgotten after the test."""
    written: list[str] = []
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, source: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        importlib.invalidate_caches()
        sys.modules.pop(name, None)
        written.append(name)

    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield write
    for name in written:
        sys.modules.pop(name, None)


OWN = """
from torch import nn


class Net(nn.Sequential):
    def __init__(self, classes):
        super().__init__(nn.Conv2d(3, classes, 3, 4, 1))


def make(classes):
    return Net(classes)


def fixed():
    return Net(3)
"""


@pytest.mark.parametrize(
    ("network", "arguments"),
    [("spssn", {}), ("spssn", {"camvid": True, "pooling_stages": 2}), ("spssn-stream", {}), ("fast-scnn", {})],
)
def test_roundtrip(tmp_path: Path, network: str, arguments: dict[str, Any]) -> None:
    module = FastSCNN(3) if network == "fast-scnn" else SPSSN(3, stream=network == "spssn-stream", **arguments)
    randomized(module)
    normalization = Normalization((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    path = tmp_path / "folder" / "mine.safetensors"
    save_checkpoint(
        path,
        module,
        Description(
            network=network,
            arguments=arguments,
            class_names=NAMES,
            normalization=normalization,
            dataset="camvid",
            recipe={"epochs": 3},
            metrics={"camvid:val": {"miou": 0.5, "iiou": None}},
        ),
    )
    checkpoint = load_checkpoint(str(path))
    assert (checkpoint.name, checkpoint.path, checkpoint.sha256) == ("mine", path, sha256_path(path))
    assert (checkpoint.network, checkpoint.arguments, checkpoint.class_names) == (network, arguments, NAMES)
    assert (checkpoint.normalization, checkpoint.dataset) == (normalization, "camvid")
    assert checkpoint.recipe == {"epochs": 3}
    assert checkpoint.metrics == {"camvid:val": {"miou": 0.5, "iiou": None}}
    assert json.loads(json.dumps(checkpoint.describe()))["classes"] == list(NAMES)
    loaded = load_network(checkpoint)
    assert not loaded.training
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), module(x))


def test_saving_twice_gives_the_same_identity(tmp_path: Path) -> None:
    module = SPSSN(3)
    for name in ("a", "b"):
        save_checkpoint(
            tmp_path / f"{name}.safetensors",
            module,
            Description(
                network="spssn",
                arguments={},
                class_names=NAMES,
                normalization=Normalization(),
                dataset="",
                recipe={},
                metrics={},
            ),
        )
    assert sha256_path(tmp_path / "a.safetensors") == sha256_path(tmp_path / "b.safetensors")


def test_a_module_that_stands_in_a_network_twice_is_saved(tmp_path: Path) -> None:
    module = nn.Module()
    module.backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    module.stem = module.backbone[0]
    path = tmp_path / "twice.safetensors"
    save_checkpoint(
        path,
        module,
        Description(
            network="spssn",
            arguments={},
            class_names=NAMES,
            normalization=Normalization(),
            dataset="",
            recipe={},
            metrics={},
        ),
    )
    stored = load_file(path)
    assert stored.keys() == module.state_dict().keys()
    assert torch.equal(stored["stem.weight"], stored["backbone.0.weight"])


@pytest.mark.parametrize("flushed", [False, True])
def test_subnormal_weights_are_saved_as_zeros(tmp_path: Path, flushed: bool) -> None:
    """As training on a GPU leaves them; CPUs are many times slower there, in apps that do not flush them."""
    module = SPSSN(3)
    weight = next(module.parameters())
    with torch.no_grad():
        weight.view(-1)[:3] = torch.tensor([1e-40, -1e-42, 2e-38])
    torch.set_flush_denormal(flushed)
    try:
        save_checkpoint(
            tmp_path / "a.safetensors",
            module,
            Description(
                network="spssn",
                arguments={},
                class_names=NAMES,
                normalization=Normalization(),
                dataset="",
                recipe={},
                metrics={},
            ),
        )
    finally:
        torch.set_flush_denormal(False)
    stored = load_file(tmp_path / "a.safetensors")
    name = next(name for name, _ in module.named_parameters())
    assert stored[name].view(-1)[:3].tolist() == [0.0, 0.0, weight.view(-1)[2].item()]
    others = [key for key in stored if key != name]
    assert all(torch.equal(stored[key], module.state_dict()[key]) for key in others)


def test_shipped_names_load() -> None:
    names = shipped_names()
    assert set(names) == {path.stem for path in SHIPPED_FOLDER.glob("*.safetensors")}
    for name in names:
        checkpoint = load_checkpoint(name)
        assert checkpoint.name == name
        assert checkpoint.dataset == name.rpartition("-")[2]
        load_network(checkpoint)


def test_a_shipped_name_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in shipped_names():
        (tmp_path / name).write_text("a file of the same name")
        assert load_checkpoint(name).path.parent.resolve() == SHIPPED_FOLDER.resolve()


def test_missing_file_names_the_shipped_ones() -> None:
    message = refused(
        lambda: load_checkpoint("nowhere/model.safetensors"), CheckpointError, "nowhere/model.safetensors"
    )
    assert all(name in message for name in shipped_names())


@pytest.mark.parametrize("kept", [0, 4, 8, 100, 5000, -1])
def test_truncated_safetensors(small_checkpoint: Path, tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(small_checkpoint.read_bytes()[:kept])
    refused(lambda: load_checkpoint(str(path)), CheckpointError, "cut.safetensors")
    refused(lambda: load_state(path), CheckpointError, "cut.safetensors")


def with_header(header: Any) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


@pytest.mark.parametrize(
    "data",
    [
        b"\x00" * 64,
        b"not safetensors at all, but long enough to hold a header",
        with_header([1, 2, 3]),
        with_header({"weight": {}}),
        with_header({"__metadata__": {"edgekit": "{cut"}}),
        with_header({"__metadata__": {"edgekit": "[]"}}),
        with_header({"__metadata__": {"edgekit": '{"schema": 1, "network": "spssn"}'}}),
        with_header({"__metadata__": {"edgekit": '{"schema": 99}'}}),
    ],
    ids=["zeros", "text", "list", "no offsets", "bad metadata", "metadata list", "metadata incomplete", "other schema"],
)
def test_damaged_headers(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(data)
    refused(lambda: load_checkpoint(str(path)), CheckpointError, "bad.safetensors")


def test_safetensors_of_another_network(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file(FastSCNN(3).state_dict(), path)
    checkpoint = load_checkpoint(str(path), network="spssn", class_names=NAMES)
    refused(lambda: load_network(checkpoint), CheckpointError, "other.safetensors", "spssn", "is missing", "--network")


def test_other_number_of_classes_names_the_tensor(tmp_path: Path) -> None:
    path = tmp_path / "five.pt"
    torch.save(SPSSN(5).state_dict(), path)
    checkpoint = load_checkpoint(str(path), network="spssn", class_names=NAMES)
    refused(lambda: load_network(checkpoint), CheckpointError, "classifier.3", "3 classes")


class Attack:
    """Unpickling it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("suffix", ["pt", "pth", "bin"])
@pytest.mark.parametrize("write", ["torch", "pickle", "inside a state dict"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_pickle_never_runs(tmp_path: Path, suffix: str, write: str) -> None:
    trace, path = tmp_path / "it-ran", tmp_path / f"evil.{suffix}"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Attack(trace)))
    elif write == "torch":
        torch.save(Attack(trace), path)
    else:
        torch.save({**SPSSN(3).state_dict(), "extra": Attack(trace)}, path)
    checkpoint = load_checkpoint(str(path), network="spssn", class_names=NAMES)
    refused(lambda: load_network(checkpoint), CheckpointError, f"evil.{suffix}")
    assert not trace.exists()
    pickle_runs = tmp_path / "proof"
    pickle.loads(pickle.dumps(Attack(pickle_runs)))
    assert pickle_runs.exists(), "the attack itself must work, or this test proves nothing"


def test_a_whole_pickled_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save(SPSSN(3), path)
    refused(lambda: load_state(path), CheckpointError, "model.pt", "state_dict()")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04",
        b"plain text\n",
        b"\x80\x02",
        b"\x80\x04K\x01.",
        bytes(range(256)),
        b"cnothing\nhere\n.",
        b"}.",
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_damaged_pickles(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "bad.pt"
    path.write_bytes(data)
    refused(lambda: load_state(path), CheckpointError, "bad.pt")


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.99])
def test_truncated_state_dict(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "cut.pth"
    torch.save(FastSCNN(3).state_dict(), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    refused(lambda: load_state(path), CheckpointError, "cut.pth")


@pytest.mark.parametrize("content", [{}, [1, 2], {"epoch": 3}, torch.zeros(3), {"state_dict": {"epoch": 1}}])
def test_not_a_state_dict(tmp_path: Path, content: Any) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    refused(lambda: load_state(path), CheckpointError, "other.pt", "state dict")


@pytest.mark.parametrize(
    "wrapping", ["plain", "state_dict", "model_state_dict", "model", "parallel", "parallel state_dict"]
)
def test_plain_state_dicts_in_their_usual_wrappings(tmp_path: Path, wrapping: str) -> None:
    module = randomized(SPSSN(3))
    state: dict[str, Any] = dict((nn.DataParallel(module) if "parallel" in wrapping else module).state_dict())
    if "parallel" in wrapping:
        assert all(key.startswith("module.") for key in state)
    key = wrapping.rpartition(" ")[2]
    path = tmp_path / "weights.pt"
    torch.save(state if key in ("plain", "parallel") else {key: state, "epoch": 7}, path)
    loaded = load_network(load_checkpoint(str(path), network="spssn", class_names=NAMES))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x), module(x))


def test_old_state_dict_without_batch_counters_loads(tmp_path: Path) -> None:
    path = tmp_path / "old.pt"
    state = {key: value for key, value in SPSSN(3).state_dict().items() if not key.endswith("num_batches_tracked")}
    torch.save(state, path)
    load_network(load_checkpoint(str(path), network="spssn", class_names=NAMES))


def test_half_precision_weights_load_as_float(tmp_path: Path) -> None:
    path = tmp_path / "half.pt"
    torch.save(SPSSN(3).half().state_dict(), path)
    network = load_network(load_checkpoint(str(path), network="spssn", class_names=NAMES))
    assert {value.dtype for value in network.parameters()} == {torch.float32}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(tmp_path: Path, value: float) -> None:
    path = tmp_path / "nan.pt"
    state = SPSSN(3).state_dict()
    state["classifier.3.bias"][1] = value
    torch.save(state, path)
    checkpoint = load_checkpoint(str(path), network="spssn", class_names=NAMES)
    refused(lambda: load_network(checkpoint), CheckpointError, "nan.pt", "classifier.3.bias")


def test_plain_state_dict_needs_network_and_classes(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save(SPSSN(3).state_dict(), path)
    refused(lambda: load_checkpoint(str(path)), CheckpointError, "weights.pt", "--network")
    refused(lambda: load_checkpoint(str(path), network="spssn"), CheckpointError, "weights.pt", "--data")


def test_safetensors_without_description_needs_a_network(tmp_path: Path) -> None:
    path = tmp_path / "plain.safetensors"
    save_file(SPSSN(3).state_dict(), path)
    refused(lambda: load_checkpoint(str(path)), CheckpointError, "plain.safetensors", "--network")
    load_network(load_checkpoint(str(path), network="spssn", class_names=NAMES))


@pytest.mark.parametrize("factory", ["make", "fixed", "Net"])
def test_own_network(tmp_path: Path, own_module: Callable[..., None], factory: str) -> None:
    own_module("mynet", OWN)
    module = importlib.import_module("mynet").make(3).eval()
    path = tmp_path / "own.pt"
    torch.save(module.state_dict(), path)
    checkpoint = load_checkpoint(str(path), network=f"mynet:{factory}", class_names=NAMES)
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(load_network(checkpoint)(x), module(x))


def test_own_network_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `edgekit convert --network here:make` is typed: nothing on sys.path names the folder."""
    (tmp_path / "lying_here.py").write_text(OWN)
    path = tmp_path / "own.pt"
    torch.save({"0.weight": torch.zeros(3, 3, 3, 3), "0.bias": torch.zeros(3)}, path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry])
    importlib.invalidate_caches()
    try:
        load_network(load_checkpoint("own.pt", network="lying_here:make", class_names=NAMES))
    finally:
        sys.modules.pop("lying_here", None)


PARTIAL = "\nimport functools\n\nwith_partial = functools.partial(Net, classes=3)\n"
CALLABLE = "\n\nclass Maker:\n    def __call__(self, classes):\n        return Net(classes)\n\n\nmaker = Maker()\n"


@pytest.mark.parametrize("factory", ["make", "Net", "with_partial", "maker"])
def test_own_networks_source_is_part_of_its_identity(
    tmp_path: Path, own_module: Callable[..., None], factory: str
) -> None:
    path = tmp_path / "own.pt"
    torch.save({"0.weight": torch.zeros(3, 3, 3, 3), "0.bias": torch.zeros(3)}, path)

    def identity(source: str) -> str:
        own_module("changing", source + PARTIAL + CALLABLE)
        checkpoint = load_checkpoint(str(path), network=f"changing:{factory}", class_names=NAMES)
        load_network(checkpoint)
        return checkpoint.sha256

    first = identity(OWN)
    assert identity(OWN) == first
    assert identity(OWN.replace("3, 4, 1)", "3, 8, 1)")) != first
    assert first != sha256_path(path)


def test_what_a_network_imports_is_part_of_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside it, in its package or a folder, in a function's body and in turn; what it does not import is not. Nothing is run."""
    root = tmp_path / "code"
    sources = {
        "seen/__init__.py": "", "seen/net.py": "import torch\nfrom . import blocks\nfrom beside import act\n" + OWN,
        "seen/blocks.py": "width = 3\n\ndef later():\n    import seen.deep\n    from ends import everything\n",
        "seen/deep.py": "from .far import up\n", "seen/far/__init__.py": "", "seen/far/up.py": "from .. import top\n",
        "seen/top.py": "", "folder/inner.py": "", "ends.py": "import sys\nsys.exit('was run')\n",
        "registry/__init__.py": "import importlib\nfor n in 'ab': importlib.import_module('registry.' + n)\n",
        "registry/a.py": "", "registry/b.py": "import edgekit\n",
        "beside.py": "from further import *\nimport registry\nact = 1\n", "further.py": "from folder.inner import *\n", "alien.py": "other = 1\n",
    }  # fmt: skip
    for name, source in sources.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(source)
    monkeypatch.syspath_prepend(root)
    path = tmp_path / "own.pt"
    torch.save({"0.weight": torch.zeros(3, 3, 3, 3), "0.bias": torch.zeros(3)}, path)

    def identity() -> str:
        return load_checkpoint(str(path), network="seen.net:make", class_names=NAMES).sha256

    first = identity()
    for name, source in sources.items():
        (root / name).write_text(f"{source}\n# changed\n")
        assert (identity() != first) == (name != "alien.py"), name
        (root / name).write_text(source)
    (root / "elsewhere.py").write_text(sources["seen/net.py"].replace("from . import blocks\n", ""))
    (root / "linked").mkdir()
    (root / "linked" / "fast.py").symlink_to(root / "elsewhere.py")
    before = load_checkpoint(str(path), network="linked.fast:make", class_names=NAMES).sha256
    (root / "elsewhere.py").write_text((root / "elsewhere.py").read_text() + "\n# changed\n")
    assert load_checkpoint(str(path), network="linked.fast:make", class_names=NAMES).sha256 != before
    load_network(load_checkpoint(str(path), network="seen.net:make", class_names=NAMES))
    importlib.import_module("seen.deep")
    assert identity() == first, "whatever was imported meanwhile"


@pytest.mark.parametrize(
    ("source", "reference", "word"),
    [
        (None, "no_such_module_at_all:make", "no_such_module_at_all"),
        (OWN, "broken:absent", "absent"),
        (OWN, "broken:", "broken:"),
        (OWN, ":make", ":make"),
        ("import a_package_that_is_not_here\n", "broken:make", "a_package_that_is_not_here"),
        ("def make(:\n", "broken:make", "broken"),
        ("1 / 0\n", "broken:make", "division"),
        ("make = 3\n", "broken:make", "callable"),
    ],
)
def test_factories_that_cannot_be_imported(
    tmp_path: Path, own_module: Callable[..., None], source: str | None, reference: str, word: str
) -> None:
    if source is not None:
        own_module("broken", source)
    path = tmp_path / "own.pt"
    torch.save(SPSSN(3).state_dict(), path)
    refused(
        lambda: load_network(load_checkpoint(str(path), network=reference, class_names=NAMES)),
        UsageError,
        "--network",
        word,
    )


@pytest.mark.parametrize(
    "source",
    [
        "def make(classes, depth):\n    pass\n",
        "def make(depth):\n    pass\n",
        "def make():\n    raise ValueError('two lines\\nof it')\n",
        "def make():\n    return 'no network'\n",
    ],
    ids=["wants more", "wants more, no classes", "raises", "makes no network"],
)
def test_factories_that_make_no_network(tmp_path: Path, own_module: Callable[..., None], source: str) -> None:
    own_module("odd", source)
    path = tmp_path / "own.pt"
    torch.save(SPSSN(3).state_dict(), path)
    checkpoint = load_checkpoint(str(path), network="odd:make", class_names=NAMES)
    refused(lambda: load_network(checkpoint), CheckpointError, "odd:make")


def test_a_folder_is_no_checkpoint(tmp_path: Path) -> None:
    refused(lambda: load_checkpoint(str(tmp_path)), CheckpointError, str(tmp_path))


def test_moving_a_checkpoint_keeps_its_identity(small_checkpoint: Path, tmp_path: Path) -> None:
    shutil.copy(small_checkpoint, tmp_path / "renamed.safetensors")
    moved = load_checkpoint(str(tmp_path / "renamed.safetensors"))
    assert moved.sha256 == load_checkpoint(str(small_checkpoint)).sha256
    assert moved.name == "renamed"


def test_small_checkpoint_is_not_degenerate(small_checkpoint: Path, streets_frames: Callable[..., Any]) -> None:
    """The other tests lean on this: one class everywhere would agree with anything."""
    from edgekit.export.graph import normalize

    checkpoint = load_checkpoint(str(small_checkpoint))
    assert len(checkpoint.class_names) == 19
    network = load_network(checkpoint)
    frame = torch.from_numpy(streets_frames(1, 128, 256)[0].image[None])
    with torch.no_grad():
        labels = network(normalize(frame, checkpoint.normalization)).argmax(1)
    assert len(labels.unique()) >= 3
