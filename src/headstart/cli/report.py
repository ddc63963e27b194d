"""`headstart report RUN [RUN ...]`: the report of a run made again, or several runs in one page."""

from __future__ import annotations

import argparse
from pathlib import Path

_DESCRIPTION = """\
Make report.html of a RUN again, from the facts that `headstart fit` left there: neither data nor model is needed. Of several
runs, make one page that compares them, in FILE.
"""


def run(arguments: list[str]) -> int:
    """Write the page; give the exit code.

    Args:
        arguments: What follows `headstart report`.

    Returns:
        0.

    Raises:
        MisconfigurationError: If a folder has no facts, or one is given twice.
        CheckpointError: If facts are damaged.
        MissingDependencyError: If plotly is not installed.
        WriteError: If the page cannot be written.
    """
    parser = _parser()
    options = parser.parse_args(arguments)

    from headstart.report.comparison import comparison_page
    from headstart.report.facts import read_facts
    from headstart.report.page import PAGE_FILE, report_page, write_page
    from headstart.words import printable

    facts = {path: read_facts(path) for path in options.runs}
    if len(options.runs) == 1:
        [path] = options.runs
        page = report_page(facts[path], name=printable(path.resolve().name))
        print(write_page(options.out or path / PAGE_FILE, page))
        return 0
    if options.out is None:
        parser.error("several runs are compared in a page of their own: name it with --out FILE")
    if len({path.resolve() for path in options.runs}) < len(options.runs):
        parser.error("a run is given twice")
    page = comparison_page([(printable(str(path)), facts[path]) for path in options.runs])
    print(write_page(options.out, page))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headstart report", description=_DESCRIPTION)
    parser.add_argument(
        "runs", metavar="RUN", nargs="+", type=Path, help="a folder that `headstart fit` wrote"
    )
    parser.add_argument(
        "--out", metavar="FILE", type=Path, help="the page (default, of one run: RUN/report.html)"
    )
    return parser
