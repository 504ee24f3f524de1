"""A plug-in that cannot be imported, as one whose own dependency is broken."""

raise RuntimeError("the flux capacitor is dry")
