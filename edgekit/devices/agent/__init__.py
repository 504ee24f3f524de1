"""The agent: what runs on a device, packed into one file by :mod:`edgekit.devices.pack`.

It needs Python 3.9, numpy and the runtime, and shares with edgekit the clock (``devices/worker.py``), the contract
(``devices/local.py``), the sessions (``runtimes``), the decoder and the counting of labels.
"""

PROTOCOL = 1
"""Changes when host and agent would no longer understand each other."""

MARK = "@edgekit:"
"""Begins each line that counts; then the talk's own token, a colon and one JSON object."""

SILENCE = 60.0
"""Seconds without a line from the host after which an agent ends itself."""

EXIT_LOST = 3
"""Exit code of an agent whose host is gone."""
