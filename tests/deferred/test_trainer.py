"""`Trainer(reuse_frozen=...)`: in fit, validate, test and predict, across thawing and resuming."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from headstart import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning, ModelCheckpoint
from headstart.deferred import Deferred, Reuse, Views
from headstart.errors import MisconfigurationError


class Photos(Dataset):
    """64 pictures; it counts how often each is read."""

    def __init__(self, count=64, size=16):
        generator = torch.Generator().manual_seed(0)
        self.pictures = torch.randn(count, 3, size, size, generator=generator)
        self.labels = (self.pictures.mean((1, 2, 3)) > 0).long()
        self.num_reads = torch.zeros(count, dtype=torch.int64)

    fingerprint_excludes = ("num_reads",)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        self.num_reads[index] += 1
        return self.pictures[index], self.labels[index]


class Net(LightningModule):
    def __init__(self, *, freeze=True):
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip
        self.backbone.requires_grad_(not freeze)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 2))
        self.kinds = set()

    def forward(self, x):
        return self.head(self.backbone(x))

    def training_step(self, batch, batch_idx):
        x, y = batch
        self.kinds.add(type(x))
        loss = functional.cross_entropy(self(x), y)
        self.log("train_loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        x, y = batch
        self.log("val_loss", functional.cross_entropy(self(x), y))
        return self.backbone(x)

    def test_step(self, batch, batch_idx):
        x, y = batch
        self.log("test_acc", (self(x).argmax(1) == y).float().mean())

    def predict_step(self, batch, batch_idx):
        return self.backbone(batch[0])

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)


def loader(photos, shuffle=True):
    return DataLoader(photos, batch_size=16, shuffle=shuffle)


@pytest.fixture
def make_trainer(quiet_trainer):
    """Make a trainer whose stored values are worth reading, small as the network is."""

    def make(setting="auto", **settings):
        reuse = Reuse(setting=setting, min_gain=0, say=lambda line: None) if setting else False
        return quiet_trainer(reuse_frozen=reuse, **settings)

    return make


def fit(trainer, data=None, *, freeze=True, **settings):
    seed_everything(1)
    model = Net(freeze=freeze)
    trainer.fit(model, loader(Photos() if data is None else data), **settings)
    return model, torch.cat([p.detach().flatten() for p in model.parameters()]), torch.rand(2)


def stacked(samples):
    return tuple(torch.stack(each) for each in zip(*samples, strict=True))


def test_a_loader_may_collate_by_a_method_of_its_data_module(make_trainer):
    class Data(LightningDataModule):
        def collate(self, samples):
            return stacked(samples)

        def train_dataloader(self):
            return DataLoader(Photos(), batch_size=8, collate_fn=self.collate)

    trainer = make_trainer("exact", max_epochs=3)
    trainer.fit(Net(), datamodule=Data())
    assert trainer.reuse.report().num_computed == 64


def test_a_loader_may_collate_by_a_method_of_the_module_that_trains(make_trainer):
    class Collates(Net):
        def collate(self, samples):
            return stacked(samples)

        def train_dataloader(self):
            return DataLoader(Photos(), batch_size=8, collate_fn=self.collate)

    trainer = make_trainer("exact", max_epochs=2)
    trainer.fit(Collates())
    # It might use weights, which change.
    assert "Photos or its transform has changed: frozen work is done anew." in trainer.reuse.report().remarks


@pytest.mark.parametrize("setting", ["auto", "exact"])
def test_a_fit_is_that_without_it_and_reads_no_sample_after_its_value_is_stored(make_trainer, setting):
    plain = fit(make_trainer(None, max_epochs=4))
    photos = Photos()
    model, weights, state = fit(make_trainer(setting, max_epochs=4), data=photos)
    # Values of a sample that was computed in another batch differ in their last bits at most.
    torch.testing.assert_close(weights, plain[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(state, plain[2])
    assert model.kinds == {Deferred}
    assert plain[0].kinds == {torch.Tensor}
    assert photos.num_reads.sum() <= 64 + 16 + 4  # once each; the first batch, and the probe, once more


def test_when_the_backbone_thaws_it_is_computed_again_and_learns(make_trainer):
    def run(setting):
        finetuning = BackboneFinetuning(2, train_bn=False, lambda_func=lambda epoch: 1.0)
        return fit(make_trainer(setting, max_epochs=4, callbacks=finetuning), freeze=False)

    plain, exact, auto = run(None), run("exact"), run("auto")
    torch.testing.assert_close(exact[1], plain[1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(auto[1], plain[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(auto[2], plain[2])
    assert auto[0].kinds == {Deferred, torch.Tensor}  # deferred while frozen, plain when everything trains


def test_validation_test_and_prediction_use_it_and_give_real_tensors(make_trainer):
    class Outputs(Callback):
        kinds = set()

        def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
            self.kinds.add(type(outputs))

    photos, held_back = Photos(), Photos(24)
    seed_everything(1)
    model, trainer = Net(), make_trainer("exact", max_epochs=3, callbacks=Outputs())
    trainer.fit(model, loader(photos), loader(held_back, shuffle=False))
    assert Outputs.kinds == {torch.Tensor}
    assert held_back.num_reads.max() <= 3
    reads = int(held_back.num_reads.sum())
    features = torch.cat(trainer.predict(model, loader(held_back, shuffle=False)))
    (scores,) = trainer.test(model, loader(held_back, shuffle=False), verbose=False)
    assert int(held_back.num_reads.sum()) == reads
    model.eval()
    with torch.no_grad():
        assert type(features) is torch.Tensor
        torch.testing.assert_close(features, model.backbone(held_back.pictures), rtol=1e-5, atol=1e-6)
        expected = (model(held_back.pictures).argmax(1) == held_back.labels).float().mean()
    assert scores["test_acc"] == pytest.approx(expected.item())


def test_a_resumed_run_is_the_uncut_one_bit_for_bit(make_trainer, tmp_path):
    def trainer(epochs):
        saving = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        return make_trainer("auto", max_epochs=epochs, enable_checkpointing=True, callbacks=saving)

    whole = fit(trainer(4))
    for step in (2, 4, 7):
        resumed = fit(trainer(4), ckpt_path=tmp_path / f"step={step}.ckpt")
        assert torch.equal(resumed[1], whole[1])


def test_views_are_computed_once_each_and_follow_the_epochs(make_trainer):
    class Noisy(Photos):
        def __getitem__(self, index):
            picture, label = super().__getitem__(index)
            return picture + torch.randn(3, 1, 1), label

    def run(setting):
        trainer = make_trainer(setting, max_epochs=5)
        return fit(trainer, data=Views(Noisy(), 2)), trainer

    (plain, _), (found, trainer) = run(None), run("auto")
    torch.testing.assert_close(found[1], plain[1], rtol=1e-5, atol=1e-6)
    assert torch.equal(found[2], plain[2])
    assert trainer.reuse.report().num_computed == 2 * 64


@pytest.mark.parametrize("setting", ["auto", "exact"])
def test_a_generator_of_the_loaders_own_is_where_the_plain_run_leaves_it(make_trainer, setting):
    """The trainer takes as many batches as there are, and never asks for one more: only then a sampler draws again."""

    def draw(setting):
        generator = torch.Generator().manual_seed(3)
        seed_everything(0)
        loader = DataLoader(Photos(), batch_size=16, shuffle=True, generator=generator)
        make_trainer(setting, max_epochs=3).fit(Net(), loader)
        return torch.rand(1, generator=generator).item(), torch.rand(1).item()

    assert draw(setting) == draw(None)


def test_random_augmentation_is_live_and_named(quiet_trainer, capfd):
    class Noisy(Photos):
        def __getitem__(self, index):
            picture, label = super().__getitem__(index)
            return picture + torch.randn(3, 1, 1), label

    plain = fit(quiet_trainer(max_epochs=2, reuse_frozen=False), data=Noisy())
    found = fit(quiet_trainer(max_epochs=2), data=Noisy())
    assert torch.equal(found[1], plain[1])
    said = [line for line in capfd.readouterr().err.splitlines() if "draws random numbers" in line]
    assert len(said) == 1
    assert "Noisy" in said[0]
    assert "Views" in said[0]


def test_the_default_is_auto_and_other_words_are_refused(quiet_trainer):
    assert quiet_trainer().reuse.setting == "auto"
    assert quiet_trainer(reuse_frozen="exact").reuse.setting == "exact"
    assert quiet_trainer(reuse_frozen=False).reuse is None
    with pytest.raises(
        MisconfigurationError, match="reuse_frozen is 'always'; expected 'auto', 'exact', False"
    ):
        Trainer(reuse_frozen="always")
    with pytest.raises(MisconfigurationError, match="setting is 'fast'; expected 'auto' or 'exact'"):
        Reuse(setting="fast")


def test_a_loader_for_a_trainer_of_somebody_else():
    photos, model = Photos(), Net()
    model.backbone.eval()
    reuse = Reuse(model, min_gain=0, say=lambda line: None)
    reused = reuse.loader(loader(photos))
    assert len(reused) == 4
    assert reused.batch_size == 16
    assert reused.dataset is photos

    def foreign_trainer(batches, epochs):  # knows nothing of us
        for _ in range(epochs):
            for x, y in batches:
                functional.cross_entropy(model(x), y).backward()

    foreign_trainer(reused, 3)
    assert reuse.report().num_computed == 64
    assert photos.num_reads.sum() <= 64 + 16 + 4


# ---- opt-in: another number format, compiled


def features_of(model, reuse, photos):
    with torch.no_grad():
        return torch.cat([model.backbone(x) * 1.0 for x, _ in reuse.batches(loader(photos, shuffle=False))])


def test_the_frozen_part_may_be_run_in_bfloat16_and_its_values_keep_their_format():
    photos, model, said = Photos(), Net().eval(), []
    plain = features_of(model, Reuse(model, min_gain=0, say=said.append), photos)
    found = features_of(model, Reuse(model, dtype=torch.bfloat16, min_gain=0, say=said.append), photos)
    assert found.dtype == torch.float32
    assert not torch.equal(found, plain)
    # bfloat16 has 8 bits: two convolutions and a mean of 144 values stay within 2e-2 of the largest.
    assert (found - plain).abs().max() <= 2e-2 * plain.abs().max()
    assert not any("differs too much" in line for line in said)


def test_a_format_that_changes_too_much_is_left_with_a_line():
    class Cancels(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3 * 16 * 16, 8)

        def forward(self, x):
            large = self.linear(x.flatten(1)) + 1000.0
            return large - 1000.0 if large.dtype == torch.float32 else large.bfloat16() - 1000.0

    model, said = Net().eval(), []
    model.backbone = Cancels().requires_grad_(False).eval()
    found = features_of(model, Reuse(model, dtype=torch.bfloat16, min_gain=0, say=said.append), Photos())
    assert found.dtype == torch.float32
    assert any("differs too much" in line for line in said)


def test_exact_takes_no_other_format():
    with pytest.raises(MisconfigurationError, match="setting='exact' computes as the plain loop does"):
        Reuse(setting="exact", dtype=torch.bfloat16)


@pytest.mark.slow
def test_the_frozen_part_may_be_compiled():
    photos, model, said = Photos(), Net().eval(), []
    plain = features_of(model, Reuse(model, min_gain=0, say=said.append), photos)
    found = features_of(model, Reuse(model, compiled=True, min_gain=0, say=said.append), photos)
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    assert not any("differs too much" in line for line in said)
