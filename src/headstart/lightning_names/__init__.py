"""Programs written for PyTorch Lightning import `pytorch_lightning` or `lightning`, and find headstart.

`headstart run` calls `install`. Which name is what stands in `table.py`; how Python is told, in `finder.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from headstart.lightning_names.finder import LightningFinder

# Three packages of one page each, for Python processes that the program starts: see `install`.
PATH_ENTRY = str(Path(__file__).with_name("path_entry"))


def install() -> None:
    """Make `import pytorch_lightning`, `import lightning` and `import lightning_fabric` find headstart.

    In this process a finder stands in front of all others, so that an installed PyTorch Lightning is not even
    looked at. A process that this one starts (the workers of a `DataLoader` with `spawn`, a `subprocess`, torchrun)
    begins with Python's own finders: it gets `sys.path` or `PYTHONPATH` from here, with a folder in front of the
    installed packages that holds packages of these names, and each of those calls `install` in its turn.

    Calling it twice is the same as calling it once.
    """
    if not any(isinstance(finder, LightningFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, LightningFinder({"pytorch_lightning", "lightning", "lightning_fabric"}))
        # The peer's own tests import their helpers. Those of a checkout win, hence last.
        sys.meta_path.append(LightningFinder({"tests_pytorch"}))
    if PATH_ENTRY not in sys.path:
        sys.path.insert(1, PATH_ENTRY)  # 0 is the program's folder
    inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if PATH_ENTRY not in inherited:
        os.environ["PYTHONPATH"] = os.pathsep.join([PATH_ENTRY, *filter(None, inherited)])
