"""What int8 artifacts give on ARM's kernels: the agent by ssh in a Debian arm64 userland that qemu executes.

Run: make test-arm64 [or python -m benchmarks.accuracy.arm64 FOLDER]. As root, on Debian or Ubuntu x86-64; it installs what it needs.
qemu executes each program instruction by instruction, so that neither binfmt nor any privilege beyond root in a container is
needed; its times say nothing, and none is kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shared.measured import keep
from edgekit.core.errors import EdgekitError
from edgekit.core.files import read_json, write_text
from edgekit.core.measurement import Counts
from edgekit.core.record import read
from edgekit.metrics.scores import dense, mean_iou
from reports.statistics import bootstrap_drop

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tests" / "devices"))  # a real sshd of its own, as the tests start it

import sshd  # noqa: E402

PROGRAMS = {
    "debootstrap": "debootstrap",
    "qemu-aarch64-static": "qemu-user-static",
    "sshd": "openssh-server",
    "ssh": "openssh-client",
}
RELEASE, PYTHON = "bookworm", "3.11"
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("ai-edge-litert", "onnxruntime", "numpy")
PLATFORMS = ("manylinux2014", *(f"manylinux_2_{minor}" for minor in range(17, 37)))
CPU, CORES = "cortex-a76", 2
CPUINFO = """processor\t: {core}
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
"""A Cortex-A76's (a Raspberry Pi 5's cores), with the features that qemu's has. qemu 7 shows the host's, at which ONNX Runtime crashes."""
DEVICE = "arm64"
CHECKPOINT, SIZE, FRAMES, SAMPLES = "spssn-streets", "256x512", 64, 16
"""All frames of the test split."""
TARGETS = {"tflite": "LiteRT", "onnxruntime": "ONNX Runtime"}


def main() -> None:
    """Make the userland, run in it, and keep what came of it."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "runs" / "arm64"
    started = time.monotonic()
    try:
        install()
        python = userland(folder.resolve())
        document = measure(folder.resolve(), python)
    except EdgekitError as error:
        sys.exit(f"error: {error}")
    keep("arm64", document)
    for row in document["rows"]:
        print(f"{row['target']} int8: mIoU {row['miou']:.4f} on ARM, {row['miou_x86']:.4f} on x86")
    print(f"done in {(time.monotonic() - started) / 60:.0f} min")


def install() -> None:
    """Debian packages that are missing."""
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
    missing = [package for program, package in PROGRAMS.items() if shutil.which(program, path=search) is None]
    if not missing:
        return
    if os.getuid() != 0 or shutil.which("apt-get") is None:
        raise EdgekitError(f"this needs {', '.join(missing)}: install them, or run as root on Debian")
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    call("apt-get", "update", "-qq", env=environment)
    call("apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing, env=environment)


def userland(folder: Path) -> Path:
    """Debian for arm64 with Python and the runtimes, unpacked and not configured; returns the Python that starts there."""
    root = folder / "root"
    python = root / "usr" / "bin" / "python3-emulated"
    wheels = [pinned(package) for package in PACKAGES]
    done = folder / "root.made"
    made = f"{RELEASE} {' '.join(wheels)}\n"
    if not done.is_file() or done.read_text() != made:
        if os.getuid() != 0:
            raise EdgekitError("debootstrap makes its folders as root: run this as root, in a container if you like")
        shutil.rmtree(root, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
        print(f"making a Debian {RELEASE} for arm64 in {root}", flush=True)
        call(
            "debootstrap", "--arch=arm64", "--foreign", "--variant=minbase", f"--include=python{PYTHON}-minimal,python{PYTHON},libgomp1",
            RELEASE, str(root), MIRROR,
        )  # fmt: skip
        # --foreign unpacks what Debian cannot do without; the rest waits for a second stage, which would run as arm64.
        for package in sorted((root / "var/cache/apt/archives").glob("*.deb")):
            call("dpkg", "-x", str(package), str(root))
        platforms = [f"--platform={platform}_aarch64" for platform in PLATFORMS]
        call(
            sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile",
            "--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}", *platforms,
            f"--target={root}/usr/lib/python3/dist-packages", *wheels,
        )  # fmt: skip
        write_text(root / "proc" / "cpuinfo", "".join(CPUINFO.format(core=core) for core in range(CORES)))
        write_text(done, made)
    # Its own name as argv[0]: Python starts its workers by it, and the kernel knows what a shell script is.
    write_text(
        python, f'#!/bin/sh\nexec qemu-aarch64-static -cpu {CPU} -0 "$0" -L {root} {root}/usr/bin/python{PYTHON} "$@"\n'
    )
    python.chmod(0o755)
    script = "import platform, sys, numpy, onnxruntime; from ai_edge_litert.interpreter import Interpreter; print(platform.machine(), sys.executable)"
    said = subprocess.run(
        [python, "-c", script],
        capture_output=True,
        text=True,
        check=False,
    )
    if said.stdout.split() != ["aarch64", str(python)]:
        raise EdgekitError(
            f"the arm64 Python does not start ({said.stdout[-200:]}{said.stderr[-400:]}): remove {folder} and run again"
        )
    return python


def measure(folder: Path, python: Path) -> dict[str, Any]:
    """``edgekit run`` of the same artifacts here and in the userland by ssh, and the difference of their labels' mIoU."""
    shutil.rmtree(folder / "sshd", ignore_errors=True)
    server = sshd.make_server(folder / "sshd")
    (folder / "devices.toml").unlink(missing_ok=True)
    sshd.inventory(folder, server, DEVICE, python=str(python), emulated="qemu", cache=str(folder / "cache"))
    server.start()
    run = folder / "run"
    for path in (run / "measurements").glob(f"*.{DEVICE}.*"):  # artifacts are kept, what they give there is seen anew
        path.unlink()
    try:
        call(
            sys.executable, "-m", "edgekit", "run", CHECKPOINT, "--targets", ",".join(TARGETS), "--precisions", "int8",
            "--size", SIZE, "--frames", str(FRAMES), "--samples", str(SAMPLES), "--device", f"local,{DEVICE}", "--out", str(run),
            cwd=folder,
        )  # fmt: skip
    finally:
        server.stop()
    report = read_json(run / "report" / "report.json")
    rows = []
    for target, runtime in TARGETS.items():
        here, there = (
            next(
                row
                for row in report["rows"]
                if (row["target"], row["precision"], row["device"]) == (target, "int8", device)
            )
            for device in ("local", DEVICE)
        )
        provenance = there["provenance"]
        if provenance["miou"]["kind"] != "reference" or not provenance["miou"]["by"].startswith(runtime):
            raise EdgekitError(f"{target} was not evaluated in the userland: {provenance['miou']}")
        if provenance["latency"]["kind"] != "not measured" or there["latency_ms"] is not None:
            raise EdgekitError(f"{target} has a latency of an emulated processor: {provenance['latency']}")
        x86, arm = (confusions(run, target, name) for name in ("local", DEVICE))
        drop = bootstrap_drop(x86, arm)
        rows.append(
            {
                "target": target, "miou": there["miou"], "miou_x86": here["miou"], "miou_drop": there["miou_drop"],
                "miou_drop_ci": there["miou_drop_ci"], "arm_below_x86": [drop.value, drop.low, drop.high],
                "frames_counted_alike": int((x86 == arm).all(axis=(1, 2)).sum()), "provenance": provenance,
            }
        )  # fmt: skip
        print(f"{target}: {float(mean_iou(x86.sum(0))):.4f} here, {float(mean_iou(arm.sum(0))):.4f} there", flush=True)
    float_row = next(row for row in report["rows"] if row["target"] == "pytorch")
    qemu = subprocess.run(["qemu-aarch64-static", "--version"], capture_output=True, text=True, check=True).stdout
    return {
        "checkpoint": CHECKPOINT, "size": SIZE, "frames": report["dataset"]["frames"], "dataset": report["dataset"], "samples": SAMPLES,
        "float": float_row["miou"], "rows": rows, "packages": [pinned(package) for package in PACKAGES],
        "emulator": " ".join(qemu.splitlines()[0].split()), "processor": CPU,
    }  # fmt: skip


def confusions(run: Path, target: str, device: str) -> np.ndarray:
    """int64 [frames, C, C] of an artifact on a device."""
    path = run / "measurements" / f"{target}-int8-{SIZE}.{device}.json"
    document = read_json(path)
    classes = len(read_json(run / "report" / "report.json")["checkpoint"]["classes"])
    return np.stack(
        [dense(read(Counts, counts, "counts"), classes).confusion for counts in document["accuracy"]["counts"]]
    )


def pinned(package: str) -> str:
    """``name==version``, as the constraints have it."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if line.lower().startswith(f"{package}=="):
            return line.strip()
    raise EdgekitError(f"constraints.txt does not pin {package}")


def call(*command: str, **options: Any) -> None:
    """A command whose output is shown."""
    done = subprocess.run(command, check=False, **options)
    if done.returncode:
        raise EdgekitError(f"{' '.join(command[:4])} ... ended with {done.returncode}")


if __name__ == "__main__":
    main()
