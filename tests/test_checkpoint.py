"""Checkpoints: whole or not at all, read without running anything, and answering for what does not fit."""

from __future__ import annotations

import hashlib
import http.server
import os
import pickle
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from headstart import Callback, LightningModule, Trainer
from headstart.callbacks import BackboneFinetuning
from headstart.checkpoint import load_weights, read_checkpoint, write_checkpoint
from headstart.errors import CheckpointError, MisconfigurationError, UnknownArgumentError


class Net(LightningModule):
    def __init__(self, lr: float = 0.1, num_classes: int = 2):
        super().__init__()
        self.save_hyperparameters()
        self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.head = nn.Linear(4, num_classes)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = self.head(self.backbone(batch[0])).square().mean()
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        trainable = [parameter for parameter in self.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(trainable, lr=self.hparams.lr, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


def new_trainer(**options: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        **{"max_epochs": 1, "enable_checkpointing": False, **options},
    )  # fmt: skip


def loader() -> DataLoader:
    return DataLoader(
        TensorDataset(torch.randn(8, 3, generator=torch.Generator().manual_seed(0))), batch_size=4
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    trainer = new_trainer()
    trainer.fit(Net(lr=0.25, num_classes=5), loader())
    trainer.save_checkpoint(tmp_path / "net.ckpt")
    return tmp_path / "net.ckpt"


# ---- the file


def test_a_checkpoint_has_the_keys_that_the_field_reads(saved):
    assert set(torch.load(saved, weights_only=True)) >= {
        "epoch", "global_step", "state_dict", "loops", "callbacks", "optimizer_states", "lr_schedulers",
        "hparams_name", "hyper_parameters", "pytorch-lightning_version",
    }  # fmt: skip


def test_a_write_that_fails_leaves_the_file_that_was_there(tmp_path):
    write_checkpoint({"epoch": 1}, tmp_path / "last.ckpt")
    with pytest.raises((TypeError, AttributeError, pickle.PicklingError)):
        write_checkpoint({"epoch": 2, "cannot be pickled": lambda: None}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt") == {"epoch": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


class Malicious:
    """Runs a command where it is unpickled without protection."""

    def __init__(self, witness: Path):
        self.witness = witness

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.witness),)


class Remembers(Callback):
    def __init__(self, value: Any):
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}


@pytest.mark.parametrize(
    ("value", "kind"), [(Path("data"), "pathlib"), (np.float64(0.1), "numpy"), (Malicious, "Malicious")]
)
def test_a_state_that_could_not_be_read_back_is_refused_when_it_is_saved(tmp_path, value, kind):
    trainer = new_trainer(callbacks=Remembers(value))
    trainer.fit(Net(), loader())
    with pytest.raises(
        CheckpointError, match=rf"a\.ckpt was not written: it would hold .*{kind}.*could not be read back"
    ):
        trainer.save_checkpoint(tmp_path / "a.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_a_hyper_parameter_that_was_changed_to_something_unreadable_is_refused_by_name(tmp_path):
    net, trainer = Net(), new_trainer()
    trainer.fit(net, loader())
    net.hparams.lr = Path("data")
    with pytest.raises(MisconfigurationError, match="Net: the hyper-parameter 'lr' is of type"):
        trainer.save_checkpoint(tmp_path / "a.ckpt")


def test_a_checkpoint_has_the_permissions_of_an_ordinary_file(tmp_path):
    write_checkpoint({}, tmp_path / "a.ckpt")
    (tmp_path / "ordinary").touch()
    assert (tmp_path / "a.ckpt").stat().st_mode == (tmp_path / "ordinary").stat().st_mode


@pytest.mark.parametrize(
    "read", [read_checkpoint, Net.load_from_checkpoint], ids=["read", "load_from_checkpoint"]
)
def test_a_command_planted_in_a_checkpoint_is_refused_and_does_not_run(tmp_path, read):
    torch.save(
        {"state_dict": {}, "hyper_parameters": {"lr": Malicious(tmp_path / "ran")}}, tmp_path / "bad.ckpt"
    )
    with pytest.raises(CheckpointError, match=r"bad\.ckpt cannot be read without running code.*mkdir"):
        read(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def test_no_run_reads_a_planted_command_either(tmp_path):
    torch.save({"state_dict": Malicious(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    with pytest.raises(CheckpointError, match="without running code"):
        new_trainer().fit(Net(), loader(), ckpt_path=tmp_path / "bad.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.99])
def test_a_damaged_file_is_named(saved, keep):
    content = saved.read_bytes()
    saved.write_bytes(content[: keep if isinstance(keep, int) else int(len(content) * keep)])
    with pytest.raises(CheckpointError, match=r"net\.ckpt"):
        read_checkpoint(saved)


def test_a_file_of_something_else_is_named(tmp_path):
    (tmp_path / "page.ckpt").write_text("<html>404</html>")
    with pytest.raises(CheckpointError, match=r"page\.ckpt"):
        read_checkpoint(tmp_path / "page.ckpt")
    torch.save([1, 2], tmp_path / "list.ckpt")
    with pytest.raises(CheckpointError, match=r"list\.ckpt holds a list"):
        read_checkpoint(tmp_path / "list.ckpt")
    torch.save({"model": {}}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match=r"no 'state_dict'. It holds: model"):
        Net.load_from_checkpoint(tmp_path / "other.ckpt")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.ckpt"):
        read_checkpoint(tmp_path / "gone.ckpt")


# ---- from a URL


@contextmanager
def serve(folder: Path) -> Iterator[str]:
    class Quiet(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args: Any) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_a_url_without_a_digest_is_refused_before_anything_is_fetched():
    with pytest.raises(
        CheckpointError, match=r"http://127\.0\.0\.1:9/last\.ckpt#sha256=<64 hexadecimal digits>"
    ):
        read_checkpoint("http://127.0.0.1:9/last.ckpt")


def test_the_same_name_on_two_hosts_is_two_files_each_fetched_once(tmp_path):
    for host, value in (("one", 1), ("two", 2)):
        write_checkpoint({"state_dict": {}, "epoch": value}, tmp_path / host / "last.ckpt")
    with serve(tmp_path / "one") as one, serve(tmp_path / "two") as two:
        urls = [
            f"{address}/last.ckpt#sha256={digest(tmp_path / host / 'last.ckpt')}"
            for host, address in (("one", one), ("two", two))
        ]
        assert [read_checkpoint(url)["epoch"] for url in urls] == [1, 2]
    # Both servers are gone.
    assert [read_checkpoint(url)["epoch"] for url in urls] == [1, 2]


def test_a_file_with_another_digest_is_neither_read_nor_kept(tmp_path):
    write_checkpoint({"epoch": 1}, tmp_path / "host" / "last.ckpt")
    with (
        serve(tmp_path / "host") as address,
        pytest.raises(CheckpointError, match=r"expected 0{64}. It was not kept"),
    ):
        read_checkpoint(f"{address}/last.ckpt#sha256={'0' * 64}")
    assert not list((tmp_path / "cache").rglob("*.*"))


def test_a_planted_command_from_a_url_does_not_run(tmp_path):
    (tmp_path / "host").mkdir()
    torch.save({"state_dict": Malicious(tmp_path / "ran")}, tmp_path / "host" / "bad.ckpt")
    with serve(tmp_path / "host") as address, pytest.raises(CheckpointError, match="without running code"):
        read_checkpoint(f"{address}/bad.ckpt#sha256={digest(tmp_path / 'host' / 'bad.ckpt')}")
    assert not (tmp_path / "ran").exists()


# ---- load_from_checkpoint


def test_a_module_is_built_with_its_saved_hyper_parameters_and_weights(saved):
    net = Net.load_from_checkpoint(saved)
    assert net.hparams == {"lr": 0.25, "num_classes": 5}
    expected = torch.load(saved, weights_only=True)["state_dict"]
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


def test_keyword_arguments_win_over_the_saved_ones(saved):
    assert Net.load_from_checkpoint(saved, lr=0.5).hparams == {"lr": 0.5, "num_classes": 5}


def test_a_misspelt_keyword_is_answered(saved):
    with pytest.raises(UnknownArgumentError, match=r"no argument 'num_clases'. Did you mean 'num_classes'\?"):
        Net.load_from_checkpoint(saved, num_clases=3)


@pytest.mark.parametrize("strict", [None, True, False])
def test_a_head_of_another_size_is_an_error_that_says_what_to_do(saved, strict):
    with pytest.raises(
        CheckpointError, match=r'head.weight \(there \(5, 4\), here \(3, 4\)\).*on_mismatch="skip"'
    ):
        Net.load_from_checkpoint(saved, num_classes=3, strict=strict)


def test_a_head_of_another_size_can_be_left_out_and_is_listed(saved, capsys):
    torch.manual_seed(1)
    fresh = Net(num_classes=3)
    torch.manual_seed(1)
    net = Net.load_from_checkpoint(saved, num_classes=3, on_mismatch="skip")
    expected = torch.load(saved, weights_only=True)["state_dict"]
    for name, value in net.state_dict().items():
        here = fresh.state_dict() if name.startswith("head") else expected
        assert torch.equal(value, here[name]), name
    assert "without: head.weight (there (5, 4), here (3, 4)); head.bias" in capsys.readouterr().out


def test_on_mismatch_takes_two_words(saved):
    with pytest.raises(ValueError, match="on_mismatch is 'ignore'; expected 'error' or 'skip'"):
        Net.load_from_checkpoint(saved, on_mismatch="ignore")


def test_names_that_do_not_fit_are_listed_unless_strict_is_off(saved):
    class Renamed(Net):
        def __init__(self, lr: float = 0.1, num_classes: int = 2):
            super().__init__(lr, num_classes)
            self.classifier = self.head
            del self.head

    with pytest.raises(CheckpointError, match=r"Missing there: classifier.*Unknown here: head.*strict=False"):
        Renamed.load_from_checkpoint(saved)
    Renamed.load_from_checkpoint(saved, strict=False)


def test_weights_left_out_are_given_a_sentence_each():
    source = {"0.weight": torch.ones(2, 2), "1.weight": torch.ones(1)}
    left_out = load_weights(nn.Sequential(nn.Linear(2, 3)), source, strict=False, on_mismatch="skip")
    assert left_out == [
        "0.weight (there (2, 2), here (3, 2))", "0.bias (missing there)", "1.weight (unknown here)"
    ]  # fmt: skip


def test_hyper_parameters_of_a_file_stand_in_for_the_saved_ones(saved, tmp_path):
    (tmp_path / "hparams.yaml").write_text("lr: 0.75\nnum_classes: 5\n")
    assert Net.load_from_checkpoint(saved, hparams_file=tmp_path / "hparams.yaml").hparams.lr == 0.75


def test_a_module_that_builds_its_backbone_late_is_loaded(tmp_path):
    class Late(Net):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = None

        def configure_model(self) -> None:
            if self.backbone is None:
                self.backbone = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))

    trainer = new_trainer()
    trainer.fit(Late(), loader())
    trainer.save_checkpoint(tmp_path / "late.ckpt")
    assert isinstance(Late.load_from_checkpoint(tmp_path / "late.ckpt").backbone, nn.Sequential)


# ---- checkpoints of another trainer


def peer_checkpoint(path: Path) -> Net:
    """A file as pytorch-lightning 2.6 writes it, after two epochs of two steps; the backbone was thawed in the second."""
    net = Net(lr=0.25, num_classes=5)
    net.configure_optimizers()
    names = [name for name, _ in net.named_parameters()]
    head, backbone = (
        [name for name in names if "head" in name],
        [name for name in names if "backbone" in name],
    )
    group = {
        "momentum": 0.9, "dampening": 0, "weight_decay": 0, "nesterov": False, "maximize": False, "foreach": None,
        "differentiable": False, "fused": None,
    }  # fmt: skip
    progress = {"total": {"ready": 2, "completed": 2, "started": 2, "processed": 2},
                "current": {"ready": 2, "completed": 1, "started": 2, "processed": 2}}  # fmt: skip
    torch.save(
        {
            "epoch": 1, "global_step": 4, "pytorch-lightning_version": "2.6.6",
            "state_dict": net.state_dict(),
            "loops": {"fit_loop": {"state_dict": {}, "epoch_loop.state_dict": {"_batches_that_stepped": 4},
                                   "epoch_progress": progress}},
            "callbacks": {"BackboneFinetuning": {
                "internal_optimizer_metadata": {0: [{**group, "lr": 0.25, "initial_lr": 0.25, "params": head},
                                                    {**group, "lr": 0.025, "params": backbone}]},
                "previous_backbone_lr": 0.025,
            }},
            "optimizer_states": [{
                "state": {index: {"momentum_buffer": torch.full_like(net.get_parameter(name), 0.01)}
                          for index, name in enumerate(head + backbone)},
                "param_groups": [
                    {**group, "lr": 0.0025, "initial_lr": 0.25, "params": [0, 1]},
                    {**group, "lr": 0.00025, "params": [2, 3, 4, 5]},
                ],
            }],
            "lr_schedulers": [{"step_size": 1, "gamma": 0.1, "base_lrs": [0.25], "last_epoch": 2,
                               "_step_count": 3, "_get_lr_called_within_step": False, "_last_lr": [0.0025, 0.00025]}],
            "hparams_name": "kwargs", "hyper_parameters": {"lr": 0.25, "num_classes": 5},
        },
        path,
    )  # fmt: skip
    return net


def test_a_checkpoint_of_the_peer_gives_a_module(tmp_path):
    expected = peer_checkpoint(tmp_path / "peer.ckpt")
    net = Net.load_from_checkpoint(tmp_path / "peer.ckpt")
    assert net.hparams == {"lr": 0.25, "num_classes": 5}
    assert all(torch.equal(value, expected.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_run_of_the_peer_goes_on_after_its_last_epoch_with_the_backbone_thawed(tmp_path):
    before = peer_checkpoint(tmp_path / "peer.ckpt").state_dict()
    net, trainer = Net(0.25, 5), new_trainer(max_epochs=3, callbacks=BackboneFinetuning(1, train_bn=False))
    trainer.fit(net, loader(), ckpt_path=tmp_path / "peer.ckpt")
    assert (trainer.current_epoch, trainer.global_step) == (3, 6)
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert not torch.equal(net.backbone[0].weight, before["backbone.0.weight"])
    groups = trainer.optimizers[0].param_groups
    assert [len(group["params"]) for group in groups] == [2, 4]
    # In the third epoch the callback doubles the backbone's last rate of .025, up to the head's of .0025; then StepLR.
    assert [group["lr"] for group in groups] == pytest.approx([0.00025, 0.00025])


def test_a_checkpoint_of_weights_alone_says_what_begins_anew(tmp_path):
    trainer = new_trainer()
    trainer.fit(Net(), loader())
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    assert "optimizer_states" not in torch.load(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.warns(
        UserWarning, match=r"weights\.ckpt holds no (optimizer_states|lr_schedulers).*begin anew"
    ):
        new_trainer(max_epochs=2).fit(Net(), loader(), ckpt_path=tmp_path / "weights.ckpt")


def test_saving_before_any_run_says_so(tmp_path):
    with pytest.raises(MisconfigurationError, match="nothing to save"):
        new_trainer().save_checkpoint(tmp_path / "a.ckpt")
