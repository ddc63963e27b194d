"""What was tried so far, in an SQLite file, and what to try next.

Optuna's tree-structured Parzen estimator proposes, after every plan's own settings were tried. Its random numbers are drawn
from a seed and the number of trials that came to an end; so a sweep that was cut proposes what one that was not would have.
"""

from __future__ import annotations

import math
import sqlite3
import weakref
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, Literal

from headstart.choice import Metric
from headstart.errors import MisconfigurationError, missing_dependency
from headstart.sweep.space import Settings, Space, params_of, settings_of

if TYPE_CHECKING:
    import optuna

State = Literal["complete", "pruned", "failed", "cut"]

# Seconds that a connection waits for another one's change.
_LOCK_TIMEOUT = 60.0
_NAME = "headstart sweep"
_ENDED = "ended"  # where the end is kept; a trial that failed without one was cut
# Trials that are drawn at random before the estimator proposes: it has little to go by until then.
_NUM_RANDOM = 5
# A plan's trials that must have come to their end before others of it are held against them.
_NUM_TO_COMPARE_WITH = 4
# The first validation says little: the warm-up of a plan ends about there.
_NUM_SPARED = 1


@dataclass(frozen=True, slots=True)
class Trial:
    """A trial as it is kept.

    Attributes:
        number: Its number, from 0, in the order in which trials were begun.
        state: `"complete"`, `"pruned"` (others were better at that point), `"failed"` (an error; `reason` says which) or
            `"cut"` (the sweep ended within it, so it is tried again).
        settings: What was tried.
        value: Its score on the validation part; `None` unless it is complete.
        seconds: How long it took; `None` where it was cut.
        validations: The score at each validation of training.
        reason: The error.
    """

    number: int
    state: State
    settings: Settings
    value: float | None
    seconds: float | None
    validations: tuple[float, ...] = ()
    reason: str | None = None


def _close(storage: Any) -> None:
    """Close the connections to a study's file."""
    storage.remove_session()
    storage.engine.dispose()


class Study:
    """The trials of a sweep.

    Args:
        path: The SQLite file; made where there is none.
        space: What may be tried.
        metric: By which trials are judged.
        seed: Of what is proposed.
        prunes: Whether trials that stay behind are ended early.

    Raises:
        MissingDependencyError: If optuna is not installed.
        MisconfigurationError: If the file is damaged.
    """

    def __init__(self, path: Path, space: Space, *, metric: Metric, seed: int, prunes: bool = True) -> None:
        self._optuna = _import_optuna()
        self._space = space
        self._seed = seed
        self._prunes = prunes
        self.sign = -1.0 if metric == "log_loss" else 1.0
        self._study = self._open(path)
        self.set_cut_trials_aside()

    def trials(self) -> list[Trial]:
        """Give all trials that were begun, in their order."""
        return [_trial_of(each) for each in self._study.get_trials(deepcopy=False) if each.params]

    @property
    def num_finished(self) -> int:
        """Number of trials that came to their end, whatever it was; those that were cut are not among them."""
        return sum(each.state != "cut" for each in self.trials())

    def best(self) -> Trial | None:
        """Give the complete trial with the best value, the first of equals."""
        complete = [each for each in self.trials() if each.value is not None]
        return max(complete, key=lambda each: (self.sign * (each.value or 0.0), -each.number), default=None)

    def begin(self) -> OpenTrial:
        """Begin the next trial."""
        number, first = self.num_finished, self._space.first_trials()
        # From the number of what came to its end, and not from what was drawn in this process.
        self._study.sampler = self._optuna.samplers.TPESampler(
            seed=(1_000_003 * self._seed + number) % 2**32, n_startup_trials=len(first) + _NUM_RANDOM
        )
        if number < len(first):
            waiting = self._study.get_trials(deepcopy=False, states=[self._optuna.trial.TrialState.WAITING])
            if not waiting:  # else the sweep ended between these two lines
                self._study.enqueue_trial(params_of(first[number]))
        trial = self._study.ask()
        return OpenTrial(self, trial, self._space.suggest(trial))

    def is_behind(self, plan: str, values: Sequence[float]) -> bool:
        """Whether a trial stays behind the others of its plan, by its values so far.

        It does if the best of them is worse than the median of the others' best up to the same validation. Trials of other
        plans are no measure: their validations come at other points of training.

        Source: Golovin et al. 2017, "Google Vizier", section 3.2.1, the median stopping rule; optuna's `MedianPruner` with
        the others of a plan in the place of all.
        """
        if not self._prunes or len(values) <= _NUM_SPARED:
            return False
        others = [
            max(self.sign * each for each in trial.validations[: len(values)])
            for trial in self.trials()
            if trial.state == "complete"
            and trial.settings.plan == plan
            and len(trial.validations) >= len(values)
        ]
        if len(others) < _NUM_TO_COMPARE_WITH:
            return False
        return max(self.sign * each for each in values) < median(others)

    def _open(self, path: Path) -> Any:
        optuna = self._optuna
        is_new = not path.exists()
        try:
            with closing(sqlite3.connect(path)) as connection:
                # One write to the disk for each change in place of three; it holds where a process is killed.
                connection.execute("PRAGMA journal_mode=WAL")

            def connect() -> sqlite3.Connection:  # not by a URL: a name with a question mark would end in it
                return sqlite3.connect(path, timeout=_LOCK_TIMEOUT, check_same_thread=False)

            storage = optuna.storages.RDBStorage(f"sqlite:///{path.name}", engine_kwargs={"creator": connect})
            weakref.finalize(self, _close, storage)
            direction = "minimize" if self.sign < 0 else "maximize"
            return optuna.create_study(
                storage=storage, study_name=_NAME, direction=direction, load_if_exists=not is_new
            )
        except Exception as error:
            raise MisconfigurationError(
                f"{path} cannot be read as the file of a sweep: {type(error).__name__}: {error}. Begin anew in another folder "
                "(--out)."
            ) from error

    def set_cut_trials_aside(self) -> None:
        """Let the trials that run in the file be over: whoever ran them has gone."""
        states = self._optuna.trial.TrialState
        for each in self._study.get_trials(deepcopy=False, states=[states.RUNNING]):
            self._study.tell(each.number, state=states.FAIL)

    def tell(self, trial: optuna.trial.Trial, state: State, value: float | None) -> None:
        """Let the trial be over."""
        states = self._optuna.trial.TrialState
        known = {"complete": states.COMPLETE, "pruned": states.PRUNED}
        self._study.tell(trial, value, state=known.get(state, states.FAIL))


class OpenTrial:
    """A trial that runs.

    Attributes:
        number: Its number.
        settings: What it tries.
    """

    def __init__(self, study: Study, trial: optuna.trial.Trial, settings: Settings) -> None:
        self.number: int = trial.number
        self.settings = settings
        self._study = study
        self._trial = trial
        self._values: list[float] = []

    def report(self, value: float) -> bool:
        """Take the value of a validation; whether the trial is to end there."""
        self._values.append(value)
        return self._study.is_behind(self.settings.plan, self._values)

    def end(
        self,
        state: Literal["complete", "pruned", "failed"],
        *,
        seconds: float,
        value: float | None = None,
        reason: str | None = None,
    ) -> None:
        """Write down how it ended."""
        finite = [each for each in self._values if math.isfinite(each)]
        if state == "pruned" and finite:
            self._trial.report(finite[-1], step=len(finite))  # what optuna learns from
        ended = {"state": state, "seconds": seconds, "validations": finite, "reason": reason}
        self._trial.set_user_attr(_ENDED, ended)
        self._study.tell(self._trial, state, value)


def _trial_of(kept: optuna.trial.FrozenTrial) -> Trial:
    ended = kept.user_attrs.get(_ENDED, {})
    states: dict[str, State] = {"COMPLETE": "complete", "PRUNED": "pruned"}
    state = states.get(kept.state.name) or ("failed" if ended.get("state") == "failed" else "cut")
    return Trial(
        number=kept.number,
        state=state,
        settings=settings_of(kept.params),
        value=kept.value if state == "complete" else None,
        seconds=ended.get("seconds"),
        validations=tuple(ended.get("validations", ())),
        reason=ended.get("reason"),
    )


def _import_optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise missing_dependency("optuna", needed_for="headstart sweep", extra="sweep") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of a sweep's folder while the block runs.

    Raises:
        MisconfigurationError: If another one is at work there.
    """
    try:
        import fcntl
    except ImportError:  # a system without such locks
        yield
        return
    with (folder / ".lock").open("w", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise MisconfigurationError(
                f"Another process is at work in the sweep of {folder}. Wait for its end, or sweep in another folder (--out)."
            ) from None
        yield  # the system gives the lock back, also where this process is killed
