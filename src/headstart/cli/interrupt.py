"""Ctrl-C that ends training between two batches, so that what was learned becomes a model.

SIGTERM is the trainer's own (`headstart.signals`): it saves the state, and nothing else, for a scheduler does not wait long.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from headstart.callback import Callback
from headstart.checkpoint import newest_whole, previous_path

if TYPE_CHECKING:
    from headstart.datamodule import LightningDataModule
    from headstart.module import LightningModule
    from headstart.trainer import Trainer

_MESSAGE = "Ctrl-C: ending cleanly, after this batch or this validation. Once more to stop at once."


class Interrupt(Callback):
    """Ends a run at the next place from which it can go on, when Ctrl-C asked for it.

    In the midst of an epoch that is the end of the batch; in a validation, the end of the epoch. A second Ctrl-C is
    Python's own `KeyboardInterrupt`, at once.

    Args:
        checkpoint: The file to which the trainer's `ModelCheckpoint` saves the newest state.
    """

    def __init__(self, checkpoint: Path) -> None:
        super().__init__()
        self.checkpoint = checkpoint
        self.is_requested = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take Ctrl-C while the block runs. Only in the main thread, as everything with signals."""
        main_process = os.getpid()

        def take(*_: object) -> None:
            # A loader's worker is a copy of this process and gets Ctrl-C, too: it goes on until it is not needed.
            if os.getpid() != main_process:
                return
            if self.is_requested:
                raise KeyboardInterrupt
            self.is_requested = True
            try:
                # Through the progress bar, above which it appears.
                print(_MESSAGE, file=sys.stderr, flush=True)
            except RuntimeError:  # a print was what the signal interrupted
                os.write(2, f"\n{_MESSAGE}\n".encode())

        before = signal.signal(signal.SIGINT, take)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """End, if it was asked for; `ModelCheckpoint` saves."""
        if self._is_asked(trainer):
            raise KeyboardInterrupt

    def _is_asked(self, trainer: Trainer) -> bool:
        """Whether Ctrl-C reached any process: all end at the same place then, so that the state can be saved."""
        if trainer.world_size > 1:
            self.is_requested = trainer.strategy.reduce_boolean_decision(self.is_requested, all=False)
            trainer.signals.is_agreed = self.is_requested
        return self.is_requested

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Let this epoch be the last, if it was asked for; it is saved at its end as every other."""
        if self.is_requested:
            trainer.should_stop = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Do not begin another epoch, if it was asked for between two."""
        if self._is_asked(trainer) and trainer.global_step > 0:
            raise KeyboardInterrupt


def fit_until_ctrl_c(
    trainer: Trainer,
    model: LightningModule,
    data: LightningDataModule,
    interrupt: Interrupt,
    *,
    resume: bool,
) -> bool:
    """Train to the end or to Ctrl-C, from the last checkpoint where a run goes on; give whether it was Ctrl-C.

    Args:
        trainer: Has `interrupt` among its callbacks.
        model: The module.
        data: The data.
        interrupt: Knows the checkpoint.
        resume: Whether a run goes on.
    """

    def newest() -> Path | None:
        candidates = _newest_first(interrupt.checkpoint)
        return newest_whole(candidates, say=print) if candidates else None

    checkpoint = trainer.strategy.by_first(newest) if resume else None
    if resume and checkpoint is None:
        print("The run had saved no checkpoint yet: it begins from its start.")
    with interrupt.listening():
        try:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint)
        except KeyboardInterrupt:
            return True
    return interrupt.is_requested


def _newest_first(last: Path) -> list[Path]:
    """Give the checkpoints of a run that are there: the last one, the one before it, then the others by time."""
    others = sorted(last.parent.glob("*.ckpt"), key=lambda path: path.lstat().st_mtime, reverse=True)
    return [path for path in dict.fromkeys([last, previous_path(last), *others]) if os.path.lexists(path)]
