"""Nothing is reported to anybody: what is done with tools that report their use."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from seam import MOMENT, edgekit, environment, own_network

from edgekit.core.registry import load_target

TELEMETRY = """
import sys
from pathlib import Path
from openvino_telemetry.utils.sender import TelemetrySender
from edgekit.core.registry import load_target
from edgekit.core.values import DeployableGraph, Normalization, Recipe, Size
from edgekit.export.graph import export_aten
import torch

sent = []
TelemetrySender.send = lambda self, backend, message: sent.append(message)
network = torch.nn.Conv2d(3, 2, 3, 8, 1).eval()
if sys.argv[1] == "edgekit":
    module = export_aten(network, torch.zeros(1, 3, 64, 64))
    graph = DeployableGraph(module, Size(64, 64), Size(8, 8), ("one", "other"), Normalization(), "")
    load_target("openvino").convert(graph, Recipe("fp32", output="logits"), None, Path.cwd())
else:
    import openvino
    openvino.convert_model(network, example_input=torch.zeros(1, 3, 64, 64))
print(len(sent))
"""


@pytest.mark.parametrize("by", ["edgekit", "OpenVINO itself"])
def test_nobody_is_told_of_a_conversion(by: str, tmp_path: Path) -> None:
    if (sentence := load_target("openvino").missing()) is not None:
        pytest.skip(sentence)
    unset = ("CI", "TF_BUILD", "JENKINS_URL")
    environment = {key: value for key, value in os.environ.items() if key not in unset} | {"HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TELEMETRY, by],
        env=environment,
        cwd=tmp_path,
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert (int(done.stdout.splitlines()[-1]) > 0) == (by != "edgekit")


WITNESS = r"""
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

static void note(const char *what, const char *whom) {
    FILE *file = fopen(getenv("WITNESS"), "a");
    if (file) { fprintf(file, "%s %s\n", what, whom); fclose(file); }
}

int connect(int handle, const struct sockaddr *address, socklen_t length) {
    int (*real)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
    char text[INET6_ADDRSTRLEN] = "";
    if (address->sa_family == AF_INET) {
        inet_ntop(AF_INET, &((const struct sockaddr_in *)address)->sin_addr, text, sizeof text);
        if (strncmp(text, "127.", 4)) note("connects to", text);
    } else if (address->sa_family == AF_INET6) {
        inet_ntop(AF_INET6, &((const struct sockaddr_in6 *)address)->sin6_addr, text, sizeof text);
        if (strcmp(text, "::1")) note("connects to", text);
    }
    return real(handle, address, length);
}

int getaddrinfo(const char *name, const char *service, const struct addrinfo *hints, struct addrinfo **found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) = dlsym(RTLD_NEXT, "getaddrinfo");
    if (name && strcmp(name, "localhost") && strncmp(name, "127.", 4)) note("looks up", name);
    return real(name, service, hints, found);
}
"""
"""Stands between a process, native code included, and the C library, and writes down every way out of this machine."""

RUNTIME_ITSELF = """
import onnxruntime
from onnx import TensorProto, helper
value = lambda name: helper.make_tensor_value_info(name, TensorProto.FLOAT, [1])
graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value("x")], [value("y")])
model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
onnxruntime.InferenceSession(model.SerializeToString())
"""


@pytest.fixture
def witness(tmp_path: Path) -> dict[str, str]:
    """An environment in which every look-up and connection is written to the file ``seen``, and home is the folder ``home``."""
    if sys.platform != "linux" or shutil.which("gcc") is None:
        pytest.skip("what a process says to the network is looked at by gcc and Linux's loader")
    (tmp_path / "witness.c").write_text(WITNESS)
    library = tmp_path / "witness.so"
    subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, tmp_path / "witness.c", "-ldl"], check=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "sitecustomize.py").write_text(MOMENT)
    seen = {
        "LD_PRELOAD": str(library),
        "WITNESS": str(tmp_path / "seen"),
        "HOME": str(tmp_path / "home"),
        "PYTHONPATH": str(tmp_path),
    }
    given = environment(tmp_path, **{key: value for key, value in seen.items() if key != "PYTHONPATH"})
    unset = ("CI", "TF_BUILD", "JENKINS_URL", "ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK")
    return {key: value for key, value in given.items() if key not in unset}


@pytest.mark.slow
def test_no_command_leaves_this_machine(tmp_path: Path, witness: dict[str, str]) -> None:
    """Convert, quantize, evaluate and bench, for every target and on what each uses: nothing is looked up or connected to."""
    own_network(tmp_path)
    done = edgekit(
        "run", "own.pth", "--network", "ownnet:factory", "--data", "streets", "--size", "64x64", "--frames", 1, "--samples", 2,
        "--threads", 1, "--out", "out", cwd=tmp_path, env=witness,
    )  # fmt: skip
    assert done.code == 0, done.err
    seen = tmp_path / "seen"
    assert not seen.exists(), seen.read_text()
    kept = {path.relative_to(tmp_path / "home").parts[:2] for path in (tmp_path / "home").rglob("*") if path.is_file()}
    assert not any("microsoft" in "/".join(parts).lower() or "deviceid" in parts for parts in kept), kept


def test_the_witness_sees_a_runtime_that_reports(tmp_path: Path, witness: dict[str, str]) -> None:
    """Or the test above proves nothing: the same runtime without edgekit leaves a device id at once, and looks up a collector later."""
    alone = {key: value for key, value in witness.items() if key != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", RUNTIME_ITSELF], env=alone, cwd=tmp_path, check=True, timeout=300)
    assert (tmp_path / "seen").exists() or list((tmp_path / "home").rglob("deviceid"))
