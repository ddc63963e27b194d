"""`ModelCheckpoint`: save the run as it goes, and keep the best of it.

*What* to keep is `BestFiles`, which knows nothing of a trainer; *when* to save is `ModelCheckpoint`.
"""

from __future__ import annotations

import math
import os
import re
import time
import warnings
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from headstart.callback import Callback
from headstart.callbacks.monitored import (
    Mode,
    acts_on_train_epoch_end,
    check_mode,
    is_better,
    never_logged,
    worst,
)
from headstart.checkpoint import keeping_previous, previous_path
from headstart.errors import MisconfigurationError, did_you_mean
from headstart.files import remove

if TYPE_CHECKING:
    from headstart.module import LightningModule
    from headstart.trainer import Trainer


# A file in writing that did not grow for so long: its process is gone.
_ABANDONED_AFTER = 300.0  # seconds


class BestFiles:
    """The files with the best scores, and which of them has to go.

    Args:
        mode: `"min"` where less is better, `"max"` where more is.
        count: How many to keep; `-1` for all.

    Example:
        >>> best = BestFiles(mode="min", count=2)
        >>> for path, score in {"a": 3.0, "b": 2.0, "c": 1.0}.items():
        ...     print(best.wants(score), best.add(path, score))
        True None
        True None
        True a
        >>> best.wants(2.5), best.best_path
        (False, 'c')
    """

    def __init__(self, *, mode: Mode, count: int) -> None:
        self.mode: Mode = mode
        self.count = count
        self.scores: dict[str, float] = {}

    def wants(self, score: float) -> bool:
        """Whether a file with this score would be kept. NaN is worse than everything."""
        if self.count == -1 or len(self.scores) < self.count:
            return True
        return self.count > 0 and is_better(score, self.scores[self.worst_path], mode=self.mode)

    def add(self, path: str, score: float) -> str | None:
        """Keep a file, and give the one that has to go for it, if any."""
        # A NaN is kept as the worst score there is, so that every number replaces it.
        self.scores[path] = worst(self.mode) if math.isnan(score) else score
        if self.count == -1 or len(self.scores) <= self.count:
            return None
        dropped = next((each for each in self._from_worst() if each != path), None)
        if dropped is not None:
            del self.scores[dropped]
        return dropped

    @property
    def best_path(self) -> str:
        """The file with the best score, the earliest of equals; empty without any."""
        return min(self.scores, key=self._rank) if self.scores else ""

    @property
    def worst_path(self) -> str:
        """The file with the worst score; empty without any."""
        return next(iter(self._from_worst()), "")

    def _from_worst(self) -> list[str]:
        return sorted(self.scores, key=self._rank, reverse=True)

    def _rank(self, path: str) -> float:
        return self.scores[path] if self.mode == "min" else -self.scores[path]


class ModelCheckpoint(Callback):
    """Saves the run as it goes, and keeps the newest file or those with the best values.

    A file is written whole before an older one is removed, so a kill at any moment leaves a file to go on from. The
    default saves once an epoch, after its validation, and keeps the newest. A fit of another module begins with no best;
    the files of the one before it stay.

    Readable: `best_model_path`, `best_model_score`, `last_model_path`, `kth_best_model_path`, `best_k_models` (score by
    path), `dirpath`.

    Args:
        dirpath: Where to; `None` is `checkpoints` in the first logger's directory, or in `default_root_dir`.
        filename: A pattern with names of logged values, as in `"{epoch}-{val_loss:.2f}"`; `None` is
            `"{epoch}-{step}"`.
        monitor: The name of the value that decides which files are the best; `None` keeps the newest.
        verbose: Say what is saved.
        save_last: Keep also the newest state, as `last.ckpt`: `True` writes a file, `"link"` a link to the newest one. The
            one before it stays as `last-previous.ckpt`, for the case that the newest is damaged.
        save_top_k: How many of the best files to keep; `-1` for all, `0` for none.
        save_weights_only: Leave out what only a resume needs.
        mode: `"min"` where less is better, `"max"` where more is.
        auto_insert_metric_name: Whether `{epoch}` becomes `epoch=3`, and not `3`. Turn it off for names with a `/`,
            which would make directories.
        every_n_train_steps: Save every so many optimizer steps, in the middle of an epoch.
        train_time_interval: Save every so often.
        every_n_epochs: Save every so many epochs; 1 where nothing else is given, 0 for never.
        save_on_train_epoch_end: Save at the end of the training epoch (`True`) or of each validation (`False`). `None`:
            of the validation, where it runs more or less often than once an epoch; else of the epoch.
        enable_version_counter: Whether a name that is taken gets `-v1`, `-v2`, ...; otherwise it is replaced.
        save_on_exception: Save when an exception or a signal (Ctrl-C, SIGTERM) ends the run, as `last.ckpt`, from which
            `ckpt_path="last"` goes on. Of several callbacks the first that wants it does.

    Raises:
        MisconfigurationError: If arguments make no sense, alone or together.

    Example:
        >>> saver = ModelCheckpoint("runs", filename="{epoch:02d}-{val_loss:.2f}", monitor="val_loss")
        >>> Path(saver.format_checkpoint_name({"epoch": 3, "val_loss": 0.516})).name
        'epoch=03-val_loss=0.52.ckpt'
    """

    CHECKPOINT_JOIN_CHAR = "-"
    CHECKPOINT_EQUALS_CHAR = "="
    CHECKPOINT_NAME_LAST = "last"
    FILE_EXTENSION = ".ckpt"
    STARTING_VERSION = 1

    # What the module logs in its own on_train_epoch_end counts, and is saved.
    runs_after_module = True

    def __init__(
        self,
        dirpath: str | os.PathLike[str] | None = None,
        filename: str | None = None,
        monitor: str | None = None,
        verbose: bool = False,
        save_last: bool | Literal["link"] | None = None,
        save_top_k: int = 1,
        save_weights_only: bool = False,
        mode: Mode = "min",
        auto_insert_metric_name: bool = True,
        every_n_train_steps: int | None = None,
        train_time_interval: timedelta | None = None,
        every_n_epochs: int | None = None,
        save_on_train_epoch_end: bool | None = None,
        enable_version_counter: bool = True,
        save_on_exception: bool = True,
    ) -> None:
        super().__init__()
        check_mode(mode, owner="ModelCheckpoint")
        _check_counts(
            monitor=monitor,
            save_top_k=save_top_k,
            save_last=save_last,
            every_n_train_steps=every_n_train_steps,
            train_time_interval=train_time_interval,
            every_n_epochs=every_n_epochs,
        )
        self.filename = filename
        self.monitor = monitor
        self.verbose = verbose
        self.save_last = save_last
        self.save_top_k = save_top_k
        self.save_weights_only = save_weights_only
        self.mode: Mode = mode
        self.auto_insert_metric_name = auto_insert_metric_name
        nothing_given = every_n_train_steps is None and train_time_interval is None and every_n_epochs is None
        self.every_n_train_steps = every_n_train_steps or 0
        self.train_time_interval = train_time_interval
        self.every_n_epochs = 1 if nothing_given else every_n_epochs or 0
        self.save_on_exception = save_on_exception
        self._save_on_train_epoch_end = save_on_train_epoch_end
        self._enable_version_counter = enable_version_counter

        self.dirpath = None if dirpath is None else os.path.realpath(Path(dirpath).expanduser())
        self._begin_anew()
        self._last_saved_step = 0
        # How far the run was when this fit began, and when `last.ckpt` was written.
        self._begun_at: tuple[int, str] | None = None
        self._last_saved_at: tuple[int, str] | None = None
        self._last_saved_time: float | None = None
        self._warned_of: set[str] = set()

    def _begin_anew(self) -> None:
        """Know of no file; those that there are stay on the disk."""
        self._best = BestFiles(mode=self.mode, count=self.save_top_k)
        self.best_model_path = ""
        self.last_model_path = ""
        self.current_score: torch.Tensor | None = None
        self._has_validated = False

    # ---- what can be read

    @property
    def state_key(self) -> str:
        """The class, what it watches, and when it saves."""
        return type(self).__qualname__ + repr(
            {
                "monitor": self.monitor,
                "mode": self.mode,
                "every_n_train_steps": self.every_n_train_steps,
                "every_n_epochs": self.every_n_epochs,
                "train_time_interval": self.train_time_interval,
            }
        )

    @property
    def best_k_models(self) -> dict[str, torch.Tensor]:
        """The scores of the files that are kept, by path; empty without a monitored value."""
        return {path: torch.tensor(score) for path, score in self._best.scores.items()}

    @property
    def best_model_score(self) -> torch.Tensor | None:
        """The best file's score, or `None`."""
        return self.best_k_models.get(self.best_model_path)

    @property
    def kth_best_model_path(self) -> str:
        """The worst file that is kept: the next to go; empty without a monitored value."""
        return self._best.worst_path

    @property
    def kth_value(self) -> torch.Tensor:
        """The score of `kth_best_model_path`; the worst possible one without any."""
        return torch.tensor(self._best.scores.get(self._best.worst_path, worst(self.mode)))

    def format_checkpoint_name(
        self,
        metrics: Mapping[str, Any],
        filename: str | None = None,
        ver: int | None = None,
        prefix: str | None = None,
    ) -> str:
        """Give the path of a file: the pattern with the values filled in.

        Args:
            metrics: Values by name, `epoch` and `step` among them. A name that is missing is written as 0, with a
                warning.
            filename: The pattern; `None` takes this callback's.
            ver: A number for `-v1`, ...; `None` for none.
            prefix: Put before the name, with a dash.
        """
        pattern = filename or self.filename or "{epoch}" + self.CHECKPOINT_JOIN_CHAR + "{step}"
        name = re.sub(
            r"\{([^{}:]+)(:[^{}]*)?\}",
            lambda match: self._filled_in(match[1], match[2] or "", metrics),
            pattern,
        )
        if prefix:
            name = f"{prefix}{self.CHECKPOINT_JOIN_CHAR}{name}"
        if ver is not None:
            name += f"{self.CHECKPOINT_JOIN_CHAR}v{ver}"
        name += self.FILE_EXTENSION
        return os.path.join(self.dirpath, name) if self.dirpath else name  # noqa: PTH118 (a URL-like path stays one)

    def _filled_in(self, name: str, form: str, metrics: Mapping[str, Any]) -> str:
        if name not in metrics and name not in self._warned_of:
            self._warned_of.add(name)
            warnings.warn(
                f"ModelCheckpoint(filename=...) names {name!r}, which was not logged; it is written as 0."
                f"{did_you_mean(name, metrics)} Logged: {', '.join(sorted(metrics))}.",
                stacklevel=2,
            )
        value = metrics.get(name, 0)
        value = value.item() if isinstance(value, torch.Tensor) else value
        try:
            text = format(value, form.removeprefix(":"))
        except ValueError as error:
            raise MisconfigurationError(
                f"ModelCheckpoint(filename=...): {{{name}{form}}} cannot write {value!r}: {error}."
            ) from error
        return f"{name}{self.CHECKPOINT_EQUALS_CHAR}{text}" if self.auto_insert_metric_name else text

    # ---- when to save

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Settle the directory, which is the same on all processes."""
        self._begun_at = self._last_saved_at = None
        if self.dirpath is None and stage == "fit":
            self.dirpath = trainer.strategy.broadcast(os.path.realpath(_default_directory(trainer)))

    def on_model_built(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with no best file where another module is fitted: its predecessor's are not its own."""
        if trainer.progress.total_batches == 0:  # of this fit; what a checkpoint holds comes later
            self._begin_anew()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock. What was loaded need not be saved again; what a kill left half written can go."""
        self._remove_abandoned(trainer)
        self._last_saved_step = trainer.global_step
        self._last_saved_time = time.monotonic()
        self._begun_at = self._place(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save, if steps or time say so."""
        if self.every_n_train_steps and trainer.global_step % self.every_n_train_steps == 0:
            self._save(trainer)
        elif self.train_time_interval is not None and self._last_saved_time is not None:
            passed = time.monotonic() - self._last_saved_time
            # The first process's clock counts.
            if trainer.strategy.broadcast(passed >= self.train_time_interval.total_seconds()):
                self._save(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if the validation's end is the time."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        self._has_validated = True
        if not acts_on_train_epoch_end(trainer, self._save_on_train_epoch_end):
            self._save_if_epoch_is_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save, if the epoch's end is the time."""
        if acts_on_train_epoch_end(trainer, self._save_on_train_epoch_end):
            self._save_if_epoch_is_due(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Save what was learned so far, if that is wanted: the state after the last whole step."""
        if not self.saves_on_exception(trainer) or trainer.state.fn != "fit" or self._begun_at is None:
            return
        if self._place(trainer) in {self._begun_at, self._last_saved_at}:
            return  # nothing was learned since
        ends = f"ModelCheckpoint: the run ends with {type(exception).__name__}; "
        reason = ""
        if trainer.signals.is_urgent:
            reason = "it was to end at once"
        elif trainer.boundary.is_torn:
            reason = "it was raised in the middle of a step, and the weights are half of the next"
        elif trainer.world_size > 1 and not trainer.signals.is_agreed:
            reason = "the other processes do not know of it"
        if reason:
            newest = self.last_model_path or self.best_model_path
            trainer.say(f"{ends}nothing is saved now, for {reason}. Saved before: {newest or 'nothing'}.")
            return
        try:
            self._save_last(trainer, self._values(trainer), newest=None)
        except Exception as error:  # noqa: BLE001 (the exception that ends the run must not be hidden by another one)
            trainer.say(f"{ends}its state could not be saved: {error}")
            return
        trainer.say(
            f"{ends}saved {self.last_model_path}. Go on from there: trainer.fit(..., ckpt_path={self.last_model_path!r})."
        )

    def saves_on_exception(self, trainer: Trainer) -> bool:
        """Whether this callback is the one that saves when the run fails."""
        savers = [
            each
            for each in trainer.checkpoint_callbacks
            if each.save_on_exception and not each.save_weights_only
        ]
        return self in savers[:1]

    @staticmethod
    def _place(trainer: Trainer) -> tuple[int, str]:
        return trainer.progress.total_batches, trainer.progress.stage

    def _save_if_epoch_is_due(self, trainer: Trainer) -> None:
        if self.every_n_epochs and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            self._save(trainer)

    # ---- what to save, and what to remove for it

    def _save(self, trainer: Trainer) -> None:
        """Save what the settings want of the present state, and remove what it replaces."""
        # At one step a validation and an epoch can both end: the state is the same.
        if trainer.fast_dev_run or trainer.global_step == self._last_saved_step:
            return
        values = self._values(trainer)
        saved, outdated = (self._save_newest if self.monitor is None else self._save_best)(trainer, values)
        if self.save_last:
            outdated += self._save_last(trainer, values, newest=saved)
        # Only now is everything whole that takes their place, links to them included.
        self._remove(trainer, outdated)
        for logger in trainer.loggers if trainer.is_global_zero else ():
            logger.after_save_checkpoint(self)

    # These three give what they outdate, the first two also the file that they wrote, if any.

    def _save_newest(self, trainer: Trainer, values: dict[str, Any]) -> tuple[str | None, list[str]]:
        if self.save_top_k == 0:
            return None, []
        before = self.best_model_path
        path = self._free_path(trainer, values, replaces=before if self.save_top_k == 1 else "")
        self.best_model_path = path
        self._write(trainer, path)
        return path, [before] if self.save_top_k == 1 and before != path else []

    def _save_best(self, trainer: Trainer, values: dict[str, Any]) -> tuple[str | None, list[str]]:
        assert self.monitor is not None
        if self.monitor not in values:
            if self._has_validated or not trainer.enable_validation:
                raise never_logged(self.monitor, trainer.callback_metrics, owner="ModelCheckpoint")
            trainer.warn(
                f"ModelCheckpoint(monitor={self.monitor!r}): not logged yet, and no validation has run: there is no best."
            )
            return None, []
        score = float(values[self.monitor])
        self.current_score = torch.tensor(score)
        if not trainer.strategy.reduce_boolean_decision(self._best.wants(score)):
            if self.verbose:
                trainer.say(
                    f"ModelCheckpoint: {self.monitor} {score:.6g} is not among the best {self.save_top_k}."
                )
            return None, []
        full = len(self._best.scores) == self.save_top_k
        path = self._free_path(trainer, values, replaces=self._best.worst_path if full else "")
        # Before the writing: the file holds this callback's state.
        dropped = self._best.add(path, score)
        self.best_model_path = self._best.best_path
        self._write(trainer, path)
        return path, [] if dropped is None else [dropped]

    def _save_last(self, trainer: Trainer, values: dict[str, Any], *, newest: str | None) -> list[str]:
        before = self.last_model_path
        path = self._free_path(trainer, values, pattern=self.CHECKPOINT_NAME_LAST, replaces=before)
        self.last_model_path = path
        self._last_saved_at = self._place(trainer)
        # Should this file be damaged later, a run can go on from the one before it (`resume.last_checkpoints`).
        with keeping_previous(path, before=before) if trainer.is_global_zero else nullcontext():
            if self.save_last == "link" and newest is not None:
                if trainer.is_global_zero:
                    _link(newest, path)
                trainer.strategy.barrier("ModelCheckpoint")
            else:
                self._write(trainer, path)
        return [before, str(previous_path(before))] if before and before != path else []

    def _values(self, trainer: Trainer) -> dict[str, Any]:
        return {"epoch": trainer.current_epoch, "step": trainer.global_step, **trainer.callback_metrics}

    def _free_path(
        self, trainer: Trainer, values: Mapping[str, Any], *, pattern: str | None = None, replaces: str = ""
    ) -> str:
        """The path for the present values; with `-v1`, ... where it is taken by a file that is not to be replaced."""
        path = self.format_checkpoint_name(values, pattern)
        version = self.STARTING_VERSION
        while self._enable_version_counter and path != replaces and os.path.lexists(path):
            path = self.format_checkpoint_name(values, pattern, ver=version)
            version += 1
        # The first process may have written before another one looks.
        return str(trainer.strategy.broadcast(path))

    def _write(self, trainer: Trainer, path: str) -> None:
        self._last_saved_step, self._last_saved_time = trainer.global_step, time.monotonic()
        trainer.save_checkpoint(path, weights_only=self.save_weights_only)
        if self.verbose:
            trainer.say(
                f"ModelCheckpoint: epoch {trainer.current_epoch}, step {trainer.global_step}, saved {path}."
            )

    def _remove(self, trainer: Trainer, paths: list[str]) -> None:
        """Remove files that are kept no longer, but none of another directory, and not the one that was resumed from."""
        resumed_from = os.path.realpath(trainer.ckpt_path) if trainer.ckpt_path else ""
        for path in paths if trainer.is_global_zero else ():
            is_ours = self.dirpath is not None and Path(self.dirpath) in Path(path).parents
            if path and is_ours and os.path.realpath(path) != resumed_from:
                remove(Path(path))  # one in parts is a folder

    def _remove_abandoned(self, trainer: Trainer) -> None:
        """Remove files that a killed process was writing: they are as large as checkpoints, and nobody's."""
        if not trainer.is_global_zero or self.dirpath is None or not Path(self.dirpath).is_dir():
            return
        for path in Path(self.dirpath).glob(f".*{self.FILE_EXTENSION}.*.tmp"):
            with suppress(OSError):  # another job may be doing the same
                if time.time() - path.stat().st_mtime > _ABANDONED_AFTER:
                    path.unlink()

    # ---- state

    def state_dict(self) -> dict[str, Any]:
        """What is kept, and where: plain types and scalars."""
        return {
            "monitor": self.monitor,
            "best_model_score": self.best_model_score,
            "best_model_path": self.best_model_path,
            "current_score": self.current_score,
            "dirpath": self.dirpath,
            "best_k_models": self.best_k_models,
            "kth_best_model_path": self.kth_best_model_path,
            "kth_value": self.kth_value,
            "last_model_path": self.last_model_path,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the files of the run that is resumed, if they lie in the same directory."""
        self.best_model_path = state_dict["best_model_path"]
        if state_dict.get("dirpath") != self.dirpath:
            warnings.warn(
                f"ModelCheckpoint saves to {self.dirpath!r}, and the resumed run saved to {state_dict.get('dirpath')!r}: its "
                "files stay there, are not removed, and their scores do not count here.",
                stacklevel=2,
            )
            return
        self._best.scores = {
            path: float(score) for path, score in state_dict["best_k_models"].items() if Path(path).exists()
        }
        self.best_model_path = self._best.best_path or self.best_model_path
        self.last_model_path = state_dict.get("last_model_path", "")


def _default_directory(trainer: Trainer) -> Path:
    """`checkpoints` in the first logger's directory, or in `default_root_dir`."""
    logger = trainer.logger
    if logger is None:
        return Path(trainer.default_root_dir) / "checkpoints"
    version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
    return Path(logger.save_dir or trainer.default_root_dir) / (logger.name or "") / version / "checkpoints"


def _link(target: str, path: str) -> None:
    """Make `path` a relative link to `target`, in place of whatever was there."""
    temporary = Path(f"{path}.tmp")
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target, temporary.parent))
    temporary.replace(path)


def _check_counts(
    *,
    monitor: str | None,
    save_top_k: int,
    save_last: object,
    every_n_train_steps: int | None,
    train_time_interval: timedelta | None,
    every_n_epochs: int | None,
) -> None:
    """Refuse settings that make no sense, alone or together."""
    if save_top_k < -1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}): expected -1 (all), 0 (none) or a count."
        )
    if monitor is None and save_top_k > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_top_k={save_top_k}): the best by which value? Give monitor='...', or save_top_k=-1 for all."
        )
    if save_last not in {None, True, False, "link"}:
        raise MisconfigurationError(
            f"ModelCheckpoint(save_last={save_last!r}): expected True, False or 'link'."
        )
    for name, value in {"every_n_train_steps": every_n_train_steps, "every_n_epochs": every_n_epochs}.items():
        if value is not None and value < 0:
            raise MisconfigurationError(f"ModelCheckpoint({name}={value}): expected 0 (never) or a count.")
    given = {
        "every_n_train_steps": every_n_train_steps,
        "train_time_interval": train_time_interval,
        "every_n_epochs": every_n_epochs,
    }
    given = {name: value for name, value in given.items() if value}
    if len(given) > 1:
        raise MisconfigurationError(
            f"ModelCheckpoint: {' and '.join(given)} were given; expected one of them. Use two callbacks for two rhythms."
        )
