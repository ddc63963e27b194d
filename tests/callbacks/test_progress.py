"""The progress bar: drawn on a console that keeps what is written to it, or as lines where there is no terminal."""

import io
import re

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from headstart import LightningModule, Trainer
from headstart.callbacks import ProgressBar, RichProgressBar, TQDMProgressBar, progress


class Tiny(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        self.log("train_loss", 0.5, prog_bar=True)
        self.log("not_shown", 7.0)
        return self.layer(batch).sum()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", 0.25, prog_bar=True)

    def test_step(self, batch, batch_idx):
        self.log("test_loss", 0.125, prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Stream(IterableDataset):
    def __iter__(self):
        yield from torch.zeros(6, 1)


def loader(num_batches):
    return DataLoader(torch.zeros(num_batches, 1), batch_size=1)


def make_trainer(tmp_path, bar, **settings):
    return Trainer(
        **{"max_epochs": 2, **settings},
        callbacks=[bar],
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )


@pytest.fixture
def screen():
    return io.StringIO()


def on_screen(screen, **settings):
    console = {
        "file": screen,
        "force_terminal": True,
        "force_interactive": True,
        "width": 140,
        "color_system": None,
    }
    return RichProgressBar(**settings, console_kwargs=console)


def written(screen):
    """The text without the sequences that move the cursor."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())


def test_without_a_terminal_there_is_one_line_an_epoch_with_the_metrics(tmp_path, capsys):
    make_trainer(tmp_path, RichProgressBar()).fit(Tiny(), loader(4), loader(2))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        assert re.match(rf"Epoch {epoch}/1: 4 batches in \d+\.\d s  ", line)
        assert set(line.split("  ")[1].split()) == {"train_loss=0.5", "val_loss=0.25"}


def test_without_a_terminal_a_test_is_one_line(tmp_path, capsys):
    make_trainer(tmp_path, RichProgressBar()).test(Tiny(), loader(3), verbose=False)
    assert re.fullmatch(r"Test: 3 batches in \d+\.\d s\n", capsys.readouterr().out)


def test_in_a_terminal_the_last_bar_stays_complete_and_with_its_metrics(tmp_path, screen):
    make_trainer(tmp_path, on_screen(screen)).fit(Tiny(), loader(4), loader(2))
    last = written(screen).splitlines()[-1]
    assert last.startswith("Epoch 1/1 ")
    assert " 4/4 " in last
    assert "train_loss=0.5" in last
    assert "val_loss=0.25" in last
    assert "not_shown" not in last


def test_bars_of_all_epochs_can_be_left(tmp_path, screen):
    make_trainer(tmp_path, on_screen(screen, leave=True)).fit(Tiny(), loader(4))
    first, second = written(screen).splitlines()[-2:]
    assert first.startswith("Epoch 0/1 ")
    assert " 4/4 " in first
    assert second.startswith("Epoch 1/1 ")


def test_the_bars_of_test_and_prediction_end_complete(tmp_path, screen):
    trainer = make_trainer(tmp_path, on_screen(screen))
    trainer.test(Tiny(), [loader(3), loader(2)], verbose=False)
    assert re.search(r"Test .* 5/5 ", written(screen))
    module = Tiny()
    module.predict_step = lambda batch, batch_idx: batch
    trainer.predict(module, loader(3))
    assert re.search(r"Prediction .* 3/3 ", written(screen))


def test_a_stream_has_a_bar_without_an_end(tmp_path, screen):
    make_trainer(tmp_path, on_screen(screen)).fit(Tiny(), DataLoader(Stream(), batch_size=1))
    assert " 6/? " in written(screen).splitlines()[-1]


def test_a_batch_is_drawn_only_when_it_is_time_to(tmp_path, screen, monkeypatch):
    monkeypatch.setattr(progress, "monotonic", lambda: 100.0)  # time stands still
    make_trainer(tmp_path, on_screen(screen), max_epochs=1).fit(Tiny(), loader(20))
    many = screen.getvalue().count("Epoch 0/0")
    make_trainer(tmp_path, on_screen(screen), max_epochs=1).fit(Tiny(), loader(2))
    assert screen.getvalue().count("Epoch 0/0") == 2 * many


def test_a_refresh_rate_leaves_batches_between_two_drawings(tmp_path, screen, monkeypatch):
    clock = iter(range(10**6))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))  # it is always time to
    make_trainer(tmp_path, on_screen(screen, refresh_rate=5), max_epochs=1).fit(Tiny(), loader(20))
    drawn = {int(count) for count in re.findall(r" (\d+)/20", written(screen))}
    assert drawn == {0, 1, 6, 11, 16, 20}


@pytest.mark.parametrize("bar", [RichProgressBar(refresh_rate=0), TQDMProgressBar(refresh_rate=0)])
def test_a_refresh_rate_of_zero_shows_nothing(tmp_path, capsys, bar):
    make_trainer(tmp_path, bar).fit(Tiny(), loader(4), loader(2))
    assert capsys.readouterr().out == ""


def test_a_disabled_bar_shows_nothing_until_it_is_enabled(tmp_path, capsys):
    bar = RichProgressBar()
    bar.disable()
    make_trainer(tmp_path, bar).fit(Tiny(), loader(4))
    assert capsys.readouterr().out == ""
    bar.enable()
    make_trainer(tmp_path, bar).fit(Tiny(), loader(4))
    assert "Epoch 1/1" in capsys.readouterr().out


def test_what_get_metrics_gives_is_shown(tmp_path, capsys):
    class Louder(TQDMProgressBar):
        def get_metrics(self, trainer, pl_module):
            items = super().get_metrics(trainer, pl_module)
            items.pop("v_num", None)
            return {**items, "volume": 11}

    make_trainer(tmp_path, Louder(), max_epochs=1).fit(Tiny(), loader(1))
    assert "train_loss=0.5 volume=11" in capsys.readouterr().out


def test_an_error_leaves_the_terminal_with_its_cursor(tmp_path, screen):
    class Broken(Tiny):
        def training_step(self, batch, batch_idx):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        make_trainer(tmp_path, on_screen(screen)).fit(Broken(), loader(4))
    hidden, shown = screen.getvalue().rfind("\x1b[?25l"), screen.getvalue().rfind("\x1b[?25h")
    assert shown > hidden >= 0


def test_a_run_resumed_within_an_epoch_goes_on_with_its_bar(tmp_path, screen):
    class SaveInTheMiddle(RichProgressBar):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            if batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    make_trainer(tmp_path, SaveInTheMiddle(), max_epochs=1).fit(Tiny(), loader(5))
    resumed = make_trainer(tmp_path, on_screen(screen), max_epochs=1)
    resumed.fit(Tiny(), loader(5), ckpt_path=tmp_path / "middle.ckpt")
    assert re.search(r"Epoch 0/0 .* 3/5 ", written(screen))
    assert re.search(r"Epoch 0/0 .* 5/5 ", written(screen).splitlines()[-1])


def test_printing_goes_through_the_bar(tmp_path, capsys):
    class Marked(RichProgressBar):
        def print(self, *args, **kwargs):
            super().print("bar:", *args, **kwargs)

    trainer = make_trainer(tmp_path, Marked())
    trainer.print("hello")
    assert capsys.readouterr().out == "bar: hello\n"


def test_every_bar_is_a_progress_bar_and_takes_the_usual_arguments():
    assert isinstance(TQDMProgressBar(refresh_rate=10, process_position=0, leave=False), ProgressBar)
