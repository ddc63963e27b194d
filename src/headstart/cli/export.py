"""`headstart export RUN --format FORMAT`: a trained model for other programs."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from headstart.words import counted

_DESCRIPTION = """\
Write the model that `headstart fit` left in RUN for other programs. What was written is loaded where it will run and
compared with RUN on real samples; where it computes something else, nothing is left and the exit code is 1.
"""


def run(arguments: list[str]) -> int:
    """Export and print; give the exit code.

    Args:
        arguments: What follows `headstart export`.

    Returns:
        0.
    """
    options = _parser().parse_args(arguments)

    from headstart.cli import output
    from headstart.export import export

    found = export(
        options.run,
        format=options.format,
        out=options.out,
        samples=options.samples,
        tolerance=options.tolerance,
        overwrite=options.overwrite,
    )
    comparison = found.comparison
    if options.json:
        print(
            json.dumps({"folder": str(found.folder), "files": found.files, "comparison": asdict(comparison)})
        )
        return 0
    if not comparison.are_real:
        print(f"Compared on {comparison.origin}.", file=sys.stderr)
    rows = [
        ("folder", str(found.folder)),
        ("files", "\n".join(f"{name}   {size:,} bytes" for name, size in found.files.items())),
        ("compared on", f"{counted(comparison.num_samples, 'sample')}: {comparison.origin}"),
        (
            "largest difference",
            f"{comparison.difference:.2g} of a logit; {comparison.allowed:.2g} is allowed",
        ),
        ("", f"{comparison.probability_difference:.2g} of a probability"),
    ]
    output.show(output.facts_table(f"Exported: {options.format}", rows))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="headstart export", description=_DESCRIPTION)
    parser.add_argument("run", metavar="RUN", type=Path, help="the folder that `headstart fit` wrote")
    parser.add_argument(
        "--format",
        required=True,
        choices=["onnx", "torch-export", "safetensors", "hf", "adapters"],
        help="hf is a folder for the Hugging Face hub; adapters are what --plan lora trained",
    )
    parser.add_argument("--out", type=Path, help="the folder that is made (default: RUN/exports/FORMAT)")
    parser.add_argument(
        "--samples",
        nargs="+",
        default=[],
        metavar="FILE",
        help="what to compare on: photos, folders of photos, or a table of texts (default: RUN's data)",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=1e-4,
        help="how far logits may differ, as a fraction of 1 + the largest (default: 1e-4)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an export that is there")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    return parser
