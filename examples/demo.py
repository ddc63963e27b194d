"""Finetune a pretrained network on photos of solar cells, test it, and predict a few photos: the whole way.

The photos are electroluminescence images of solar cells, from the package `elpv-dataset`, licence CC BY-NC-SA 4.0
(https://github.com/zae-bayern/elpv-dataset): Deitsch et al. 2019, https://doi.org/10.1016/j.solener.2019.02.067

    python examples/demo.py --out demo-run
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

CLASS_OF = {
    0.0: "functional",
    1.0: "defective",
}  # the others (0.33, 0.67) are cells of which the experts were unsure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--out", type=Path, default=Path("demo-run"), help="folder of the run; an old one is replaced"
    )
    parser.add_argument("--data", type=Path, default=Path("demo-data"), help="where the photos are laid out")
    parser.add_argument("--limit", type=int, help="take only this many photos")
    parser.add_argument("options", nargs="*", help="behind --: further options of headstart fit")
    arguments = parser.parse_args()
    begun = time.monotonic()

    photos = lay_out_photos(arguments.data, limit=arguments.limit)
    headstart("fit", arguments.data, "--out", arguments.out, "--overwrite", *arguments.options)
    print("\nA few photos, predicted from the saved artefact (the folder's name is the truth):")
    headstart("predict", arguments.out, *photos[:2], *photos[-2:], "--format", "table")
    print(f"\nThe demo took {time.monotonic() - begun:.0f} s.")


def lay_out_photos(folder: Path, *, limit: int | None) -> list[Path]:
    """Make a folder of links per class, as `headstart fit` reads it, and give the photos."""
    import elpv_dataset

    source = Path(elpv_dataset.__file__).parent / "data"
    rows = [line.split() for line in (source / "labels.csv").read_text().splitlines()]
    certain = [(name, CLASS_OF[float(label)]) for name, label, _ in rows if float(label) in CLASS_OF]
    certain = certain[:: max(1, len(certain) // limit)][:limit] if limit else certain
    for old in folder.glob("*/*"):
        if old.is_symlink():
            old.unlink()
    photos = []
    for name, label in certain:
        photo = folder / label / Path(name).name
        photo.parent.mkdir(parents=True, exist_ok=True)
        link(source / name, photo)
        photos.append(photo)
    print(
        f"{len(photos):,} photos of solar cells in {folder} (elpv-dataset, licence CC BY-NC-SA 4.0)",
        flush=True,
    )
    return sorted(photos)


def link(target: Path, path: Path) -> None:
    try:
        path.symlink_to(target)
    except OSError:  # Windows without the right to make links
        shutil.copyfile(target, path)


def headstart(*words: object) -> None:
    """Run the command as a user would, from the folder of this Python's scripts."""
    command = [str(word) for word in words]
    print(f"\n$ headstart {shlex.join(command)}", flush=True)
    script = shutil.which("headstart", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if script is None:
        sys.exit("The command `headstart` is not installed beside this Python: pip install -e '.[demo]'")
    code = subprocess.run([script, *command], check=False).returncode  # noqa: S603 (our own command)
    if code:
        sys.exit(code)


if __name__ == "__main__":
    main()
