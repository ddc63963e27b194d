"""`headstart inspect`: the audit of a run, a checkpoint and a backbone."""

from __future__ import annotations

import json
import re
import shutil
import sys

import pytest
import torch

from headstart.cli.main import main
from headstart.plan import Phase, Plan

pytestmark = pytest.mark.slow


@pytest.fixture
def inspect(capsys):
    """Run it in this process, and give the exit code and the rows of standard output, split at spaces."""

    def call(*arguments):
        code = main(["inspect", *map(str, arguments)])
        out, err = capsys.readouterr()
        return code, {line.split()[0]: line.split() for line in out.splitlines() if line.strip()}, out + err

    return call


def test_a_run_shows_groups_and_rates_of_its_last_checkpoint(cell_run, inspect):
    code, rows, text = inspect(cell_run)
    assert code == 0
    assert "image-classification" in text
    assert rows["head"][:7] == ["head", "Linear", "2,562", "2,562", "train", "0", "0.001"]
    assert rows["backbone"][:7] == ["backbone", "Backbone", "3,371,008", "3,371,008", "train", "1", "0.0001"]
    assert "backbone.model.conv_stem" in rows


def test_an_artefact_alone_is_shown_as_it_predicts(cell_run, tmp_path, inspect):
    for name in ("headstart.json", "model.safetensors"):
        shutil.copy(cell_run / name, tmp_path / name)
    code, rows, text = inspect(tmp_path, "--depth", "1")
    assert code == 0
    assert "nothing trains" in text
    assert rows["head"][3:5] == ["0", "eval"]
    # Frozen, a step is a forward: 2 FLOPs a weight of the head.
    assert rows["head"][-1] == f"{2 * 1280 * 2:,}"


def test_a_checkpoint_of_another_program_is_shown_by_its_names(tmp_path, inspect):
    state = {
        "encoder.0.weight": torch.zeros(3, 2),
        "encoder.0.bias": torch.zeros(3),
        "head.weight": torch.zeros(1, 3),
    }
    torch.save({"state_dict": state, "epoch": 4, "global_step": 70}, tmp_path / "other.ckpt")
    code, rows, text = inspect(tmp_path / "other.ckpt")
    assert code == 0
    assert "epoch 4, global_step 70" in text
    assert "no seal (of another program); the checksums of its entries fit" in " ".join(text.split())
    assert rows["encoder.0"] == ["encoder.0", "2", "9"]
    assert rows["head"] == ["head", "1", "3"]


def test_a_backbone_is_shown_without_its_weights(inspect):
    code, rows, text = inspect("torchvision:resnet18")
    assert code == 0
    assert "images, 512 features" in text
    # ResNet-18 without its head, https://arxiv.org/abs/1512.03385, table 1: 1.8e9 multiply-adds at 224 pixels.
    frozen = int(text.split("Frozen, a step costs ")[1].split()[0].replace(",", ""))
    assert frozen == pytest.approx(2 * 1.8e9, rel=0.02)
    assert rows["total"][1] == "11,176,512"


def test_a_name_that_nothing_answers_to_is_an_error(inspect):
    code, _, text = inspect("resnet18")
    assert code == 1
    assert "Did you mean 'torchvision:resnet18'?" in text
    code, _, text = inspect("lp_fft")
    assert code == 1
    assert "neither a file nor a backbone nor a plan 'lp_fft'. Did you mean 'lp_ft'?" in text


def test_a_file_without_weights_is_an_error(tmp_path, inspect):
    torch.save({"epoch": 4}, tmp_path / "other.ckpt")
    code, _, text = inspect(tmp_path / "other.ckpt")
    assert code == 1
    assert "It holds: epoch" in text


def test_a_checkpoint_says_what_it_holds(cell_run, inspect):
    path = cell_run / "checkpoints" / "last.ckpt"
    _, _, text = inspect(path, "--depth", "1")
    lines = " ".join(text.split())
    assert "progress epoch 4, global_step 20; 4 batches of it are done" in lines
    assert "sealed and checked: every byte is as it was written" in lines
    assert "trains 3,373,570 values in 149 tensors" in lines
    assert "optimizer 0, group 0 2,562 values in 2 tensors, lr 0.001, weight decay 0.01" in lines
    assert "optimizer_states 27 MB" in lines  # two moments for each value of four bytes
    assert re.search(r"callback ModelCheckpoint best_model_score (0\.\d|1\b)", lines)
    assert "callback PhaseRecord keeps phases, epochs" in lines
    code = main(["inspect", str(path), "--json"])
    assert code == 0


def test_json_is_one_object_of_the_same(cell_run, capsys):
    assert main(["inspect", str(cell_run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], found["task"], found["epoch"], found["num_trainable"]) == (
        "run",
        "image-classification",
        4,
        3_373_570,
    )
    assert [group["lr"] for group in found["optimizers"][0]] == pytest.approx([1e-3, 1e-4])
    assert found["progress"]["stage"] == "epoch_end"
    head = next(row for row in found["modules"] if row["name"] == "head")
    assert head["flops"] == 2 * 3 * 1280 * 2  # forward, and two products backward
    assert found["problems"] == []
    saver = next(state for key, state in found["callbacks"].items() if key.startswith("ModelCheckpoint"))
    assert saver["best_model_path"].endswith("best.ckpt")


def test_a_damaged_checkpoint_is_named_as_such(cell_run, tmp_path, inspect):
    data = bytearray((cell_run / "checkpoints" / "last.ckpt").read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "last.ckpt").write_bytes(data)
    code, _, text = inspect(tmp_path / "last.ckpt")
    assert code == 1
    assert "last.ckpt is damaged" in text


WRITE_PARTS = """
import sys, torch
from torch import distributed
from torch.distributed.tensor import DTensor, Shard, distribute_tensor, init_device_mesh
from headstart.strategy import SingleDevice
from headstart.strategy.parts import write_parts
folder = sys.argv[1]
distributed.init_process_group("gloo", init_method=f"file://{folder}.store", rank=0, world_size=1)
mesh = init_device_mesh("cpu", (1,))
weight = distribute_tensor(torch.ones(4, 3), mesh, [Shard(0)])
write_parts({"state_dict": {"layer.weight": weight, "layer.bias": torch.zeros(4)}, "epoch": 2, "global_step": 9},
            folder, SingleDevice(torch.device("cpu")))
distributed.destroy_process_group()
"""


def test_a_checkpoint_in_parts_is_checked_and_shown(tmp_path, inspect, headstart):
    written = headstart.python("-c", WRITE_PARTS, tmp_path / "parts.ckpt")
    assert written.returncode == 0, written.stderr
    code, rows, text = inspect(tmp_path / "parts.ckpt")
    assert code == 0
    assert "epoch 2, global_step 9" in text
    assert "the digests of 2 files fit" in " ".join(text.split())
    assert rows["layer"] == ["layer", "2", "16"]
    part = next((tmp_path / "parts.ckpt" / "parts").glob("*.distcp"))
    data = bytearray(part.read_bytes())
    data[-1] ^= 1
    part.write_bytes(data)
    code, _, text = inspect(tmp_path / "parts.ckpt")
    assert code == 1
    assert "not as it was written" in text


def test_a_file_of_safetensors_is_shown_by_its_header(cell_run, tmp_path, inspect):
    code, rows, text = inspect(cell_run / "model.safetensors")
    assert code == 0
    assert rows["head.weight"][:3] == ["head.weight", "1", "2,560"]
    assert "2 x 1280, F32" in text
    assert "296 with 3,415,635 values" in text
    (tmp_path / "cut.safetensors").write_bytes((cell_run / "model.safetensors").read_bytes()[:1000])
    code, _, text = inspect(tmp_path / "cut.safetensors")
    assert code == 1
    assert "cut.safetensors is damaged, or no file of safetensors (1,000 bytes)" in text


PROGRAM = """
import torch
from headstart import LightningModule
from beside import WIDTH

class Net(LightningModule):
    def __init__(self):
        super().__init__()
        print("being built")
        self.backbone = torch.nn.Linear(WIDTH, 4)
        self.head = torch.nn.Linear(4, 2)
        self.backbone.requires_grad_(False)
        self.example_input_array = torch.zeros(1, WIDTH)

    def forward(self, inputs):
        return self.head(self.backbone(inputs))

    def configure_optimizers(self):
        return torch.optim.SGD(self.head.parameters(), lr=0.25)

class Needy(Net):
    def __init__(self, width):
        super().__init__()

class Late(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1 / self.trainer.max_epochs)

def make():
    return torch.nn.Sequential(torch.nn.Linear(8, 2))

def other():
    return 7

def fails():
    raise OSError("no such weights")

number = 3
"""


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "program.py").write_text(PROGRAM)
    (tmp_path / "beside.py").write_text("WIDTH = 8\n")
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "program.py"
    for name in ("program", "beside"):
        sys.modules.pop(name, None)


def test_a_module_of_a_program_is_built_and_audited(program, inspect, capsys):
    code, rows, text = inspect(f"{program}:Net")
    assert code == 0
    assert rows["backbone"][2:5] == ["36", "0", "eval"]
    assert rows["head"][2:7] == ["10", "10", "train", "0", "0.25"]
    assert rows["backbone"][-1] == f"{2 * 8 * 4}"  # frozen: forward alone
    code, rows, _ = inspect("program:make", "--input", "1,8")
    assert code == 0
    assert rows["total"][1:3] == ["18", "18"]
    assert main(["inspect", "program:Net", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["class"] == "program.Net"
    code, _, text = inspect("program:Late")
    assert code == 0
    assert "Groups and rates are not shown: configure_optimizers needs a run" in text


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("program:Nett", "program has no 'Nett'. Did you mean 'Net'? It has:"),
        ("program:Needy", "program:Needy needs arguments: width"),
        ("program:other", "program:other gave a int; expected a torch.nn.Module"),
        ("program:number", "program:number is a int; expected a module, its class, or a function"),
        ("program:fails", "program:fails fails: OSError: no such weights"),
        ("program.py", "program.py is a Python file: name the class or function in it, program.py:NAME"),
        ("missing.py:Net", "There is no file 'missing.py'"),
        ("no_such_package:Net", "There is no Python module 'no_such_package'"),
    ],
)
def test_what_is_no_module_is_an_error(program, inspect, what, message):
    code, _, text = inspect(what)
    assert code == 1
    assert message in text


def test_an_input_that_does_not_fit_is_an_error(program, inspect):
    assert "cannot compute an input of the shape (1, 3)" in inspect("program:make", "--input", "1,3")[2]
    assert "--input is '1,a'; expected sizes with commas" in inspect("program:make", "--input", "1,a")[2]
    assert "--input is for a module, and lp_ft is a plan" in inspect("lp_ft", "--input", "1,3")[2]


def test_a_plan_is_shown_with_parameters_and_flops_of_each_phase(tmp_path, inspect, capsys):
    code, rows, text = inspect("lp_ft", "--backbone", "torchvision:resnet18")
    assert code == 0
    assert rows["head"][2] == "1,026"  # 512 features and a bias, two classes
    assert rows["all"][2] == f"{11_176_512 + 1_026:,}"
    # Forward is 3.63 GFLOP, and backward through all but the first layer's input twice that.
    assert float(rows["head"][5]) == pytest.approx(3.63, rel=0.02)
    assert float(rows["all"][5]) == pytest.approx(3 * 3.63, rel=0.04)
    plan = Plan(
        phases=[
            Phase(name="a", trains="head", epochs=1),
            Phase(name="b", trains="last block", norms="frozen", epochs=1),
        ]
    )
    plan.to_yaml(tmp_path / "plan.yaml")
    assert main(["inspect", str(tmp_path / "plan.yaml"), "--backbone", "minilm", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["kind"], [each["name"] for each in found["phases"]]) == ("plan", ["a", "b"])
    assert found["phases"][0]["num_trainable"] == 384 * 2 + 2
    assert found["phases"][1]["flops"] > found["phases"][0]["flops"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "photo.ckpt",
            b"\x89PNG\r\n\x1a\n" + bytes(9),
            "photo.ckpt is a PNG image; expected a checkpoint, a .safetensors file",
        ),
        ("notes.ckpt", b"a few words", "notes.ckpt is a text; expected a checkpoint"),
        ("noise.ckpt", bytes(range(129, 256)), "noise.ckpt is damaged, or no checkpoint"),
        ("run.yaml", b"data: photos", "A Plan has no 'data'"),
    ],
)
def test_a_file_of_another_kind_is_an_error_that_says_which(tmp_path, inspect, name, content, message):
    (tmp_path / name).write_bytes(content)
    code, _, text = inspect(tmp_path / name)
    assert code == 1
    assert message in text


def test_a_folder_of_another_kind_is_an_error_that_says_what_it_holds(tmp_path, inspect):
    for index in range(7):
        (tmp_path / f"{index}.png").touch()
    code, _, text = inspect(tmp_path)
    assert code == 1
    assert "is a folder that holds 0.png, 1.png, 2.png, 3.png, 4.png and 2 more; expected a RUN" in text
    assert "There is no file 'gone.ckpt'" in inspect("gone.ckpt")[2]
    assert "The plan 'auto' depends on the data" in inspect("auto")[2]


def test_many_groups_stand_in_one_row(tmp_path, inspect):
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(9)))
    groups = [{"params": [*layer.parameters()], "lr": 10.0**-number} for number, layer in enumerate(net)]
    optimizer = torch.optim.SGD(groups)
    torch.save(
        {"state_dict": net.state_dict(), "optimizer_states": [optimizer.state_dict()]}, tmp_path / "a.ckpt"
    )
    _, _, text = inspect(tmp_path / "a.ckpt")
    assert "9 groups with 18 tensors, lr 1e-08 to 1; --json lists them" in " ".join(text.split())
