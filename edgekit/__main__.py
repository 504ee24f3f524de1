"""``python -m edgekit``."""

from edgekit.cli.app import main

main()
