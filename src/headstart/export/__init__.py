"""A trained model for other programs: written, loaded where it will run, compared with the run, and only then there.

Each format is a file of this package with `write(folder, source)`, and `predict(folder, batches)`, which answers as the
target would: by its own library, from what the folder alone says.
"""

from __future__ import annotations

from headstart.export.bundle import Exported, export

__all__ = ["Exported", "export"]
