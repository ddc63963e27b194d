"""What was tried, and what is tried next."""

import gc
import os
import sys
from pathlib import Path

import optuna  # noqa: F401 (its first import keeps the frame that asked for it, and a study with it)
import pytest

from headstart.errors import MisconfigurationError, MissingDependencyError
from headstart.sweep.space import params_of, space_of
from headstart.sweep.study import Study, alone_in

SPACE = space_of("images", backbones=["a"], plans=["head", "full"], ranges={})


def open_study(folder, **settings):
    return Study(folder / "sweep.db", SPACE, **{"metric": "macro_f1", "seed": 3, **settings})


def try_all(study, count):
    """Bring trials to their end; a trial's value is a function of its settings."""
    while study.num_finished < count:
        trial = study.begin()
        values = trial.settings.values
        value = values.get("lr", 0.0) + values.get("strength", 0.0) * 1e-6
        trial.end("complete", value=value, seconds=1.0)


def tried(study):
    return [(each.settings, each.value) for each in study.trials() if each.state != "cut"]


def test_a_study_that_is_cut_at_any_trial_proposes_what_one_that_is_not_would(tmp_path):
    whole = open_study(tmp_path)
    try_all(whole, 10)
    cut = tmp_path / "cut"
    cut.mkdir()
    for count in (1, 5, 9):
        study = open_study(cut)
        try_all(study, count)
        study.begin()  # and the process is gone
    study = open_study(cut)
    try_all(study, 10)
    assert tried(study) == tried(whole)
    assert [each.number for each in study.trials() if each.state == "cut"] == [1, 6, 11]
    assert study.best().value == whole.best().value == max(value for _, value in tried(whole))


def test_a_study_that_is_cut_before_the_trial_has_settings_goes_on(tmp_path):
    study = open_study(tmp_path)
    study._study.enqueue_trial(params_of(SPACE.first_trials()[0]))
    study = open_study(tmp_path)
    assert study.num_finished == 0
    assert study.begin().settings == SPACE.first_trials()[0]
    study = open_study(tmp_path)
    study._study.ask()  # nothing was suggested yet
    study = open_study(tmp_path)
    try_all(study, 2)
    assert [each for each, _ in tried(study)] == SPACE.first_trials()


def test_the_least_log_loss_is_the_best(tmp_path):
    study = open_study(tmp_path, metric="log_loss")
    for value in (0.5, 0.2, 0.2, 0.9):
        study.begin().end("complete", value=value, seconds=1.0)
    assert study.best().number == 1  # of equals, the first


@pytest.mark.parametrize(("metric", "sign"), [("accuracy", 1), ("log_loss", -1)])
def test_a_trial_is_behind_if_its_best_is_below_the_median_of_its_plan_at_the_same_validation(
    tmp_path, metric, sign
):
    study, plan = open_study(tmp_path, metric=metric), "full"
    for last in (0.1, 0.2, 0.3, 0.4):
        study._study.enqueue_trial(params_of(SPACE.first_trials()[1]))
        trial = study.begin()
        for value in (0.0, last, 0.9):
            trial.report(sign * value)
        trial.end("complete", value=sign * 0.9, seconds=1.0)
    assert not study.is_behind(plan, [sign * -9.0])  # the first validation says little
    assert study.is_behind(plan, [sign * -9.0, sign * 0.24])  # the median is 0.25
    assert not study.is_behind(plan, [sign * -9.0, sign * 0.26])
    assert not study.is_behind(plan, [sign * 0.3, sign * 0.1])  # its best counts, as theirs does
    assert not study.is_behind("lp_ft", [sign * -9.0, sign * -9.0])
    assert not open_study(tmp_path, metric=metric, prunes=False).is_behind(plan, [sign * -9.0, sign * 0.24])


def test_two_processes_in_one_folder_are_refused(tmp_path):
    with (
        alone_in(tmp_path),
        pytest.raises(MisconfigurationError, match="Another process is at work in the sweep of"),
    ):
        with alone_in(tmp_path):
            pass
    with alone_in(tmp_path):
        pass


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "sweep.db").write_bytes(b"no database " * 100)
    with pytest.raises(MisconfigurationError, match="sweep.db cannot be read as the file of a sweep"):
        open_study(tmp_path)


def test_without_optuna_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headstart\[sweep\]'"):
        open_study(tmp_path)


def test_a_folder_may_have_any_name_and_the_file_is_closed_with_the_study(tmp_path):
    folder = tmp_path / "what? 100 %41"
    folder.mkdir()
    study = open_study(folder)
    try_all(study, 2)
    assert [each.name for each in tmp_path.iterdir()] == [folder.name]
    assert open_study(folder).num_finished == 2
    if Path("/proc/self/fd").is_dir():
        assert open_files(folder)
        del study
        gc.collect()
        assert not open_files(folder)


def open_files(folder):
    links = [os.readlink(each) for each in Path("/proc/self/fd").iterdir() if each.is_symlink()]
    return [each for each in links if each.startswith(str(folder))]
