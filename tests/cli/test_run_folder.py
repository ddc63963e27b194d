"""The folder of a run: what may begin, go on or be deleted in it."""

from __future__ import annotations

import pytest
from PIL import Image

from headstart.cli.options import FitOptions, Request
from headstart.cli.run_folder import RunFolder, digests
from headstart.data import ImageFolderData
from headstart.errors import DataError, MisconfigurationError, WriteError


@pytest.fixture
def photos(tmp_path):
    for number in range(20):
        path = tmp_path / "photos" / ("dark" if number % 2 else "light") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), number).save(path)
    return tmp_path / "photos"


@pytest.fixture
def ask(photos, tmp_path):
    def make(out=tmp_path / "run", *, data=photos, plan="auto", resume=False, overwrite=False):
        options = FitOptions(data=str(data), out=str(out), plan=str(plan))
        return Request(options, resume=resume, overwrite=overwrite)

    return make


def test_a_new_or_empty_folder_is_free(ask, tmp_path):
    RunFolder(tmp_path / "run").check(ask())
    (tmp_path / "run").mkdir()
    RunFolder(tmp_path / "run").check(ask())


def test_a_run_is_neither_overwritten_nor_resumed_unasked(ask, photos, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(ask().options, ImageFolderData(photos))
    with pytest.raises(MisconfigurationError, match=r"holds a run already. Give --resume .* --overwrite"):
        folder.check(ask())
    folder.check(ask(overwrite=True))
    folder.check(ask(resume=True))


def test_overwrite_deletes_nothing_but_a_run(ask, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").touch()
    with pytest.raises(MisconfigurationError, match="is not empty. Give another folder"):
        RunFolder(tmp_path / "thesis").check(ask(tmp_path / "thesis"))
    with pytest.raises(MisconfigurationError, match="is no run"):
        RunFolder(tmp_path / "thesis").check(ask(tmp_path / "thesis", overwrite=True))


def test_overwrite_does_not_delete_the_data(ask, photos, tmp_path):
    (tmp_path / "run.yaml").touch()
    with pytest.raises(MisconfigurationError, match="lies in .*would delete it"):
        RunFolder(tmp_path).check(ask(tmp_path, overwrite=True))


def test_overwrite_does_not_delete_the_plan_but_for_the_copy_of_it_that_is_written_anew(ask, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.path.mkdir()
    (folder.path / "run.yaml").touch()
    with pytest.raises(MisconfigurationError, match=r"my.yaml lies in .*would delete it"):
        folder.check(ask(plan=folder.path / "my.yaml", overwrite=True))
    folder.check(ask(plan=folder.plan_file, overwrite=True))


def test_a_file_is_no_folder(ask, tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(MisconfigurationError, match="is a file"):
        RunFolder(tmp_path / "run").check(ask())


def test_a_folder_that_cannot_be_made_is_named(ask, photos, tmp_path):
    (tmp_path / "file").touch()
    folder = RunFolder(tmp_path / "file" / "run")
    folder.check(ask())
    with pytest.raises(WriteError, match=r"file/run was not written: Not a directory\. Check the folder"):
        folder.begin(ask().options, ImageFolderData(photos))


def test_beginning_anew_leaves_nothing_of_the_old_run(ask, photos, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(ask().options, ImageFolderData(photos))
    folder.last_checkpoint.parent.mkdir()
    folder.last_checkpoint.touch()
    folder.begin(ask().options, ImageFolderData(photos))
    assert sorted(path.name for path in folder.path.iterdir()) == ["data.json", "run.yaml"]


def test_the_same_data_goes_on_from_another_place(ask, photos, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(ask().options, ImageFolderData(photos))
    moved = photos.rename(tmp_path / "moved")
    folder.go_on(ask(data=moved).options, ImageFolderData(moved))


def test_other_data_does_not_go_on(ask, photos, tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.begin(ask().options, ImageFolderData(photos))
    (photos / "dark" / "1.png").rename(photos / "light" / "1.png")
    with pytest.raises(DataError, match=r"is not what the run in .* was begun with \(.*train: "):
        folder.go_on(ask().options, ImageFolderData(photos))


def test_another_split_does_not_go_on(ask, photos, tmp_path):
    assert digests(ImageFolderData(photos, seed=0)) == digests(ImageFolderData(photos, seed=0))
    assert digests(ImageFolderData(photos, seed=0)) != digests(ImageFolderData(photos, seed=1))
