"""Found by Python processes that a program under `headstart run` starts: brings headstart's finder there."""

from __future__ import annotations

import sys
from importlib import import_module

if __name__ == "lightning":  # and not where a tool reads this file as a part of headstart
    from headstart.lightning_names import install

    install()
    # What stands in `sys.modules` after this page is what the importing program gets.
    del sys.modules[__name__]
    import_module(__name__)
