"""The inventory: what it takes, and that nothing hostile gets past it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seam import call
from sshd import toml_text

from edgekit.core.errors import UsageError
from edgekit.devices.inventory import EXAMPLE, chosen_devices, load_inventory, read_inventory

WHOLE = """
[orin]
kind = "ssh"
address = "me@orin.local"
port = 2222
config = "ssh/config"
python = "/opt/venv/bin/python"
cache = "/data/edgekit"
cache_megabytes = 512
runs = ["tensorrt", "onnxruntime"]
notes = "on the desk"

[pixel]
kind = "adb"
address = "192.168.1.7:5555"
benchmark_model = "tools/benchmark_model"
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "devices.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_what_it_says(tmp_path: Path) -> None:
    devices = read_inventory(written(tmp_path, WHOLE))
    assert list(devices) == ["local", "orin", "pixel"]
    orin, pixel = devices["orin"], devices["pixel"]
    assert (orin.kind, orin.address, orin.port, orin.cache_megabytes) == ("ssh", "me@orin.local", 2222, 512)
    assert orin.runs == ("tensorrt", "onnxruntime")
    assert orin.config == str(tmp_path / "ssh/config"), "relative to the inventory, wherever edgekit is called"
    assert (pixel.kind, pixel.address) == ("adb", "192.168.1.7:5555")
    assert pixel.benchmark_model == str(tmp_path / "tools/benchmark_model")
    assert read_inventory(written(tmp_path, EXAMPLE))["orin"].python == "python3"


def test_where_it_is_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    assert list(load_inventory()) == ["local"]
    assert [device.name for device in chosen_devices(None)] == ["local"]
    (tmp_path / "config" / "edgekit").mkdir(parents=True)
    written(tmp_path / "config" / "edgekit", '[mine]\nkind = "ssh"\naddress = "a"\n')
    assert list(load_inventory()) == ["local", "mine"]
    written(tmp_path / "project", '[ours]\nkind = "ssh"\naddress = "b"\n')
    assert list(load_inventory()) == ["local", "ours"], "the project's own comes first"
    with pytest.raises(UsageError, match="no device 'mine': choose from local, ours"):
        chosen_devices(["mine"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[a]\nkind = ", "not valid TOML"),
        ("a = 1", "'a' is no device"),
        ('[a]\naddress = "x"', "kind must be one of"),
        ('[a]\nkind = "usb"\naddress = "x"', "kind must be one of"),
        ('[a]\nkind = "ssh"', "address must be"),
        ('[a]\nkind = "ssh"\naddress = "x"\nadress = "y"', "unknown key 'adress'"),
        ('[a]\nkind = "ssh"\naddress = "x"\nbenchmark_model = "y"', "unknown key"),
        ('[a]\nkind = "ssh"\naddress = "-oProxyCommand=sh"', "address must be"),
        ('[a]\nkind = "ssh"\naddress = "x;reboot"', "address must be"),
        ('[a]\nkind = "ssh"\naddress = "x y"', "address must be"),
        ('[a]\nkind = "ssh"\naddress = "$(id)"', "address must be"),
        ('[a]\nkind = "ssh"\naddress = "x"\nport = "22"', "port must be a whole number"),
        ('[a]\nkind = "ssh"\naddress = "x"\nport = true', "port must be a whole number"),
        ('[a]\nkind = "ssh"\naddress = "x"\nport = 70000', "port must be at most"),
        ('[a]\nkind = "ssh"\naddress = "x"\ncache = "relative"', "cache must be an absolute path"),
        ('[a]\nkind = "ssh"\naddress = "x"\ncache = "/a/../.."', "cache must be an absolute path"),
        ('[a]\nkind = "ssh"\naddress = "x"\ncache = "/"', "cache must be an absolute path"),
        ('[a]\nkind = "ssh"\naddress = "x"\npython = "-c"', "python must be"),
        ('[a]\nkind = "ssh"\naddress = "x"\nnotes = "a\\nb"', "notes must be one line"),
        ('[a]\nkind = "ssh"\naddress = "x"\nnotes = "\\u001b[2J"', "notes must be one line"),
        ('[a]\nkind = "ssh"\naddress = "x"\nruns = "tflite"', "runs must be a list"),
        ('["../a"]\nkind = "ssh"\naddress = "x"', "cannot be a device's name"),
        ('["a b"]\nkind = "ssh"\naddress = "x"', "cannot be a device's name"),
        ('[index]\nkind = "ssh"\naddress = "x"', "cannot be a device's name"),
        ('[jetson]\nkind = "ssh"\naddress = "x"', "cannot be a device's name"),
        ('[local]\nkind = "ssh"\naddress = "x"', "is this machine and nothing else"),
        ('[a]\nkind = "local"', "is this machine and nothing else"),
        ('[a]\nkind = "ssh"\naddress = "x"\n[A]\nkind = "ssh"\naddress = "y"', "would share a report page"),
    ],
)  # fmt: skip
def test_what_it_refuses(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=re.escape(said)) as caught:
        read_inventory(written(tmp_path, text))
    assert "devices.toml" in str(caught.value), "the sentence names the file"
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


COMMANDS = [
    "ProxyCommand touch pwned", "proxycommand=touch pwned", '  "ProxyCommand" touch pwned', "Match exec 'touch pwned'", "Include other",
    "KnownHostsCommand /bin/touch pwned", "PKCS11Provider ./pwned.so", "SecurityKeyProvider ./pwned.so", "LocalCommand touch pwned",
    "ForwardAgent yes", "SendEnv *", "ProxyJump $(touch pwned)", "HostName a`touch pwned`", "User -oProxyCommand=touch", "\u202e", "=",
]  # fmt: skip


@pytest.mark.parametrize("line", COMMANDS)
def test_a_projects_ssh_configuration_runs_nothing(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A folder that somebody passes on holds both files: not even looking at a device there runs a program here."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    text = '[a]\nkind = "ssh"\naddress = "board"\nconfig = "ssh_config"\n'
    Path("ssh_config").write_text(f"Host board\n  HostName 127.0.0.1\n  Port 1\n  {line}\n")
    written(Path(), text)
    done = call(monkeypatch, capfd, "devices", "probe", "a")
    assert done.code == 2 and "such a line can run a program" in done.sentence and "\u202e" not in done.err
    assert not Path("pwned").exists()
    # In the user's own folder it is the user's.
    own = tmp_path / "config" / "edgekit"
    own.mkdir(parents=True)
    assert read_inventory(written(own, text))["a"].config == str(own / "ssh_config")


def test_a_projects_ssh_configuration_says_where(tmp_path: Path) -> None:
    """Hosts, ports, users, keys and jump hosts: all that finds a device."""
    (tmp_path / "ssh").mkdir()
    (tmp_path / "ssh" / "config").write_text(
        '# mine\n\nHost orin *.lab !x\n\tHostName=10.0.0.7\n User me\nPort 2222\nIdentityFile "~/my keys/id"\nProxyJump me@gate:22\n'
        "StrictHostKeyChecking yes\nUserKnownHostsFile ./known\nHostKeyAlias orin-1\nServerAliveInterval 5\n"
    )
    assert read_inventory(written(tmp_path, WHOLE))["orin"].config == str(tmp_path / "ssh/config")


def test_paths_of_an_inventory_are_no_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(
        Path(),
        '[a]\nkind = "ssh"\naddress = "x"\nconfig = "-oProxyCommand=sh"\n[b]\nkind = "adb"\naddress = "y"\nbenchmark_model = "-x"\n',
    )
    devices = load_inventory()
    assert devices["a"].config == str(tmp_path / "-oProxyCommand=sh") and devices["b"].benchmark_model == str(
        tmp_path / "-x"
    )


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(name=st.text(min_size=1, max_size=12), address=st.text(max_size=12))
def test_nothing_hostile_gets_through(name: str, address: str, tmp_path: Path) -> None:
    printable = all(part.isprintable() for part in (name, address))
    if not printable:  # TOML has escapes for it, which toml_text does not write
        name, address = ascii(name), ascii(address)
    try:
        devices = read_inventory(
            written(tmp_path, f'[{toml_text(name)}]\nkind = "ssh"\naddress = {toml_text(address)}\n')
        )
    except UsageError:
        return
    device = devices[name]
    assert re.fullmatch(r"[A-Za-z0-9._-]+", device.name)
    assert ".." not in device.name
    assert not device.address.startswith("-")
    assert not set(device.address) & set(" ;&|$`'\"\\<>()*?!#~\n\t/")


def test_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "none"))
    done = call(monkeypatch, capfd, "devices")
    assert done.code == 0
    assert "local" in done.out
    assert 'kind = "ssh"' in done.out, "an example, where there is no inventory"
    written(tmp_path, WHOLE)
    rows = call(monkeypatch, capfd, "devices", "--json").document["devices"]
    assert [(row["name"], row["kind"]) for row in rows] == [("local", "local"), ("orin", "ssh"), ("pixel", "adb")]
    done = call(monkeypatch, capfd, "bench", tmp_path, "--device", "nobody")
    assert done.code == 2
    assert "there is no device 'nobody': choose from local, orin, pixel" in done.sentence
    done = call(monkeypatch, capfd, "devices", "clean", "local")
    assert done.code == 2
    probe = call(monkeypatch, capfd, "devices", "probe", "local", "--json").document
    assert probe["environment"]["cores"] >= 1
    assert probe["free_bytes"] > 0


@pytest.mark.parametrize("text", ["10", "10x", "1s", "25h", "-5m", "1e3s", "", "m"])
def test_a_time_that_is_none(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if text == "10":  # seconds
        from edgekit.cli.devices import seconds_of

        assert [seconds_of(good) for good in ("10", "10s", "10m", "1h", None)] == [10, 10, 600, 3600, None]
        return
    done = call(monkeypatch, capfd, "bench", tmp_path, f"--sustained={text}")
    assert done.code == 2
    assert "write 10m, 90s or 1h" in done.sentence
