"""Data of another size than the checkpoint's: an error in the middle of an epoch, a warning at its end."""

import pytest
from torch.utils.data import DataLoader

from headstart.callbacks import ModelCheckpoint
from headstart.demos.boring_classes import BoringModel, RandomDataset
from headstart.errors import CheckpointError


def saving(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


@pytest.fixture
def saved(quiet_trainer, tmp_path):
    """Checkpoints after every step of one epoch of 6 batches."""
    trainer = quiet_trainer(callbacks=[saving(tmp_path)], enable_checkpointing=True)
    trainer.fit(BoringModel(), DataLoader(RandomDataset(32, 24), 4))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    return tmp_path


def go_on(quiet_trainer, path, num_samples, batch_size=4):
    trainer = quiet_trainer(max_epochs=2, callbacks=[saving(path.parent)], enable_checkpointing=True)
    trainer.fit(BoringModel(), DataLoader(RandomDataset(32, num_samples), batch_size), ckpt_path=path)
    return trainer


@pytest.mark.parametrize(
    ("num_samples", "batch_size", "expected"),
    [
        (28, 4, "24 samples then, 28 now, 6 batches then, 7 now"),
        (23, 4, "24 samples then, 23 now"),
        (24, 3, "6 batches then, 8 now"),
    ],
)
def test_in_the_middle_of_an_epoch_it_is_an_error(num_samples, batch_size, expected, saved, quiet_trainer):
    with pytest.raises(
        CheckpointError,
        match=rf"step=2.ckpt is from the middle of epoch 0, after batch 2, .*changed since: {expected}[.,] .*Give the data",
    ):
        go_on(quiet_trainer, saved / "step=2.ckpt", num_samples, batch_size)


@pytest.mark.parametrize("name", ["end.ckpt", "step=6.ckpt"])
def test_at_an_epochs_end_it_is_a_warning(name, saved, quiet_trainer):
    with pytest.warns(UserWarning, match="the training data has changed since: 24 samples then, 28 now"):
        trainer = go_on(quiet_trainer, saved / name, 28)
    assert trainer.global_step == 6 + 7


def test_the_same_size_is_no_matter(saved, quiet_trainer):
    assert go_on(quiet_trainer, saved / "step=2.ckpt", 24).global_step == 12


def test_a_second_fit_with_other_data_is_meant(quiet_trainer):
    trainer, net = quiet_trainer(), BoringModel()
    trainer.fit(net, DataLoader(RandomDataset(32, 24), 4))
    trainer.max_epochs = 2
    trainer.fit(net, DataLoader(RandomDataset(32, 12), 4))
    assert trainer.global_step == 6 + 3
