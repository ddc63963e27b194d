"""Tar files, Hugging Face datasets, datasets of one's own, and streams: each sample once, by number, and nothing kept in memory."""

from __future__ import annotations

import base64
import contextlib
import errno
import gc
import io
import itertools
import os
import pickle
import re
import resource
import signal
import sys
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import IterableDataset

from headstart import auto
from headstart.cli import story
from headstart.cli.findings import DataFindings
from headstart.data import (
    DatasetData,
    HuggingFaceData,
    ImageFolderData,
    TextTableData,
    WebDatasetData,
    write_shards,
)
from headstart.data.images import check_images, to_rgb
from headstart.data.opening import format_of, open_data
from headstart.data.own import data_of
from headstart.data.shards import Shards
from headstart.deferred import Reuse
from headstart.errors import DataError, MisconfigurationError, WriteError
from headstart.report.duplicates import Twins
from headstart.report.label_errors import Suspect
from headstart.report.samples import is_same, shown

datasets = pytest.importorskip("datasets")
NAMES = ["cat", "dog"]


def picture(number, size=(12, 16)):
    return Image.fromarray(np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8))


def content(number, **settings):
    file = io.BytesIO()
    picture(number, **settings).save(file, format="PNG")
    return file.getvalue()


def write_tar(path, members):
    """Write a tar file of (name, content) in their order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, value in members:
            member = tarfile.TarInfo(name)
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))
    return path


def samples(numbers):
    return [
        member
        for number in numbers
        for member in ((f"{number:06d}.png", content(number)), (f"{number:06d}.cls", b"%d" % (number % 2)))
    ]


@pytest.fixture
def shards(tmp_path):
    """40 images in 4 tar files, in two classes."""
    for index in range(4):
        write_tar(tmp_path / "shards" / f"{index:06d}.tar", samples(range(10 * index, 10 * index + 10)))
    return tmp_path / "shards"


def to_tensor(image):
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()


def ready(data):
    if data.kind == "images":
        data.train_transform = data.eval_transform = to_tensor
    else:
        data.tokenize = lambda texts: {"length": torch.tensor([len(text) for text in texts])}
    return data


def seen(loader):
    """The images of a loader, each as bytes, with their targets."""
    return [
        (image.numpy().tobytes(), int(target))
        for images, targets in loader
        for image, target in zip(images, targets, strict=True)
    ]


# ---- tar files


def test_samples_of_tar_files_are_those_that_were_written_each_in_one_part(shards):
    data = ready(WebDatasetData(shards, class_names=NAMES, batch_size=8))
    assert data.kind == "images"
    assert data.class_names == NAMES
    assert data.report.part_sizes == {"train": 28, "val": 6, "test": 6}
    loaders = [data.train_dataloader(), data.val_dataloader(), data.test_dataloader()]
    found = [each for loader in loaders for each in seen(loader)]
    assert sorted(found) == sorted((to_tensor(picture(n)).numpy().tobytes(), n % 2) for n in range(40))


def test_the_split_is_by_key_whatever_the_files(shards, tmp_path):
    for index in range(2):
        write_tar(tmp_path / "again" / f"b{index}.tar", samples(range(20 * index, 20 * index + 20)))
    parts = [
        sorted(seen(ready(WebDatasetData(folder)).val_dataloader()))
        for folder in (shards, tmp_path / "again")
    ]
    assert parts[0] == parts[1]
    assert sorted(seen(ready(WebDatasetData(shards, seed=1)).val_dataloader())) != parts[0]


def test_loader_processes_read_each_sample_once(shards):
    plain, split = (ready(WebDatasetData(shards, num_workers=count)) for count in (0, 2))
    assert sorted(seen(split.train_dataloader())) == sorted(seen(plain.train_dataloader()))
    records = split.train_set.images.records
    records.read(0)
    assert pickle.loads(pickle.dumps(records)).read(0) == records.read(0)  # a process that is not forked


def test_a_range_of_names_and_files_named_for_parts(tmp_path):
    for name, first in (("train-000", 0), ("train-001", 20), ("val-000", 40), ("test-000", 46)):
        write_tar(tmp_path / f"{name}.tar", samples(range(first, first + (20 if name[:2] == "tr" else 6))))
    assert WebDatasetData(tmp_path).report.part_sizes == {"train": 40, "val": 6, "test": 6}
    assert WebDatasetData(tmp_path / "train-{000..001}.tar").report.num_samples == 40
    assert format_of(tmp_path) == format_of(tmp_path / "train-{000..001}.tar") == "webdataset"
    (tmp_path / "other.tar").write_bytes((tmp_path / "val-000.tar").read_bytes())
    with pytest.raises(
        DataError, match=r"some files are named for a part \(test, train, val\) and some are not"
    ):
        WebDatasetData(tmp_path).prepare()
    with pytest.raises(DataError, match="There is no file .*train-002.tar"):
        WebDatasetData(tmp_path / "train-{000..002}.tar").prepare()


def test_what_webdataset_writes_is_read(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "a.tar")) as sink:
        for number in range(12):
            label = {"label": NAMES[number % 2], "more": [1]}
            sink.write({"__key__": f"folder/{number:03d}", "png": picture(number), "json": label})
    data = ready(WebDatasetData(tmp_path / "a.tar"))
    assert data.class_names == NAMES
    assert len(data.train_set) == 8
    with webdataset.TarWriter(str(tmp_path / "b.tar")) as sink:
        for number in range(12):
            sink.write({"__key__": f"{number}", "txt": f"a text, number {number}", "cls": number % 2})
    texts = ready(WebDatasetData(tmp_path / "b.tar"))
    assert (texts.kind, texts.class_names) == ("text", ["0", "1"])
    assert {text for text, _ in texts.train_set} <= {f"a text, number {n}" for n in range(12)}


def test_bad_samples_are_named_and_set_aside_and_too_many_refused(tmp_path):
    bad = [
        ("a.png", b"no image"),
        ("a.cls", b"1"),
        ("b.png", content(1)),
        ("c.txt", b"a text"),
        ("c.cls", b"1"),
    ]
    bad += [("d.cls", b"0"), ("e.png", content(2)), ("e.cls", b"7"), ("__meta__/x.json", b"{}")]
    path = write_tar(tmp_path / "x.tar", [*samples(range(600)), *bad])
    data = WebDatasetData(path, class_names=NAMES)
    reasons = {each.place: each.reason for each in data.report.set_aside}
    assert reasons == {
        "x.tar/a": "not an image",
        "x.tar/b": "no class: neither cls, nor label in json",
        "x.tar/c": "text among images",
        "x.tar/d": "neither an image nor a text: cls",
        "x.tar/e": "a class that is none: '7'; there are 2: cat, dog",
    }
    assert data.report.num_samples == 600
    path = write_tar(tmp_path / "y.tar", [*samples(range(60)), *bad])
    with pytest.raises(DataError, match=r"y.tar: 5 of 65 samples cannot be used .7.7%"):
        WebDatasetData(path, class_names=NAMES).prepare()


@pytest.fixture
def few_files():
    """A process that may have 100 files open beside those that it has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 100, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_tar_files_than_may_be_open_are_read(tmp_path, few_files):
    for number in range(150):
        write_tar(tmp_path / f"{number:03d}.tar", samples([number]))
    data = ready(WebDatasetData(tmp_path, class_names=NAMES))
    assert data.report.set_aside == []
    for _ in range(2):
        found = [
            each for part in ("train", "val", "test") for each in seen(getattr(data, f"{part}_dataloader")())
        ]
        assert sorted(found) == sorted((to_tensor(picture(n)).numpy().tobytes(), n % 2) for n in range(150))
    gc.collect()
    num_open = len(os.listdir("/proc/self/fd"))
    del data
    gc.collect()
    assert num_open - len(os.listdir("/proc/self/fd")) == 64


def test_too_many_open_files_are_no_damage_of_the_samples(tmp_path, shards, few_files, images):
    files = images.add("cat", 3)
    data = WebDatasetData(shards)
    assert data.kind == "images"  # the headers are read
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open(tmp_path, os.O_RDONLY))
    try:
        for check in (data.prepare, WebDatasetData(shards).prepare, lambda: check_images(files)):
            with pytest.raises(OSError, match="Too many open files") as raised:
                check()
            assert raised.value.errno == errno.EMFILE
    finally:
        for descriptor in held:
            os.close(descriptor)


@pytest.mark.parametrize("name", ["../../etc/x.png", "/etc/x.png", "a/../../x.png"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    path = write_tar(tmp_path / "x.tar", [(name, content(0))])
    with pytest.raises(DataError, match="leads out of where it is unpacked: it was made to do harm"):
        WebDatasetData(path).prepare()


def test_links_and_bombs_are_set_aside(tmp_path):
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, format="PNG")  # 400 million pixels in 50 kB
    path = write_tar(
        tmp_path / "x.tar", [*samples(range(400)), ("bomb.png", file.getvalue()), ("bomb.cls", b"1")]
    )
    with tarfile.open(path, "a") as archive:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    reasons = {each.place: each.reason for each in WebDatasetData(path).report.set_aside}
    assert reasons["x.tar/link.png"] == "a link or a device, not a file"
    assert "more than the 178,956,970 pixels" in reasons["x.tar/bomb"]


def test_a_file_that_is_cut_off_or_compressed_is_named(tmp_path, shards):
    whole = (shards / "000000.tar").read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[: len(whole) // 2 + 100])
    with pytest.raises(DataError, match="cut.tar cannot be read as a tar file: it is cut off. Get it anew"):
        WebDatasetData(tmp_path / "cut.tar").prepare()
    with tarfile.open(tmp_path / "packed.tar", "w:gz") as archive:
        archive.add(shards / "000000.tar", "x.png")
    with pytest.raises(DataError, match="cannot be read as a tar file.*has to be unpacked first"):
        WebDatasetData(tmp_path / "packed.tar").prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no .tar files"):
        WebDatasetData(tmp_path / "empty").prepare()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_content(tmp_path):
    """3,000 samples of 30 kB, 90 MB in all: reading them all, twice, takes a small part of that."""
    noise = np.random.default_rng(0).integers(0, 256, (3000, 30_000), dtype=np.uint8)
    texts = ((bytes(row % 94 + 33).decode("ascii"), number % 2) for number, row in enumerate(noise))
    write_shards(texts, tmp_path)
    del noise, texts
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = ready(WebDatasetData(tmp_path)).prepare()
    assert sum(len(targets) for _, targets in data.train_dataloader()) == 2100
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < 40


def test_frozen_work_on_tar_files_is_done_once_and_found_by_another_run(shards, tmp_path):
    torch.manual_seed(0)
    frozen = (
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 12 * 16, 4)).requires_grad_(False).eval()
    )
    found, reports = [], []
    for _ in range(2):
        data = ready(WebDatasetData(shards, batch_size=7))
        reuse = Reuse(directory=tmp_path / "features", min_gain=0, say=lambda line: None)
        loader = data.plain_train_dataloader()
        found += [auto.outputs_of(frozen, loader, reuse=reuse, accelerator="cpu") for _ in range(2)]
        reports.append(reuse.report())
        reuse.close()
    # In the second run the first batch, with which what was kept is compared.
    assert [each.num_computed for each in reports] == [28, 7]
    assert reports[0].num_looked_up >= 28
    plain = auto.outputs_of(frozen, data.plain_train_dataloader(), accelerator="cpu")
    for outputs, targets in found:
        assert torch.allclose(outputs, plain[0], rtol=1e-4, atol=1e-2)
        assert torch.equal(targets, plain[1])


def test_a_trained_model_is_tested_on_the_test_part_alone(tmp_path):
    for name, numbers in (("train-0", range(20)), ("val-0", range(20, 26))):
        write_tar(tmp_path / f"{name}.tar", samples(numbers))
    data = ready(WebDatasetData(tmp_path).evaluate_with(["1", "0"]))
    assert data.report.part_sizes == {"test": 6}  # there is no test part: what comes last
    assert sorted(seen(data.test_dataloader())) == sorted(
        (to_tensor(picture(n)).numpy().tobytes(), 1 - n % 2) for n in range(20, 26)
    )
    assert data.report.notes == ["There is no test part: the val part is evaluated."]
    with pytest.raises(DataError, match="classes that the model does not have"):
        WebDatasetData(tmp_path).evaluate_with(["1", "2"]).prepare()
    write_tar(tmp_path / "test-0.tar", samples(range(26, 30)))
    tested = WebDatasetData(tmp_path).evaluate_with(["1", "0"])
    assert (tested.report.part_sizes, tested.report.notes) == ({"test": 4}, [])


def test_a_report_shows_samples_of_tar_files(shards):
    data = ready(WebDatasetData(shards, class_names=NAMES))
    first, second = data.samples("val")[0], data.samples("val")[1]
    assert len(data.samples("val")) == 6
    found = shown(first)
    assert found["place"] == first.place
    assert found["picture"].startswith("data:image/jpeg;base64,")
    assert is_same(first, data.samples("val")[0])
    assert not is_same(first, second)
    own = ready(DatasetData(Pictures(20), class_names=NAMES)).samples("val")
    assert shown(own[0])["picture"].startswith("data:image/jpeg;base64,")
    assert is_same(own[0], own[0])


def test_places_are_given_without_reading_a_sample(shards, monkeypatch):
    data = WebDatasetData(shards, class_names=NAMES).prepare()
    expected = [sample.place for sample in data.samples("val")]
    read = data.samples("val")[0]
    monkeypatch.setattr(Shards, "read", lambda self, number: numbers_read.append(number) or read.value)
    numbers_read = []
    assert data.places("val") == expected
    assert expected[0].endswith(f"/{read.key}")
    # So does a page that names thousands of samples and shows a few.
    suspects = [("val", index, Suspect(0, 0, 1, 0.1, 0.9)) for index in range(6)] * 100
    page = story._suspects(
        data, DataFindings(suspects=suspects, num_judged=600, twins=Twins([], 0, 0), head={})
    )
    assert [place for _, place, _, _ in page["all"][:6]] == expected
    assert len(numbers_read) == len(page["shown"]) < 100
    numbers_read.clear()
    judged = SimpleNamespace(
        part="val", features=torch.randn(6, 4), probabilities=torch.full((6, 2), 0.5), targets=[0] * 6
    )
    assert {point["place"] for point in story._map(data, judged, seed=0)["points"]} == set(expected)
    assert numbers_read == []


# ---- Hugging Face datasets


def image_rows(count):
    return {
        "image": [picture(number) for number in range(count)],
        "label": [number % 2 for number in range(count)],
    }


def image_features():
    return datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)})


def test_a_saved_dataset_of_images_is_read(tmp_path):
    datasets.Dataset.from_dict(image_rows(40), features=image_features()).save_to_disk(tmp_path / "saved")
    assert format_of(tmp_path / "saved") == "huggingface"
    data = ready(open_data(tmp_path / "saved"))
    assert isinstance(data, HuggingFaceData)
    assert (data.kind, data.class_names) == ("images", NAMES)
    assert data.report.part_sizes == {"train": 28, "val": 6, "test": 6}
    found = [
        each for part in ("train", "val", "test") for each in seen(getattr(data, f"{part}_dataloader")())
    ]
    assert sorted(found) == sorted((to_tensor(picture(n)).numpy().tobytes(), n % 2) for n in range(40))


def test_parts_of_a_dataset_are_kept_and_texts_found(tmp_path):
    rows = {"sentence": [f"a text, number {n}" for n in range(30)], "label": ["bad", "good"] * 15}
    whole = datasets.Dataset.from_dict(rows)
    parts = datasets.DatasetDict({"train": whole, "validation": whole.select(range(10))})
    parts.save_to_disk(tmp_path / "saved")
    data = ready(HuggingFaceData(tmp_path / "saved"))
    assert (data.kind, data.class_names) == ("text", ["bad", "good"])
    assert data.report.part_sizes == {"train": 30, "val": 10}
    assert data.train_set[3] == ("a text, number 3", 1)
    inputs, targets = next(iter(data.val_dataloader()))
    assert inputs["length"].tolist() == [16] * 10
    assert targets.tolist() == [0, 1] * 5
    with pytest.raises(DataError, match="has the parts 'odd'; expected train"):
        HuggingFaceData(datasets.DatasetDict({"odd": whole})).prepare()
    for name in ("train", "validation"):  # nothing is left out without a word
        with pytest.raises(DataError, match=f"has the parts 'all', '{name}'; expected train, and perhaps"):
            HuggingFaceData(datasets.DatasetDict({"all": whole, name: whole})).prepare()
    two = datasets.DatasetDict({"train": whole, "validation": whole, "dev": whole})
    with pytest.raises(DataError, match="a DatasetDict holds both 'validation' and 'dev': keep one of them"):
        HuggingFaceData(two).prepare()
    with pytest.raises(DataError, match=r"has no column 'lable' \(--label_column\). Did you mean 'label'"):
        HuggingFaceData(whole, label_column="lable").prepare()


def test_parquet_and_arrow_files_are_read_by_what_is_in_them(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    images = datasets.Dataset.from_dict(image_rows(20), features=image_features())
    texts = datasets.Dataset.from_dict({"text": ["one", "two"], "label": ["a", "b"]})
    images.to_parquet(tmp_path / "images.parquet")
    texts.to_parquet(tmp_path / "texts.parquet")
    assert isinstance(open_data(tmp_path / "texts.parquet"), TextTableData)
    data = open_data(tmp_path / "images.parquet")
    assert (data.kind, data.class_names) == ("images", NAMES)
    images.save_to_disk(tmp_path / "saved")
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert open_data(arrow).report.num_samples == 20
    (tmp_path / "mixed").mkdir()
    for file in (arrow, tmp_path / "images.parquet"):
        (tmp_path / "mixed" / file.name).write_bytes(file.read_bytes())
    with pytest.raises(DataError, match="holds both .arrow and .parquet files"):
        open_data(tmp_path / "mixed").prepare()
    arrow.write_bytes(b"no arrow")
    with pytest.raises(DataError, match="saved cannot be read by the library datasets"):
        open_data(tmp_path / "saved").prepare()


def test_files_named_for_parts_as_the_hub_names_them_are_those_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    texts = {
        "train-00000-of-00002": range(12),
        "train-00001-of-00002": range(12, 20),
        "validation-00000-of-00001": range(20, 26),
        "test-00000-of-00001": range(26, 30),
    }
    for name, numbers in texts.items():
        rows = {"text": [f"text {n}" for n in numbers], "label": [NAMES[n % 2] for n in numbers]}
        datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "hub" / f"{name}.parquet")
    data = ready(open_data(tmp_path / "hub"))
    assert data.report.part_sizes == {"train": 20, "val": 6, "test": 4}
    assert [text for text, _ in data.train_set] == [f"text {n}" for n in range(20)]
    assert [text for text, _ in data.val_set] == [f"text {n}" for n in range(20, 26)]
    assert [text for text, _ in data.test_set] == [f"text {n}" for n in range(26, 30)]
    (tmp_path / "hub" / "test-00000-of-00001.parquet").rename(tmp_path / "hub" / "more.parquet")
    with pytest.raises(
        DataError, match=r"some files are named for a part \(train, val\) and some are not \(more"
    ):
        open_data(tmp_path / "hub").prepare()


def test_without_the_library_the_command_to_install_it_is_named(tmp_path, monkeypatch):
    datasets.Dataset.from_dict({"text": ["one"], "label": ["a"]}).save_to_disk(tmp_path / "saved")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'headstart\[datasets\]'"):
        open_data(tmp_path / "saved").prepare()


# ---- datasets of one's own, and streams


class Pictures:
    """A dataset that is nobody's, one sample of which cannot be read."""

    def __init__(self, count, broken=()):
        self.count, self.broken = count, broken

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        if number in self.broken:
            raise OSError("the disk is gone")
        return picture(number), number % 2


class Stream(IterableDataset):
    def __init__(self, count):
        self.count = count

    def __iter__(self):
        return ((picture(number), number % 2) for number in range(self.count))


def test_a_dataset_of_ones_own_is_read_and_a_sample_that_raises_set_aside():
    data = ready(DatasetData(Pictures(200, broken=[7]), class_names=NAMES))
    assert (data.kind, data.class_names) == ("images", NAMES)
    (aside,) = data.report.set_aside
    assert str(aside) == "train, sample 7: cannot be read: OSError: the disk is gone"
    assert data.report.num_samples == 199
    parts = ready(DatasetData(Pictures(20), val=Pictures(4), class_names=NAMES))
    assert parts.report.part_sizes == {"train": 20, "val": 4}
    assert sorted(seen(parts.val_dataloader())) == sorted(
        (to_tensor(picture(n)).numpy().tobytes(), n % 2) for n in range(4)
    )


def rotated():
    """A photo as a camera writes it: lying, with a mark that says how to turn it; and as it is to be seen."""
    upright = Image.new("RGB", (24, 16), "blue")
    upright.paste("red", (0, 0, 12, 16))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    file = io.BytesIO()
    upright.transpose(Image.Transpose.ROTATE_90).save(file, format="PNG", exif=exif)
    return file.getvalue(), np.asarray(upright)


def test_images_are_upright_however_they_are_given(tmp_path):
    file, upright = rotated()
    for name, given in (("bytes", lambda: file), ("image", lambda: Image.open(io.BytesIO(file)))):
        rows = [(given(), n % 2) for n in range(12)]
        streams = DatasetData(lambda rows=rows: iter(rows), class_names=NAMES, spool=tmp_path / name)
        for data in (DatasetData(rows, class_names=NAMES), streams):
            assert np.array_equal(np.asarray(data.val_set[0][0]), upright)
        found = shown(DatasetData(rows, class_names=NAMES).samples("val")[0])["picture"]
        with Image.open(io.BytesIO(base64.b64decode(found.partition(",")[2]))) as picture:
            assert picture.size == (24, 16)


class OneFile:
    """A dataset that seeks in a file that it holds open, as torch allows."""

    def __init__(self, file, count):
        self.file, self.count, self.threads = file, count, set()

    def __len__(self):
        return self.count

    def __getitem__(self, number):
        self.threads.add(threading.get_ident())
        self.file.seek(100 * number)
        time.sleep(0)  # another thread may seek now
        return self.file.read(100).decode().strip(), number % 2


def test_a_dataset_of_ones_own_is_read_in_the_calling_thread_alone(tmp_path):
    path = tmp_path / "texts"
    path.write_text("".join(f"text {number}".ljust(100) for number in range(400)))
    with path.open("rb") as file:
        dataset = OneFile(file, 400)
        assert DatasetData(dataset, class_names=NAMES).report.num_samples == 400
    assert dataset.threads == {threading.get_ident()}
    # What is the content of image files is decoded elsewhere, in its order.
    data = DatasetData([(content(n) if n != 150 else b"?", n % 2) for n in range(200)], class_names=NAMES)
    assert list(map(str, data.report.set_aside)) == ["train, sample 150: not an image"]


def test_a_stream_gives_the_parts_that_the_same_samples_with_numbers_give(tmp_path):
    streams = [
        Stream(40),
        lambda: iter(Stream(40)),
        datasets.Dataset.from_dict(image_rows(40), features=image_features()),
    ]
    rows = streams.pop().to_iterable_dataset()
    streams.append((row["image"], row["label"]) for row in rows)
    found = []
    for number, stream in enumerate(streams):
        data = ready(DatasetData(stream, class_names=NAMES, spool=tmp_path / f"{number}"))
        assert data.report.part_sizes == {"train": 28, "val": 6, "test": 6}
        found.append(sorted(seen(data.val_dataloader())))
        assert [path.name for path in (tmp_path / f"{number}").iterdir()] == ["train-000000.tar"]
    assert found[0] == found[1] == found[2]
    again = ready(WebDatasetData(tmp_path / "0" / "train-000000.tar", class_names=NAMES))
    assert sorted(seen(again.val_dataloader())) == found[0]


def test_a_temporary_spool_is_removed_with_the_data():
    data = DatasetData(Stream(12), class_names=NAMES).prepare()
    folder = Path(data._spool)
    assert len(list(folder.iterdir())) == 1
    del data
    gc.collect()
    assert not folder.exists()


def test_a_stream_that_fails_says_where_and_bad_samples_are_set_aside(tmp_path):
    def broken():
        yield ("a text", "a")
        raise ConnectionError("the line is down")

    with pytest.raises(
        DataError, match="The stream of train ended after 1 samples with ConnectionError: the line is down"
    ):
        DatasetData(broken).prepare()
    _, set_aside = write_shards([("a", "x"), (3, "x"), ("b", None), "abc", (b"no image", "x")], tmp_path)
    assert list(map(str, set_aside)) == [
        "samples, sample 1: a int where an image, a text or a pair of texts was expected",
        "samples, sample 2: no label: None",
        "samples, sample 3: a str; expected (image, label) or (text, label)",
        "samples, sample 4: not an image",
    ]


def test_a_stream_is_written_sample_by_sample_and_into_a_new_file_by_count_and_by_bytes(tmp_path):
    on_disk = []

    def stream(size):
        for number in range(9):
            on_disk.append(sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()))
            yield "x" * size, number % 2

    files, _ = write_shards(stream(40_000), tmp_path / "bytes", bytes_per_file=100_000)
    assert len(files) == 3  # three samples of 40,000 bytes each
    assert all(later - before > 30_000 for before, later in itertools.pairwise(on_disk))
    files, _ = write_shards(stream(40), tmp_path / "count", samples_per_file=4)
    assert len(files) == 3
    for folder in ("bytes", "count"):
        assert len(Shards(sorted((tmp_path / folder).iterdir()), set_aside=[])) == 9


def test_a_stream_that_ends_in_an_error_or_on_a_full_disk_leaves_no_file(tmp_path):
    def broken():
        yield "a text", 1
        raise OSError(errno.EIO, "the line is down")

    with pytest.raises(DataError, match="ended after 1 samples with OSError: .*the line is down"):
        write_shards(broken(), tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(WriteError, match="samples-000000.tar was not written"):
            write_shards((("x" * 10_000, number % 2) for number in range(20)), tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_streams_of_pairs_and_of_images_of_every_mode_are_read(tmp_path):
    pairs = [((f"a premise, number {n}", ["hypothesis", "ärger"][n % 2]), n % 2) for n in range(20)]
    data = ready(DatasetData(lambda: iter(pairs), class_names=NAMES, spool=tmp_path / "pairs"))
    assert data.kind == "text"
    for each in (data, WebDatasetData(tmp_path / "pairs", class_names=NAMES)):
        parts = [each.train_set, each.val_set, each.test_set]
        assert sorted(sample for part in parts for sample in part) == sorted(pairs)
    for mode in ("CMYK", "YCbCr", "I;16", "P", "LA", "F"):
        images = [(Image.new(mode, (12, 16)), n % 2) for n in range(12)]
        data = DatasetData(lambda images=images: iter(images), class_names=NAMES)
        assert (data.kind, data.report.num_samples, data.report.set_aside) == ("images", 12, [])
        assert np.array_equal(np.asarray(data.val_set[0][0]), np.asarray(to_rgb(images[0][0])))


def test_pairs_of_tar_files_that_are_none_are_set_aside(tmp_path):
    members = [
        member
        for n in range(500)
        for member in ((f"{n}.pair.json", b'["one", "%d"]' % n), (f"{n}.cls", b"%d" % (n % 2)))
    ]
    bad = [b'["one"]', b'{"a": 1, "b": 2}', b'["one", 2]', b"[", b'["one", " "]']
    for n, value in enumerate(bad):
        members += [(f"bad{n}.pair.json", value), (f"bad{n}.cls", b"1")]
    data = WebDatasetData(write_tar(tmp_path / "x.tar", members))
    assert data.report.num_samples == 500
    reasons = [each.reason for each in data.report.set_aside]
    assert reasons[0] == "cannot be read: ValueError: no pair of texts: ['one']"
    assert reasons[2:] == [
        "a int where a text was expected",
        "cannot be read: JSONDecodeError: Expecting value: line 1 column 2 (char 1)",
        "an empty text",
    ]


def test_a_stream_without_a_usable_sample_says_why(monkeypatch):
    with pytest.raises(
        DataError, match=r"3 of 3 samples cannot be used.*\n +train, sample 0: a int where an"
    ):
        DatasetData(lambda: iter([(1, 2), (3, 4), (5, 6)])).prepare()
    monkeypatch.setattr(Image.Image, "convert", lambda self, *_: next(iter([])))  # an error without words
    with pytest.raises(DataError, match="train, sample 0: StopIteration"):
        DatasetData(lambda: iter([(Image.new("L", (4, 4)), 1)])).prepare()
    with pytest.raises(DataError, match="no sample was found"):
        DatasetData(lambda: iter([])).prepare()


@pytest.mark.parametrize("empty", [[], lambda: iter([])])
def test_an_empty_test_part_is_noted_and_an_empty_validation_part_refused(empty, tmp_path):
    texts = [(f"text {n}", n % 2) for n in range(200)]
    data = DatasetData(texts, val=texts[:20], test=empty, class_names=NAMES)
    assert data.report.part_sizes == {"train": 200, "val": 20}
    assert data.report.notes == ["The test part that is given has no usable sample: it counts as not given."]
    assert DatasetData(texts, test=empty).report.part_sizes == {"train": 140, "val": 30, "test": 30}
    unusable = DatasetData(texts, val=texts[:20], test=[("", 1)], class_names=NAMES)
    assert unusable.report.part_sizes == {"train": 200, "val": 20}
    assert list(map(str, unusable.report.set_aside)) == ["test, sample 0: an empty text"]
    for val in (empty, [("", 1)]):
        with pytest.raises(DataError, match="the validation part that is given has no usable sample"):
            DatasetData(texts, val=val, class_names=NAMES).prepare()
    with pytest.raises(DataError, match="has no usable sample to evaluate"):
        DatasetData(texts, test=empty, class_names=NAMES).evaluate_with(NAMES).prepare()
    with pytest.raises(DataError, match="has no class to train on"):
        DatasetData(empty, val=texts, class_names=NAMES).prepare()


def test_a_test_part_that_is_cut_in_place_of_an_unusable_one_is_of_train(tmp_path):
    rows = [(f"text {n}", n % 2) for n in range(1000)]
    data = DatasetData(rows, test=[(f"no label {n}", None) for n in range(10)]).prepare()
    assert data.report.part_sizes == {"train": 700, "val": 150, "test": 150}
    parts = [data.train_set, data.val_set, data.test_set]
    assert sorted((text, target) for part in parts for text, target in part) == sorted(rows)
    assert [each.value for each in data.samples("test")] == [text for text, _ in data.test_set]
    assert all(place.startswith("train, ") for place in data.places("test"))


STARS = ["1", "2", "3", "4", "5"]


def test_a_whole_number_is_the_number_of_a_class_and_a_text_its_name_also_where_names_are_numbers():
    rows = [(f"text {n}, {number}", number) for number in range(5) for n in range(10)]
    saved = datasets.Dataset.from_dict({"text": [row[0] for row in rows], "label": [row[1] for row in rows]})
    for data in (DatasetData(rows, class_names=STARS), HuggingFaceData(saved, class_names=STARS)):
        assert data.class_names == STARS
        for part in ("train", "val", "test"):
            assert all(int(each.value[-1]) + 1 == int(each.label) for each in data.samples(part))
    named = DatasetData([(text, str(number + 1)) for text, number in rows], class_names=STARS)
    assert named.class_names == STARS
    assert all(int(each.value[-1]) + 1 == int(each.label) for each in named.samples("train"))
    with pytest.raises(DataError, match="a class that is none: '0'; there are 2: cat, dog"):
        DatasetData([("a text", "0")] * 9, class_names=NAMES).prepare()
    with pytest.raises(DataError, match="a class that is none: -1; there are 2: cat, dog"):
        DatasetData([("a text", -1)] * 9, class_names=NAMES).prepare()


def test_a_label_in_a_tar_file_that_is_a_name_and_the_number_of_another_is_refused(tmp_path):
    rows = [(f"text {n}, {number}", number) for number in range(5) for n in range(10)]
    write_shards(rows, tmp_path)
    message = "the label '1' is kept as text, and is both the name of a class and the number of the class '2'"
    for data in (
        WebDatasetData(tmp_path, class_names=STARS),
        DatasetData(lambda: iter(rows), class_names=STARS),
    ):
        with pytest.raises(DataError, match=message):
            data.prepare()
    same = WebDatasetData(tmp_path, class_names=["0", "1", "2", "3", "4"])
    assert same.class_names == WebDatasetData(tmp_path).class_names == ["0", "1", "2", "3", "4"]


def test_one_hot_labels_are_answered_with_what_is_expected():
    labels = [torch.tensor([0, 1]), np.array([1, 0]), torch.tensor([])]
    reasons = ["a Tensor of shape (2,)", "a ndarray of shape (2,)", "a Tensor of shape (0,)"]
    for label, reason in zip(labels, reasons, strict=True):
        message = rf"train, sample 0: no label: {re.escape(reason)}; expected a name or a number. Of one-hot labels give the argmax"
        for rows in ([("a text", label)] * 9, lambda label=label: iter([("a text", label)] * 9)):
            with pytest.raises(DataError, match=message):
                DatasetData(rows).prepare()
    rows = [
        (f"text {n}", [torch.tensor(n % 2), torch.tensor([n % 2]), np.int64(n % 2)][n % 3]) for n in range(30)
    ]
    assert DatasetData(rows).class_names == ["0", "1"]


def test_what_is_no_dataset_is_refused(tmp_path, monkeypatch):
    with pytest.raises(
        MisconfigurationError, match="train is a int; expected a dataset with an index and a length"
    ):
        DatasetData(3)
    with pytest.raises(DataError, match=r"train, sample 0 is a int; expected \(image, label\)"):
        DatasetData([1, 2]).prepare()
    with pytest.raises(DataError, match="no sample was found"):
        DatasetData([]).prepare()
    with pytest.raises(
        DataError, match="cannot be used.*a list where an image was expected|a Tensor where an image"
    ):
        DatasetData([(torch.zeros(3, 4, 4), 1)] * 4).prepare()
    (tmp_path / "some_data.py").write_text(
        "def make():\n    return {'train': [('good', 1), ('bad', 0)] * 9, 'class_names': ['no', 'yes']}\n"
        "def saved():\n    from datasets import Dataset\n"
        "    rows = {'text': ['a'] * 18, 'label': [0, 1] * 9, 'words': ['b'] * 18, 'gold': ['x', 'y'] * 9}\n"
        "    return Dataset.from_dict(rows)\n"
        "def wrong():\n    return {'training': []}\n"
        "def plain():\n    return [('good', 'yes'), ('bad', 'no')] * 9\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert open_data("some_data:make").class_names == ["no", "yes"]
    named = open_data("some_data:saved", text_columns="words", label_column="gold")
    assert named.class_names == ["x", "y"]
    assert (named.text_columns, named.label_column) == (("words",), "gold")
    assert data_of("some_data:plain", batch_size=2).kind == "text"
    with pytest.raises(DataError, match="some_data:wrong gives the names training; expected train"):
        open_data("some_data:wrong")
    with pytest.raises(DataError, match="'some_data:nothing' names no function"):
        open_data("some_data:nothing")


def test_folders_and_tables_are_opened_as_before(images, write_table):
    images.add("cat", 1)
    assert isinstance(open_data(images.root), ImageFolderData)
    assert isinstance(open_data(write_table("a.csv", "x")), TextTableData)
