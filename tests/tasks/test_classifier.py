import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, Trainer
from headstart.errors import MisconfigurationError
from headstart.tasks import ImageClassifier, TextClassifier, balanced_class_weights

NAMES = ["a", "b", "c"]


def small_network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())


def small_data():
    generator = torch.Generator().manual_seed(0)
    return TensorDataset(torch.randn(24, 3, 16, 16, generator=generator), torch.arange(24) % 3)


def quiet_trainer(tmp_path, **settings):
    return Trainer(
        default_root_dir=tmp_path, logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False, accelerator="cpu", **settings,
    )  # fmt: skip


def test_plain_trainer_fits_tests_and_predicts(tmp_path):
    model = ImageClassifier(small_network(), class_names=NAMES, image_size=16, lr=0.01)
    loader = DataLoader(small_data(), batch_size=7)
    trainer = quiet_trainer(tmp_path, max_epochs=1)
    trainer.fit(model, loader, loader)
    assert {"train_loss", "val_loss", "val_acc", "val_f1"} <= set(trainer.callback_metrics)
    found = trainer.test(model, loader)[0]
    probabilities = torch.cat([each["probabilities"] for each in trainer.predict(model, loader)])
    guesses, targets = probabilities.argmax(1).numpy(), small_data().tensors[1].numpy()
    assert found["test_acc"] == pytest.approx(accuracy_score(targets, guesses))
    assert found["test_f1"] == pytest.approx(f1_score(targets, guesses, average="macro"))


def test_the_training_loss_is_logged_for_each_step_and_as_the_mean_of_the_epoch(tmp_path):
    class Steps(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            values = dict(trainer.callback_metrics)
            steps.append((float(outputs["loss"]), float(values["train_loss"]), len(batch[1])))

    steps = []
    model = ImageClassifier(small_network(), class_names=NAMES, image_size=16, lr=0.1)
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=[Steps()])
    trainer.fit(model, DataLoader(small_data(), batch_size=7))
    assert [size for *_, size in steps] == [7, 7, 7, 3]
    assert all(loss == logged for loss, logged, _ in steps)
    mean = sum(loss * size for loss, _, size in steps) / 24
    assert abs(mean - steps[-1][0]) > 1e-3
    assert float(trainer.callback_metrics["train_loss_epoch"]) == pytest.approx(mean)
    assert float(trainer.callback_metrics["train_loss"]) == steps[-1][0]


def test_optimizer_takes_what_trains():
    model = ImageClassifier(small_network(), class_names=NAMES, image_size=16)
    model.backbone.requires_grad_(False)
    optimizer = model.configure_optimizers()
    assert optimizer.param_groups[0]["params"] == list(model.head.parameters())
    model.head.requires_grad_(False)
    with pytest.raises(MisconfigurationError, match="frozen"):
        model.configure_optimizers()


def test_class_weights_enter_the_loss():
    logits, targets = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 0])
    model = ImageClassifier(small_network(), class_names=NAMES, image_size=16, class_weights=[1.0, 2.0, 3.0])
    expected = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2.0, 3.0]))(logits, targets)
    assert torch.equal(model.loss(logits, targets), expected)


def test_class_without_a_sample_has_no_balanced_weight():
    with pytest.raises(MisconfigurationError, match="every class needs"):
        balanced_class_weights([3, 0])


def test_checkpoint_loads_without_the_hub_and_without_the_package(tmp_path, monkeypatch):
    model = ImageClassifier("efficientnet_lite0", class_names=NAMES, image_size=64).eval()
    path = _save(model, tmp_path)
    monkeypatch.setattr("headstart.backbones.timm_models.find_spec", lambda _: None)
    again = ImageClassifier.load_from_checkpoint(path).eval()
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), again(images))
    assert again.preprocessing == model.preprocessing
    assert again.class_names == NAMES


def test_checkpoint_of_a_text_classifier_brings_its_tokenizer(tmp_path, monkeypatch):
    model = TextClassifier(class_names=NAMES, pretrained=False, max_length=12).eval()
    path = _save(model, tmp_path)
    monkeypatch.setattr("headstart.backbones.huggingface.find_spec", lambda _: None)
    again = TextClassifier.load_from_checkpoint(path).eval()
    pairs = [("a premise", "a hypothesis"), ("another " * 20, "b")]
    tokens = again.preprocessing(pairs)
    assert tokens["input_ids"].shape == (2, 12)
    assert torch.equal(model(model.preprocessing(pairs)), again(tokens))


def test_checkpoint_of_a_backbone_given_as_a_module_asks_for_it(tmp_path):
    model = ImageClassifier(small_network(), class_names=NAMES, image_size=16).eval()
    assert "backbone" not in model.hparams
    path = _save(model, tmp_path)
    with pytest.raises(MisconfigurationError, match="backbone=module"):
        ImageClassifier.load_from_checkpoint(path)
    again = ImageClassifier.load_from_checkpoint(path, backbone=small_network()).eval()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(model(images), again(images))


def test_backbone_of_the_other_kind_is_refused():
    with pytest.raises(MisconfigurationError, match="Use TextClassifier"):
        ImageClassifier("minilm", class_names=NAMES, pretrained=False)


@pytest.mark.parametrize("names", [["a"], ["a", "a"]])
def test_class_names_must_be_two_or_more_and_differ(names):
    with pytest.raises(MisconfigurationError, match="two or more different"):
        ImageClassifier(small_network(), class_names=names, image_size=16)


def _save(model, tmp_path):
    checkpoint = {
        "state_dict": model.state_dict(),
        "hyper_parameters": dict(model.hparams),
        "hparams_name": "kwargs",
    }
    model.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "model.ckpt")
    return tmp_path / "model.ckpt"
