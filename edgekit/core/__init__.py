"""Ground floor: values, errors, the seam and file handling. Imports nothing else of edgekit's."""
