"""A plug-in that raises where it should say that a package is missing."""

from importlib.util import find_spec

from edgekit_torchscript import TorchScript


class Raising(TorchScript):
    """As :class:`TorchScript`, if a package below another were there."""

    name = "raising"

    def missing(self) -> str | None:
        """Raises ModuleNotFoundError: ``find_spec`` imports the package that the module is in."""
        return None if find_spec("flux.capacitor") else "pip install flux"


TARGET = Raising()
