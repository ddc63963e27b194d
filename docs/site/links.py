"""Links of a page to files outside docs/: on the site they lead to the repository."""

from __future__ import annotations

import re
from typing import Any

REPOSITORY = "https://github.com/headstart/headstart/blob/main"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Give the page with `](../FILE)` as a link to the repository; mkdocs calls this for every page."""
    return re.sub(r"\]\(\.\./", f"]({REPOSITORY}/", markdown)
