"""A device that answers the talk as it should, except for one thing: what a broken or hostile board might say.

Called as the device's Python: ``hostile.py MODE ARGUMENTS...``. What is not the agent's start is passed to a real Python.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

MODE, ARGUMENTS = sys.argv[1], sys.argv[2:]
OUT = sys.stdout.buffer


def flood(chunk: bytes) -> None:
    """10 GB, or until nobody reads any more."""
    for _ in range(10_000_000_000 // len(chunk)):
        OUT.write(chunk)


if ARGUMENTS[0] == "-c":
    if MODE == "look":
        flood(b"x" * (1 << 20))
    os.execv(sys.executable, [sys.executable, *ARGUMENTS])

_, _, token, root, _, version = ARGUMENTS[:6]
NASTY = (
    "\x1b[2J\x1b]0;owned\x07../../../etc <script>alert(1)</script> | `$(touch pwned)`\u009b2J\u202e\ud800\r\n# heading"
)


def say(number: Any, **content: Any) -> None:
    OUT.write(f"@edgekit:{token}:{json.dumps({'id': number, **content})}\n".encode())
    OUT.flush()


def frames(pack: str, classes: dict[str, Any]) -> list[dict[str, Any]]:
    """Counts of every frame as if all were labelled 0, which is right, except for one thing."""
    import numpy as np

    from edgekit.core.record import plain
    from edgekit.devices.worker import count_pack, read_classes

    found: list[dict[str, Any]] = plain(
        count_pack(
            lambda image: np.zeros(image.shape[:3], np.uint8), Path(root, "incoming", pack), read_classes(classes)
        )
    )
    for one in found:
        counts = one["counts"]
        one["agreement"] = 2.0 if MODE == "agreement" else one["agreement"]
        if MODE == "counts":
            counts["confusion"][0] = [0, 99, 8192]
        elif MODE == "hits":
            counts["class_hits"][-1] = "x"
        elif MODE == "nothing":
            counts["confusion"] = []
        elif MODE == "twice":
            counts["confusion"].append(counts["confusion"][0])
        elif MODE == "absurd":
            counts["confusion"][0][2] = 1 << 39
        elif MODE == "minus":
            counts["confusion"][0][2] *= -1
        elif MODE == "shape":
            counts["class_misses"] = counts["class_misses"][1:]
        elif MODE == "instances":
            counts["class_hits"] = [1e9] * len(counts["class_hits"])
    return found


LATENCY: dict[str, Any] = {
    "scope": "frame-to-labels", "mode": "quick", "rounds_ms": [[1.0, 1.1]] * 8, "warmup_ms": [1.0], "first_ms": 1.0,
    "load_ms": 1.0, "peak_rss_bytes": 1 << 20, "settings": {"threads": 1, NASTY: NASTY},
    "conditions": [{"clock_khz": "fast", "temperature_c": {NASTY: "hot", "cpu": 10**400}}, "warm"],
}  # fmt: skip
WRONG = {"negative": {"rounds_ms": [[-1.0]]}, "empty": {"rounds_ms": []}, "words": {"rounds_ms": [["fast"]]},
         "short": {"rounds_ms": [[1e-300] * 64]}, "long": {"rounds_ms": [[9.9e8] * 64]}, "flat": {"rounds_ms": [1.0]},
         "days": {"rounds_ms": [[3e6] * 64]}, "null": {"rounds_ms": [[None]]},
         "scope": {"scope": ["graph"]}, "memory": {"peak_rss_bytes": "a lot"}, "first": {"first_ms": True},
         "huge": {"peak_rss_bytes": 10**400}, "mode": {"mode": "full"}}  # fmt: skip

for line in sys.stdin:
    command = json.loads(line)
    number, do = command.get("id"), command["do"]
    if do == "alive":
        continue
    who = {"python": "3.11", "system": "linux", "machine": NASTY, "host": NASTY, "boot": "1", "missing": {},
           "runtimes": {"onnxruntime": "1.0"}}  # fmt: skip
    if do == "hello":
        if MODE == "version":
            version = "9.9.9"
        say(number, done={"protocol": 1, "edgekit": version, **who})
    elif do == "probe":
        if MODE == "probe":  # nothing is of the type that it should be
            wrong: list[Any] = [1, "x", [], {}, None, True]
            keys = (
                "environment",
                "runtimes",
                "missing",
                "conditions",
                "cache",
                "tensorrt",
                "free_bytes",
                "python",
                "machine",
            )
            say(number, done={key: wrong[index % len(wrong)] for index, key in enumerate(keys)})
            continue
        environment = {"cpu": NASTY, "cores": 4, "os": NASTY, "packages": {NASTY: NASTY}}
        say(number, done={**who, "environment": environment, "free_bytes": 1})
    elif do == "have":
        if MODE == "line":
            flood(b"x" * (1 << 20))
        if MODE == "newlines":
            OUT.write(b"\n" * 3_000_000)
        if MODE == "lines":
            flood(f'@edgekit:{token}:{{"id": {number}, "event": {{"progress": "{"x" * 1000}"}}}}\n'.encode())
        if MODE == "deep":
            OUT.write(f"@edgekit:{token}:".encode() + b"[" * 200_000 + b"\n")
            OUT.flush()
        say(number, done={} if MODE == "have" else {key: command[key] for key in ("artifacts", "packs", "frames")})
    elif do == "room":
        os.makedirs(f"{root}/incoming", exist_ok=True)
        say(number, done={"folder": "../../../outside" if MODE == "folder" else f"{root}/incoming"})
    elif do == "evaluate" and command["step"] == "open":
        say(number, done={"environment": {}})
    elif do == "evaluate" and command["step"] == "pack":
        answers = frames(command["pack"], command["classes"])
        for answer in answers * (200 if MODE == "more" else 1):
            say(number, event={"frame": answer})
        say(number, done={})
    elif do == "bench":
        if MODE == "nan":
            OUT.write(f'@edgekit:{token}:{{"id": {number}, "event": {{"index": 0, "latency": NaN}}}}\n'.encode())
            OUT.flush()
        say(number, event={"index": 0, "latency": {**LATENCY, **WRONG.get(MODE, {})}})
        say(number, done={"environment": {"cpu": NASTY, "clusters": [NASTY]}})
    else:
        say(number, done={})
