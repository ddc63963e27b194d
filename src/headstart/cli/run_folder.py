"""The folder RUN of `headstart fit`: what lies where in it, and whether a run may begin, go on or be replaced there.

RUN/
  run.yaml             the options
  plan.yaml            the plan, where it came from a file
  data.json            what was found in the data, and digests of its parts
  checkpoints/         best.ckpt, last.ckpt and the one before it
  logs/                curves: metrics.csv, and TensorBoard's files
  report.html          what was learned, from which data, and where it errs
  report/facts.json    what that page is made from
  model.safetensors, headstart.json, tokenizer/      the artefact
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.cli.options import FitOptions, Request, write_options
from headstart.errors import DataError, MisconfigurationError
from headstart.files import explained, write_together

if TYPE_CHECKING:
    from headstart.plan import Plan
    from headstart.strategy import Strategy


class RunFolder:
    """The folder of one run.

    Args:
        path: Where it is, or will be.
        is_ours: Whether this process writes to it: of several, the first.
    """

    def __init__(self, path: str | Path, *, is_ours: bool = True) -> None:
        self.path = Path(path)
        self.is_ours = is_ours

    @property
    def best_checkpoint(self) -> Path:
        """The state with the best validation score."""
        return self.path / "checkpoints" / "best.ckpt"

    @property
    def last_checkpoint(self) -> Path:
        """The newest state, from which a run goes on."""
        return self.path / "checkpoints" / "last.ckpt"

    @property
    def metrics_file(self) -> Path:
        """The curves."""
        return self.path / "logs" / "metrics.csv"

    @property
    def plan_file(self) -> Path:
        """The plan that a run with one in a file was begun with."""
        return self.path / "plan.yaml"

    @property
    def features(self) -> Path:
        """What the frozen backbone made of the samples."""
        return self.path / "features"

    def check(self, request: Request) -> None:
        """Refuse now, before any work, what `begin` could not do.

        Raises:
            MisconfigurationError: If something is there already, or `--overwrite` would delete more than a run.
        """
        if not self.is_ours or not self.path.exists():
            return
        if request.resume:
            self._refuse_links()
            return
        if not self.path.is_dir():
            raise MisconfigurationError(f"--out {self.path} is a file. Give a folder, which will be made.")
        if not any(self.path.iterdir()):
            return
        is_run = (self.path / "run.yaml").is_file()
        if not request.overwrite:
            advice = (
                "--resume to go on with it, --overwrite to delete it and begin anew, or " if is_run else ""
            )
            what = "holds a run already" if is_run else "is not empty"
            raise MisconfigurationError(f"--out {self.path} {what}. Give {advice}another folder.")
        if not is_run:
            raise MisconfigurationError(
                f"--out {self.path} is no run (it has no run.yaml), so --overwrite does not delete it. Give another folder."
            )
        options = request.options
        needed = [Path(options.data), *([Path(options.plan)] if options.is_plan_a_file else [])]
        for path in needed:
            is_inside = path.resolve().is_relative_to(self.path.resolve())
            if is_inside and path.resolve() != self.plan_file.resolve():  # which is written anew
                raise MisconfigurationError(
                    f"{path} lies in {self.path}, and --overwrite would delete it. Give another folder."
                )

    def _refuse_links(self) -> None:
        """A run goes on in its own folder: a link in one that came from elsewhere could lead anywhere."""
        inside, wandb = self.path.resolve(), self.metrics_file.parent / "wandb"
        for path in self.path.rglob("*"):
            if wandb in path.parent.parents:
                continue  # in a folder of one of its runs, where wandb puts links to its logs, and nobody goes any more
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise MisconfigurationError(
                    f"{path} is a link out of the run's folder, and nothing is read or written through it. Put there what it "
                    f"leads to; {self.path} itself may be a link."
                )

    def begin(self, options: FitOptions, data: Any, plan: Plan | None = None) -> None:
        """Make the folder, empty but for the options, the plan if it came from a file, and what was found in the data.

        Raises:
            WriteError: If it cannot be made there.
        """
        if not self.is_ours:
            return
        if self.path.exists():
            shutil.rmtree(self.path)
        with explained(self.path):
            self.path.mkdir(parents=True)
        if plan is not None and options.is_plan_a_file:
            plan.to_yaml(self.plan_file)
        found = {"report": data.report.to_dict(), "digests": digests(data)}
        text = json.dumps(found, indent=2, ensure_ascii=False)
        write_together(
            {
                self.path / "data.json": lambda path: path.write_text(
                    text, encoding="utf-8", errors="surrogateescape"
                )
            }
        )
        write_options(options, self.path)  # last: with it the folder is a run, which may go on

    def go_on(self, options: FitOptions, data: Any) -> None:
        """Check that the data is that of the run which goes on, and keep the options that may change.

        Raises:
            DataError: If a part of the data has changed.
        """
        if not self.is_ours:
            return
        refuse_other_data(self.path, data)
        write_options(options, self.path)


def refuse_unequal_data(strategy: Strategy, data: Any) -> None:
    """Check that all processes have read the same data: each splits it by itself.

    Raises:
        DataError: In every process, if they have not.
    """
    found = strategy.gather_objects((digests(data), data.report.part_sizes))
    if any(each != found[0] for each in found):
        sizes = "; ".join(f"process {rank}: {each[1]}" for rank, each in enumerate(found))
        raise DataError(
            f"{data.source}: the processes have not read the same samples ({sizes}). A file that one of them could not read, or "
            "data that changes from reading to reading: start again when all of it can be read everywhere."
        )


def refuse_other_data(folder: Path, data: Any) -> None:
    """Check that data is what `data.json` of a folder describes.

    Raises:
        DataError: If a part of the data has changed.
    """
    before = json.loads((folder / "data.json").read_text(encoding="utf-8", errors="surrogateescape"))
    now, sizes_then = digests(data), before["report"]["part_sizes"]
    changed = [
        f"{part}: {sizes_then.get(part, 0):,} samples then, {data.report.part_sizes.get(part, 0):,} now"
        for part in sorted({*before["digests"], *now})
        if before["digests"].get(part) != now.get(part)
    ]
    if changed:
        raise DataError(
            f"{data.source} is not what the run in {folder} was begun with ({'; '.join(changed)}; other samples, "
            "other classes, or another split). Give the data as it was, or begin anew in another folder (--out)."
        )


def digests(data: Any) -> dict[str, str]:
    """Give a digest of each part of the data: of the names and sizes of images, of texts, and of their classes.

    Args:
        data: A `ClassificationData`.
    """
    from headstart.data.records import RecordImages

    found = {}
    for part in data.report.part_sizes:
        dataset = {"train": data.train_set, "val": data.val_set, "test": data.test_set}[part]
        digest = hashlib.sha256(repr(data.class_names).encode())
        if isinstance(getattr(dataset, "images", None), RecordImages):
            samples = dataset.images.names()
        elif hasattr(dataset, "images"):
            # Not the pixels: a folder may be large, and a file whose size and name stay is hardly ever another.
            samples = [
                (path.relative_to(data.source).as_posix(), path.stat().st_size)
                for path in dataset.images.paths
            ]
        else:
            samples = dataset.texts
        for sample, target in zip(samples, dataset.targets, strict=True):
            digest.update(repr((sample, target)).encode())
        found[part] = digest.hexdigest()
    return found
