from __future__ import annotations

import json
import os
import pickle
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from headstart import seed_everything
from headstart.data import ImageFolderData
from headstart.errors import DataError, MisconfigurationError
from headstart.loaders import set_epoch


def to_tensor(image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float()


def brighter(image) -> torch.Tensor:
    return to_tensor(image) + 1000


def ready(root: Path, **settings) -> ImageFolderData:
    return ImageFolderData(root, train_transform=to_tensor, eval_transform=to_tensor, **settings).prepare()


def names_in(dataset) -> list[str]:
    return [path.name for path in dataset.images.paths]


def test_a_folder_per_class_is_split_by_class(images):
    images.add("cat", 40)
    images.add("dog", 20)
    data = ready(images.root)
    assert data.class_names == ["cat", "dog"]
    assert data.class_counts == [28, 14]
    assert data.report.part_class_counts == {"train": [28, 14], "val": [6, 3], "test": [6, 3]}
    everything = names_in(data.train_set) + names_in(data.val_set) + names_in(data.test_set)
    assert len(everything) == len(set(everything)) == 60
    for path, target in zip(data.train_set.images.paths, data.train_set.targets, strict=True):
        assert path.parent.name == data.class_names[target]


def test_batches_are_float_images_and_int64_targets(images):
    images.add("cat", 10)
    images.add("dog", 10, ".jpg")
    data = ready(images.root, batch_size=4)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        inputs, targets = next(iter(loader))
        assert inputs.shape[1:] == (3, 12, 16)
        assert inputs.dtype == torch.float32
        assert targets.dtype == torch.int64
        assert inputs.shape[0] == targets.shape[0] <= 4
    assert (
        sum(len(targets) for _, targets in data.train_dataloader()) == 12
    )  # the last, short batch is not dropped
    inputs = next(iter(data.predict_dataloader()))
    assert isinstance(inputs, torch.Tensor)


def test_the_split_is_the_same_elsewhere_and_in_another_order_on_disk(images, tmp_path):
    images.add("cat", 30)
    images.add("dog", 30)
    copy = tmp_path / "elsewhere"
    for path in sorted(images.root.rglob("*.png"), reverse=True):
        (copy / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.parent.name)
    one, other = ready(images.root), ready(copy)
    assert names_in(one.train_set) == names_in(other.train_set)
    assert names_in(one.test_set) == names_in(other.test_set)
    assert names_in(one.train_set) != names_in(ready(images.root, seed=1).train_set)


def test_training_order_follows_the_global_seed(images):
    images.add("cat", 30)
    images.add("dog", 30)
    data = ready(images.root)

    def order(seed):
        seed_everything(seed)
        return torch.cat([targets for _, targets in data.train_dataloader()]).tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_loader_processes_give_the_same_batches(images):
    images.add("cat", 6)
    images.add("dog", 6)
    alone, helped = ready(images.root), ready(images.root, num_workers=1)
    (one, _), (other, _) = next(iter(alone.val_dataloader())), next(iter(helped.val_dataloader()))
    assert torch.equal(one, other)
    assert names_in(pickle.loads(pickle.dumps(helped)).train_set) == names_in(helped.train_set)


def test_transforms_may_be_set_after_the_data_was_read(images):
    images.add("cat", 10)
    images.add("dog", 10)
    data = ImageFolderData(images.root).prepare()
    with pytest.raises(
        MisconfigurationError, match=r"train_transform is not set.*model.preprocessing.train_transform"
    ):
        data.train_dataloader()
    data.train_transform, data.eval_transform = brighter, to_tensor
    assert next(iter(data.train_dataloader()))[0].min() >= 1000
    assert next(iter(data.val_dataloader()))[0].max() <= 255
    assert next(iter(data.predict_dataloader())).max() <= 255


# ---- a folder that is split already


@pytest.mark.parametrize("val", ["val", "valid", "validation", "dev", "Val"])
def test_train_val_and_test_folders_are_taken_as_they_are(images, val):
    for part, count in (("train", 6), (val, 3), ("test", 2)):
        images.add(f"{part}/cat", count)
        images.add(f"{part}/dog", count)
    assert ready(images.root).report.part_sizes == {"train": 12, "val": 6, "test": 4}


@pytest.mark.parametrize(
    ("folders", "sizes"),
    [
        (["train"], {"train": 28, "val": 6, "test": 6}),
        (["train", "test"], {"train": 34, "val": 6, "test": 40}),
        (["train", "val"], {"train": 40, "val": 40}),
    ],
)
def test_a_missing_val_is_cut_from_train_and_a_missing_test_only_with_it(images, folders, sizes):
    for part in folders:
        images.add(f"{part}/cat", 20)
        images.add(f"{part}/dog", 20)
    data = ready(images.root)
    assert data.report.part_sizes == sizes
    if "test" not in sizes:
        assert data.test_set is None
        with pytest.raises(MisconfigurationError, match="has no test part"):
            data.test_dataloader()
        assert len(data.predict_dataloader().dataset) == 40  # validation, then


def test_classes_may_be_called_train_and_test(images):
    for name in ("train", "bus", "test"):
        images.add(name, 10)
    assert ready(images.root).class_names == ["bus", "test", "train"]


def test_a_folder_beside_train_and_val_is_named_and_refused(images):
    for part in ("train", "val"):
        images.add(f"{part}/cat", 2)
    images.add("dog", 2)
    with pytest.raises(DataError, match=r"'train', 'val', and beside them 'dog'"):
        ready(images.root)


def test_two_folders_for_one_part_are_refused(images):
    for part in ("train", "val", "valid"):
        images.add(f"{part}/cat", 2)
    with pytest.raises(DataError, match=r"both 'val' and 'valid'"):
        ready(images.root)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_class_that_train_lacks_is_named_with_its_first_file(images, part):
    for name in ("train", "val", "test"):
        images.add(f"{name}/cat", 3)
        images.add(f"{name}/dog", 3)
    images.add(f"{part}/dogs", 2)
    with pytest.raises(
        DataError, match=rf"(?s)'dogs' \(2 samples, first: {part}/dogs/0019.png\) Did you mean 'dog'\?"
    ):
        ready(images.root)


# ---- messy folders


def test_hidden_files_are_ignored_and_counted(images):
    images.add("cat", 10)
    images.add("dog", 10)
    images.add(".ipynb_checkpoints", 2)
    images.add("cat/.ipynb_checkpoints", 2)
    images.add("__MACOSX/cat", 1)
    for name in (".DS_Store", "cat/.DS_Store", "dog/Thumbs.db", "dog/._0001.png"):
        (images.root / name).write_bytes(b"\0")
    report = ready(images.root).report
    assert report.num_samples == 20
    assert report.class_names == ["cat", "dog"]
    assert report.num_hidden == 7
    assert report.set_aside == []
    assert "7 hidden files or folders ignored" in report.lines()


def test_one_truncated_image_in_a_hundred_is_set_aside_and_listed(images):
    images.add("cat", 60)
    paths = images.add("dog", 60, ".jpg")
    paths[3].write_bytes(paths[3].read_bytes()[:-200])
    data = ready(images.root)
    assert data.report.num_samples == 119
    [(place, reason)] = data.report.set_aside
    assert place == f"dog/{paths[3].name}"
    assert "truncated" in reason.lower()
    assert paths[3].name not in names_in(data.train_set) + names_in(data.val_set) + names_in(data.test_set)
    assert sum(len(targets) for _, targets in data.train_dataloader()) == data.report.part_sizes["train"]


def test_more_than_one_unreadable_image_in_a_hundred_stops(images):
    images.add("cat", 60)
    for path in images.add("dog", 60, ".jpg")[:20]:
        path.write_text("404 not found")
    with pytest.raises(DataError) as caught:
        ready(images.root)
    message = str(caught.value)
    assert "20 of 120 samples cannot be used (16.7%" in message
    assert "dog/0061.jpg: not an image" in message
    assert "... and 12 more" in message


def test_texts_beside_the_images_are_listed_and_do_not_count_as_damage(images):
    images.add("cat", 10)
    images.add("dog", 10)
    for number in range(10):
        (images.root / "cat" / f"{number}.json").write_text("{}")
    (images.root / "labels.csv").write_text("a,b")
    report = ready(images.root).report
    assert report.num_samples == 20
    assert ("cat/3.json", "not an image") in report.set_aside
    assert ("labels.csv", "beside the folders, so of no class") in report.set_aside


def test_an_image_without_a_suffix_is_an_image(images):
    images.add("cat", 10)
    for path in images.add("dog", 10):
        path.rename(path.with_suffix(""))
    assert ready(images.root).report.num_samples == 20


def test_folders_within_a_class_belong_to_it_and_links_end(images):
    images.add("cat/indoors", 5)
    images.add("cat/outdoors/winter", 5)
    images.add("dog", 10)
    (images.root / "cat" / "loop").symlink_to(images.root / "cat")
    report = ready(images.root).report
    assert report.num_samples == 20
    assert report.class_names == ["cat", "dog"]


def test_empty_classes_are_named(images):
    images.add("cat", 10)
    images.add("dog", 10)
    (images.root / "bird").mkdir()
    (images.root / "fish").mkdir()
    (images.root / "fish" / "notes.txt").write_text("none yet")
    with pytest.raises(DataError, match=r"without a readable image: 'bird', 'fish'.*delete the folders"):
        ready(images.root)


def test_a_class_that_is_empty_in_val_alone_is_noted(images):
    for part in ("train", "val"):
        images.add(f"{part}/cat", 4)
        images.add(f"{part}/dog", 4)
    shutil.rmtree(images.root / "val" / "dog")
    (images.root / "val" / "dog").mkdir()
    notes = " ".join(ready(images.root).report.notes)
    assert "without a readable image (val): 'dog'" in notes
    assert "Class 'dog' has no sample in the validation part" in notes


def test_classes_that_differ_by_letter_case_are_named(images):
    images.add("Cat", 10)
    first = images.add("cat", 5)[0]
    images.add("dog", 10)
    if len(os.listdir(images.root)) < 3:
        pytest.skip("this file system does not tell letter case apart")
    with pytest.raises(
        DataError, match=rf"(?s)letter case.*'Cat' \(10 samples.*'cat' \(5 samples, first: cat/{first.name}"
    ):
        ready(images.root)


def test_classes_that_differ_by_letter_case_between_train_and_val_are_named(images):
    images.add("train/cat", 10)
    images.add("train/dog", 10)
    images.add("val/Cat", 10)
    images.add("val/dog", 10)
    with pytest.raises(DataError, match=r"(?s)letter case.*first: val/Cat/"):
        ready(images.root)


def test_a_class_with_one_image_is_trained_on_and_named(images):
    images.add("cat", 10)
    images.add("dog", 10)
    path = images.add("unicorn", 1)[0]
    data = ready(images.root)
    assert path.name in names_in(data.train_set)
    assert data.report.notes == [
        f"Class 'unicorn' has one sample (unicorn/{path.name}): it is trained on and never judged."
    ]


def test_every_class_with_two_images_is_in_val(images):
    for name in ("cat", "dog", "owl"):
        images.add(name, 2)
    data = ready(images.root)
    assert Counter(data.val_set.targets) == {0: 1, 1: 1, 2: 1}
    assert data.test_set is None


@pytest.mark.parametrize("sizes", [{"cat": 10}, {"cat": 1, "dog": 1}])
def test_data_that_nothing_can_be_learnt_from_is_refused(images, sizes):
    for name, size in sizes.items():
        images.add(name, size)
    with pytest.raises(DataError, match="at least two|no class has two samples"):
        ready(images.root)


def test_a_folder_without_class_folders_is_refused_with_the_layout(images):
    images.add(".", 3)
    with pytest.raises(DataError, match=r"no class folders. Expected a folder per class: .*cat.1.jpg"):
        ready(images.root)


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere is missing: expected a folder"):
        ready(tmp_path / "nowhere")


def test_a_batch_size_of_nothing_is_refused(tmp_path):
    with pytest.raises(MisconfigurationError, match="batch_size=0"):
        ImageFolderData(tmp_path, batch_size=0)


# ---- for evaluation


def test_for_evaluation_all_images_are_one_test_part_in_the_model_s_order(images):
    images.add("cat", 3)
    images.add("dog", 2)
    data = ImageFolderData.for_evaluation(
        images.root, class_names=["owl", "dog", "cat"], eval_transform=to_tensor
    )
    assert data.train_set is None
    assert data.report.part_class_counts == {"test": [0, 2, 3]}
    assert data.report.notes == ["No sample of class 'owl'."]
    [(_, targets)] = list(data.test_dataloader())
    assert targets.tolist() == [2, 2, 2, 1, 1]


def test_for_evaluation_a_split_folder_gives_its_test_part(images):
    for part, count in (("train", 4), ("val", 3), ("test", 2)):
        images.add(f"{part}/cat", count)
        images.add(f"{part}/dog", count)
    data = ImageFolderData.for_evaluation(images.root, class_names=["cat", "dog"])
    assert data.report.part_sizes == {"test": 4}
    shutil.rmtree(images.root / "test")
    with pytest.raises(DataError, match=r"no test folder. Name the folder to evaluate, for example .*val"):
        ImageFolderData.for_evaluation(images.root, class_names=["cat", "dog"]).prepare()


def test_for_evaluation_a_class_that_the_model_does_not_have_is_named(images):
    images.add("cat", 3)
    images.add("horse", 2)
    with pytest.raises(
        DataError, match=r"(?s)classes that the model does not have:\s+'horse' \(2 samples.*'cat', 'dog'"
    ):
        ImageFolderData.for_evaluation(images.root, class_names=["cat", "dog"]).prepare()


def test_for_evaluation_a_class_in_other_letters_is_named(images):
    images.add("Cat", 3)
    with pytest.raises(DataError, match=r"(?s)'Cat' \(3 samples.*'cat' \(known to the model\)"):
        ImageFolderData.for_evaluation(images.root, class_names=["cat", "dog"]).prepare()


# ---- real photos


@pytest.mark.slow
def test_solar_cell_photos_are_read_checked_and_split(tmp_path):
    elpv = pytest.importorskip("elpv_dataset")
    source = Path(elpv.__file__).parent / "data"
    for line in (source / "labels.csv").read_text().splitlines()[:400]:
        path, probability, _ = line.split()
        if float(probability) in (0.0, 1.0):
            folder = tmp_path / ("defective" if float(probability) else "sound")
            folder.mkdir(exist_ok=True)
            (folder / Path(path).name).symlink_to(source / path)
    data = ready(tmp_path, batch_size=8)
    assert data.class_names == ["defective", "sound"]
    assert data.report.set_aside == []
    inputs, _ = next(iter(data.train_dataloader()))
    assert inputs.shape == (8, 3, 300, 300)
    assert torch.equal(inputs[:, 0], inputs[:, 2])  # the photos are grey


# ---- fixed views, while a backbone is frozen


@pytest.fixture
def cats_and_dogs(images):
    images.add("cat", 10)
    images.add("dog", 10)

    def shade(image):
        return torch.rand(1)

    def plain(image):
        return torch.zeros(1)

    return ImageFolderData(images.root, train_transform=shade, eval_transform=plain, batch_size=4).prepare()


def epochs_of(data, count):
    """What each training image looks like in each epoch, by its number in the part."""
    found = []
    for epoch in range(count):
        data.trainer = SimpleNamespace(current_epoch=epoch)
        loader = data.train_dataloader()
        set_epoch(loader, epoch)
        found.append([float(loader.dataset[index][0]) for index in range(len(loader.dataset))])
    return found


def test_one_view_is_the_photo_as_it_is_until_the_epoch(cats_and_dogs):
    cats_and_dogs.show_fixed_views(1, until_epoch=2)
    first, second, third, fourth = epochs_of(cats_and_dogs, 4)
    assert set(first) == set(second) == {0.0}
    assert 0.0 not in third
    assert third != fourth


def test_views_take_turns_until_the_epoch_and_are_the_same_again(cats_and_dogs):
    cats_and_dogs.show_fixed_views(2, until_epoch=4)
    first, second, third, fourth, live = epochs_of(cats_and_dogs, 5)
    assert first == third
    assert second == fourth
    assert first != second
    assert live not in (first, second)


def test_the_loaders_of_an_epoch_share_their_data_set(cats_and_dogs):
    cats_and_dogs.show_fixed_views(2, until_epoch=4)
    assert cats_and_dogs.train_dataloader().dataset is cats_and_dogs.train_dataloader().dataset


def test_no_view_at_all_is_refused(cats_and_dogs):
    with pytest.raises(MisconfigurationError, match="num_views is 0; expected 1 or more"):
        cats_and_dogs.show_fixed_views(0, until_epoch=1)


def test_names_that_are_no_text_are_escaped_before_anything_is_trained(tmp_path):
    """Old archives give names of files in other encodings: they stand in the artefact and on the terminal."""
    root = os.fsencode(tmp_path / "photos")
    for name in (b"cat", b"m\xf6we"):
        os.makedirs(os.path.join(root, name))
        for number in range(12):
            pixels = np.full((8, 8, 3), 10 * number, dtype=np.uint8)
            Image.fromarray(pixels).save(os.fsdecode(os.path.join(root, name, b"%d.png" % number)))
    Path(os.fsdecode(os.path.join(root, b"cat", b"caf\xe9.txt"))).write_text("no image")
    data = ready(tmp_path / "photos")
    assert data.class_names == ["cat", "m\\udcf6we"]
    json.dumps(data.report.to_dict(), ensure_ascii=False).encode()
    assert "cat/caf\\udce9.txt: not an image" in "\n".join(data.report.lines()).encode().decode()


def test_an_empty_test_folder_is_noted_and_an_empty_validation_folder_refused(images):
    for part, count in (("train", 5), ("val", 2), ("test", 0)):
        for name in ("cat", "dog"):
            images.add(f"{part}/{name}", count)
    data = ImageFolderData(images.root)
    assert data.report.part_sizes == {"train": 10, "val": 4}
    assert "The test part that is given has no usable sample: it counts as not given." in data.report.notes
    with pytest.raises(DataError, match="has no usable sample to evaluate"):
        ImageFolderData.for_evaluation(images.root, class_names=["cat", "dog"]).prepare()
    for path in (images.root / "val").glob("*/*"):
        path.unlink()
    with pytest.raises(DataError, match="the validation part that is given has no usable sample"):
        ImageFolderData(images.root).prepare()
