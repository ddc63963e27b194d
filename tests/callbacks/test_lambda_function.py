import pytest
import torch
from torch.utils.data import DataLoader

from headstart import Callback, LightningModule, Trainer
from headstart.callbacks import LambdaCallback
from headstart.errors import UnknownArgumentError


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_each_function_is_called_as_the_hook_of_its_name(tmp_path):
    seen = []
    callback = LambdaCallback(
        setup=lambda trainer, pl_module, stage: seen.append(("setup", stage)),
        on_train_epoch_start=lambda trainer, pl_module: seen.append(("epoch", trainer.current_epoch)),
        on_train_batch_end=lambda trainer, pl_module, outputs, batch, batch_idx: seen.append(
            ("batch", batch_idx)
        ),
        on_train_epoch_end=None,
    )
    trainer = Trainer(
        max_epochs=2,
        callbacks=callback,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Tiny(), DataLoader(torch.ones(2, 1), batch_size=1))
    batches = [("batch", 0), ("batch", 1)]
    assert seen == [("setup", "fit"), ("epoch", 0), *batches, ("epoch", 1), *batches]


def test_one_run_takes_several(tmp_path):
    seen = []
    callbacks = [
        LambdaCallback(on_train_start=lambda trainer, pl_module: seen.append("first")),
        LambdaCallback(on_train_start=lambda trainer, pl_module: seen.append("second")),
    ]
    trainer = Trainer(
        max_epochs=1, callbacks=callbacks, accelerator="cpu", logger=False, default_root_dir=tmp_path
    )
    trainer.fit(Tiny(), DataLoader(torch.ones(2, 1), batch_size=1))  # saves a checkpoint, too
    assert seen == ["first", "second"]


def test_every_hook_of_a_callback_can_be_given():
    hooks = [name for name in vars(Callback) if name.startswith("on_")] + ["setup", "teardown"]
    callback = LambdaCallback(**{name: lambda *arguments, name=name: name for name in hooks})
    assert [getattr(callback, name)() for name in hooks] == hooks


def test_a_name_that_is_no_hook_is_answered_with_the_nearest_one():
    with pytest.raises(UnknownArgumentError, match="Did you mean 'on_train_epoch_end'"):
        LambdaCallback(on_training_epoch_end=print)


@pytest.mark.parametrize("name", ["state_dict", "state_key", "__init__"])
def test_what_is_no_hook_of_a_run_cannot_be_replaced(name):
    with pytest.raises(UnknownArgumentError, match="there is no such hook"):
        LambdaCallback(**{name: print})
