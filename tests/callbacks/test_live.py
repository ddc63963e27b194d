"""The live view, on an emulated terminal (pyte), and as lines where there is none."""

import re

import pytest
import torch
from rich.console import Console
from torch.utils.data import DataLoader

from headstart import Callback, LightningModule, Phase, Plan, Trainer
from headstart.callbacks import BackboneFinetuning, LiveView, ModelCheckpoint, live
from headstart.callbacks.live import View, lines_of
from headstart.callbacks.screen import Screen, can_be_drawn_on

pyte = pytest.importorskip("pyte")


class Terminal:
    """What a terminal shows of what is written to it."""

    def __init__(self, columns=80, rows=24):
        self.screen = pyte.HistoryScreen(columns, rows, history=1000, ratio=0.5)
        self.stream = pyte.Stream(self.screen)
        self.raw = ""
        self.console = Console(file=self, force_terminal=True, width=columns, height=rows, color_system=None)

    def write(self, text):
        self.raw += text
        self.stream.feed(text.replace("\n", "\r\n"))  # as the driver of a terminal does

    def flush(self):
        pass

    def isatty(self):
        return True

    encoding = "utf-8"

    def resize(self, columns, rows):
        self.screen.resize(rows, columns)
        self.console.size = (columns, rows)

    def lines(self):
        """What stands there, what was scrolled out of sight included."""
        above = ["".join(row[x].data for x in range(self.screen.columns)) for row in self.screen.history.top]
        return [line.rstrip() for line in [*above, *self.screen.display] if line.strip()]


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = torch.nn.Linear(3, 4)
        self.head = torch.nn.Linear(4, 1)
        self.seen = []

    def training_step(self, batch, batch_idx):
        if batch_idx in self.says:
            print(f"said in batch {batch_idx}")
        return self.head(self.backbone(batch)).square().mean()

    says = ()

    def validation_step(self, batch, batch_idx):
        self.log("val_f1", 0.5 + 0.1 * self.trainer.current_epoch)

    def configure_optimizers(self):
        return torch.optim.SGD([each for each in self.parameters() if each.requires_grad], lr=0.01)


def loader(num_samples=12):
    return DataLoader(torch.randn(num_samples, 3, generator=torch.Generator().manual_seed(0)), batch_size=4)


def fit(tmp_path, view, *callbacks, module=None, **settings):
    trainer = Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_model_summary": False, **settings},
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        callbacks=[*callbacks, view],
        default_root_dir=tmp_path,
    )
    trainer.fit(module or Net(), loader(), loader())
    return trainer


@pytest.fixture
def always(monkeypatch):
    """Every batch is drawn."""
    monkeypatch.setattr(live, "_INTERVAL", 0.0)
    monkeypatch.setattr(live, "_PAUSE", 0)


def test_the_last_view_of_a_fit_stays_with_all_that_there_is_to_say(tmp_path, always):
    terminal = Terminal()
    saver = ModelCheckpoint(tmp_path, monitor="val_f1", mode="max")
    fit(tmp_path, LiveView(console=terminal.console), saver)
    first, second, third, fourth = terminal.lines()[-4:]
    assert first.startswith("training   epoch 1/1   batch 3/3   ━━━")
    assert re.fullmatch(r"loss 0\.\d+   val_f1 0\.6 \(best 0\.6\)", second)
    assert re.fullmatch(r"lr 0\.01   [\d,]+ samples/s", third)
    assert re.fullmatch(r"0:0\d so far   about 0:00 left", fourth)


def test_the_phases_of_a_plan_have_names_and_frozen_work_is_counted(tmp_path, always):
    terminal = Terminal()
    plan = Plan(phases=[Phase(name="head", trains="head", lr=0.1, epochs=2),
                        Phase(name="all", trains="all", lr=0.1, layer_decay=0.5, epochs=1)])  # fmt: skip
    view = LiveView(console=terminal.console, monitor="val_f1", mode="max")
    from headstart.deferred import Reuse

    fit(
        tmp_path,
        view,
        max_epochs=None,
        plan=plan,
        reuse_frozen=Reuse(setting="exact", min_gain=0, say=lambda line: None),
    )
    assert "head (phase 1 of 2)   epoch 0/2   batch 1/3" in terminal.raw
    assert "left in this phase" in terminal.raw
    text = "\n".join(terminal.lines())
    assert "all (phase 2 of 2)   epoch 2/2   batch 3/3" in text
    assert "lr 0.1 to 0.05" in text
    assert re.search(r"[1-9]\d % of frozen work looked up", text)


@pytest.mark.parametrize(("names", "what"), [(["head"], "left"), (["head", "all"], "left in this phase")])
def test_the_time_of_a_phase_says_what_is_left(tmp_path, always, names, what):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = True

    terminal = Terminal()
    plan = Plan(phases=[Phase(name=name, trains=name, time="1h") for name in names])
    fit(tmp_path, LiveView(console=terminal.console), Stop(), max_epochs=None, plan=plan)
    assert re.search(rf"about (59:\d\d|1:00:00) {what}\n", "\n".join(terminal.lines()) + "\n")


def test_the_thaw_divides_a_run_in_two_phases(tmp_path, always):
    terminal = Terminal()
    thaw = BackboneFinetuning(unfreeze_backbone_at_epoch=2, backbone_initial_lr=0.001)
    fit(tmp_path, LiveView(console=terminal.console), thaw, max_epochs=3)
    assert "frozen phase   epoch 0/2" in terminal.raw
    assert "left to the thaw" in terminal.raw
    assert "unfrozen phase   epoch 2/2" in "\n".join(terminal.lines())


def test_what_is_printed_in_between_stands_above_whole_and_once(tmp_path, always, monkeypatch):
    terminal = Terminal(40, 20)
    monkeypatch.setattr("sys.stdout", terminal)
    module = Net()
    module.says = (0, 2)
    fit(tmp_path, LiveView(console=terminal.console), module=module)
    lines = terminal.lines()
    assert [line for line in lines if "said" in line] == ["said in batch 0", "said in batch 2"] * 2
    assert sum(line.startswith("training") for line in lines) == 1  # no view is left over
    import sys

    assert sys.stdout is terminal


def test_a_view_fits_any_width_and_a_terminal_may_be_resized():
    view = View(
        "fine-tuning", "epoch 10/33", done=31, total=49, times=["0:42 so far", "about 0:31 left"],
        values=[("loss", "0.4312"), ("val_f1", "0.873 (best 0.881)")], facts=["lr 0.0002 to 3e-06", "412 samples/s"],
    )  # fmt: skip
    for width in (119, 79, 39, 24):
        lines = lines_of(view, width)
        assert max(line.cell_len for line in lines) <= max(width, 25)
        text = " ".join(line.plain for line in lines)
        assert all(word in text for word in ("31/49", "0.4312", "best 0.881", "3e-06", "412", "0:42", "0:31"))
    assert "#" in lines_of(view, 79, is_ascii=True)[0].plain

    terminal = Terminal(80, 24)
    screen = Screen(terminal.console)
    for columns, rows in ((80, 24), (120, 40), (40, 20), (40, 3), (80, 24)):
        terminal.resize(columns, rows)
        screen.show(lines_of(view, columns - 1))
        shown = [line.rstrip() for line in terminal.screen.display if line.strip()]
        assert sum(line.startswith("fine-tuning") for line in shown) == 1
        assert len(shown) <= rows
    screen.close(keep=False)
    assert not [line for line in terminal.lines() if "fine-tuning" in line]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_error_leaves_the_terminal_in_order(tmp_path, always, monkeypatch, error):
    class Broken(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                raise error("broken")
            return super().training_step(batch, batch_idx)

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    with pytest.raises(error):
        fit(tmp_path, LiveView(console=terminal.console), module=Broken())
    import sys

    assert sys.stdout is terminal
    assert terminal.screen.cursor.hidden is False
    assert "\x1b[?" not in terminal.raw  # no mode of the terminal was changed, so a kill leaves none
    print("$", end="")
    assert terminal.lines()[-1] == "$"  # a line of its own, below the view


def test_it_draws_ten_times_a_second_at_most_and_reads_no_loss_in_between(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: now[0])
    terminal = Terminal()
    view = LiveView(console=terminal.console)
    drawn = []

    class Ticks(LiveView):
        pass

    monkeypatch.setattr(Screen, "show", lambda self, lines: drawn.append(now[0]))
    read = []

    class Loss:
        def __float__(self):
            read.append(now[0])
            return 1.0

    class Slow(Net):
        def training_step(self, batch, batch_idx):
            now[0] += 0.03
            return super().training_step(batch, batch_idx)

    trainer = Trainer(
        max_epochs=10, accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=[view],
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Slow(), loader())
    inside = sorted(set(drawn))
    assert len(drawn) <= 30 * 0.03 / 0.1 + 2  # 0.9 s, and the first and the last
    assert all(later - earlier > 0.09 for earlier, later in zip(inside, inside[1:-1]))
    view._next_time = 1e9
    view.on_train_batch_end(trainer, trainer.lightning_module, {"loss": Loss()}, None, 0)
    assert read == []


def test_without_a_terminal_an_epoch_is_a_line_without_control_codes(tmp_path, capsys):
    fit(tmp_path, LiveView(monitor="val_f1", mode="max"))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    for epoch, line in enumerate(lines):
        assert re.fullmatch(
            rf"Epoch {epoch}/1, training: batch 3/3, loss 0\.\d+, val_f1 0\.{5 + epoch} \(best 0\.{5 + epoch}\), "
            r"lr 0\.01, [\d,]+ samples/s, 0:0\d so far, about 0:00 left",
            line,
        )


def test_a_long_epoch_says_once_a_minute_that_it_goes_on(tmp_path, monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(live, "monotonic", lambda: now[0])

    class Slow(Net):
        def training_step(self, batch, batch_idx):
            now[0] += 50
            return super().training_step(batch, batch_idx)

    fit(tmp_path, LiveView(), module=Slow(), max_epochs=1)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(",")[1] for line in lines] == [" training: batch 2/3", " training: batch 3/3"]


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_terminal_without_control_codes_gets_lines(tmp_path, monkeypatch, setting):
    terminal = Terminal(200, 24)
    assert can_be_drawn_on(terminal.console)
    for name, value in setting.items():
        monkeypatch.setenv(name, value)
    fit(tmp_path, LiveView(console=terminal.console), max_epochs=1)
    assert "\x1b" not in terminal.raw
    assert terminal.lines()[0].startswith("Epoch 0/0")


def test_only_the_first_process_draws(tmp_path, monkeypatch):
    from headstart.strategy import SingleDevice

    monkeypatch.setattr(SingleDevice, "is_global_zero", False, raising=False)
    terminal = Terminal()
    fit(tmp_path, LiveView(console=terminal.console))
    assert terminal.raw == ""
