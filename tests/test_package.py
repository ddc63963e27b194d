"""The wheel and the source distribution; the wheel in clean environments, with each extra alone.

An environment is a new venv. Its site-packages holds headstart from the wheel, and links to the dependencies that `pip install
'headstart[EXTRA]'` would bring, as the metadata of the wheel and of the installed distributions name them, and to nothing else. They
are links because torch alone takes 5 GB and minutes to install; whatever is not linked is not there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow  # builds, and second processes that import torch

ROOT = Path(__file__).parents[1]
README_PROGRAM = re.search(
    r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL
)[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The folder with the wheel, which is built from the source distribution beside it."""
    folder, copy = tmp_path_factory.mktemp("dist"), tmp_path_factory.mktemp("copy") / "headstart"
    # A build leaves files beside the sources.
    shutil.copytree(
        ROOT,
        copy,
        ignore=shutil.ignore_patterns(".*", "build", "dist", "demo-*", "__pycache__", "*.egg-info"),
    )
    # Without isolation: setuptools is here already, so nothing is fetched.
    command = [
        sys.executable,
        "-W",
        "error::DeprecationWarning",
        "-m",
        "build",
        "--no-isolation",
        "--outdir",
        folder,
    ]
    done = subprocess.run([*command, copy], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built):
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel):
    """What the wheel says of itself; reading it raises where a field is against the specification."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Metadata.from_email(archive.read(name), validate=True)


@pytest.fixture(scope="module")
def bare(wheel, metadata, tmp_path_factory):
    """A clean environment with the wheel and no extras; called, it runs a program of it."""
    home = tmp_path_factory.mktemp("environment") / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    (packages,) = home.glob("lib/python*/site-packages")
    for name in closure(metadata.requires_dist, []):
        link_distribution(distribution(name), packages)
    # --python: the environment has no pip of its own.
    install = [
        "-m",
        "pip",
        "--python",
        home / "bin" / "python",
        "install",
        "--no-deps",
        "--no-index",
        "--quiet",
        wheel,
    ]
    subprocess.run([sys.executable, *install], env=outside(), check=True)

    def run(*arguments, program="python", typed=None):
        return subprocess.run(
            [home / "bin" / program, *arguments],
            cwd=home.parent,
            env={**outside(), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            input=typed,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )

    run.packages = packages
    return run


def outside():
    """Environment variables without those by which Python and mypy would find the sources."""
    return {
        name: value
        for name, value in os.environ.items()
        if name not in {"PYTHONPATH", "MYPYPATH", "VIRTUAL_ENV"}
    }


def closure(requirements, extras):
    """The names of all distributions that requirements bring in, with some extras chosen."""
    found = set()
    to_visit = [(each, extras) for each in requirements]
    seen = set()
    while to_visit:
        requirement, chosen = to_visit.pop()
        name = canonicalize_name(requirement.name)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in [*chosen, ""]
        ):
            continue
        if name == "headstart":  # an extra that names others
            to_visit += [(each, [*requirement.extras]) for each in requirements]
            continue
        if (name, *sorted(requirement.extras)) in seen:
            continue
        seen.add((name, *sorted(requirement.extras)))
        found.add(name)
        needs = distribution(name).requires or []
        to_visit += [(Requirement(each), [*requirement.extras]) for each in needs]
    return sorted(found)


def link_distribution(found, packages):
    """Link what a distribution installed into another site-packages; folders that several share are made anew."""
    for path in found.files:
        if path.parts[0] in {"..", "__pycache__"}:
            continue
        for depth in range(1, len(path.parts) + 1):
            part = Path(*path.parts[:depth])
            source, target = Path(found.locate_file(part)), packages / part
            if target.is_symlink() or not source.exists():
                break
            is_shared = (
                source.is_dir()
                and not (source / "__init__.py").exists()
                and not part.name.endswith(".dist-info")
            )
            if depth < len(path.parts) and is_shared:
                target.mkdir(exist_ok=True)
                continue
            target.symlink_to(source)
            break


# ---- what is in them


def test_the_wheel_holds_the_whole_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    source = ROOT / "src"
    files = [
        path
        for path in (source / "headstart").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    ours = {str(path.relative_to(source)) for path in files}
    assert {name for name in names if ".dist-info/" not in name} == ours
    assert "headstart/py.typed" in ours
    described = {name.partition(".dist-info/")[2] for name in names if ".dist-info/" in name}
    assert described == {
        "METADATA",
        "RECORD",
        "WHEEL",
        "entry_points.txt",
        "licenses/LICENSE",
        "top_level.txt",
    }


def test_the_source_distribution_can_be_built_tested_and_read(built):
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in (
        "pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "CONTRIBUTING.md", "Makefile", "mkdocs.yml",
        "src/headstart/py.typed", "docs/index.md", "docs/site/links.py", "benchmarks/README.md", "examples/demo.py",
        "tests/conftest.py", "tests/cli/programs/manual_optimization.txt",
    ):  # fmt: skip
        assert name in names
    assert not [
        name for name in names if "__pycache__" in name or name.startswith((".venv", "build/", ".ci"))
    ]


def test_the_metadata_says_what_the_package_is(metadata):
    assert (metadata.name, metadata.license_expression) == ("headstart", "Apache-2.0")
    assert metadata.description_content_type == "text/markdown"
    assert metadata.description.startswith("# headstart")
    assert str(metadata.requires_python) == ">=3.11"
    assert {each.name for each in metadata.requires_dist if not each.marker} == {
        "torch", "numpy", "rich",
    }  # fmt: skip
    versions = {name.rpartition(" ")[2] for name in metadata.classifiers if "Python :: 3." in name}
    assert versions == {"3.11", "3.12", "3.13"}
    assert "Typing :: Typed" in metadata.classifiers
    import headstart

    assert str(metadata.version) == headstart.__version__


def test_the_package_compiles_without_a_warning(tmp_path):
    target = tmp_path / "compiled"
    command = [
        sys.executable,
        "-W",
        "error",
        "-X",
        f"pycache_prefix={target}",
        "-m",
        "compileall",
        "-q",
        "-f",
    ]
    done = subprocess.run([*command, ROOT / "src"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- the wheel alone


WHERE = "import headstart; print(headstart.__file__)\n"


def test_the_first_program_of_the_readme_runs_from_the_wheel(bare):
    program = README_PROGRAM + WHERE + (
        "import importlib.util as u; print([n for n in ('torchvision', 'timm', 'transformers', 'yaml') if u.find_spec(n)])\n"
        "from headstart.loggers import TensorBoardLogger\n"
        "try:\n    TensorBoardLogger('logs').experiment\n"
        "except ImportError as error:\n    print(error)\n"
        "from headstart.backbones import load_backbone\n"
        "for name in ('efficientnet_lite0', 'minilm', 'timm:resnet18', 'hf:bert-base-uncased'):\n"
        "    try:\n        load_backbone(name)\n"
        "    except ImportError as error:\n        print(error)\n"
    )  # fmt: skip
    done = bare("-c", program)
    assert done.returncode == 0, done.stdout
    assert str(bare.packages) in done.stdout  # not the folder of the sources
    assert "\n[]\n" in done.stdout
    assert "head " in done.stdout  # the audit
    for extra in ("tensorboard", "images", "text"):
        assert f"pip install 'headstart[{extra}]'" in done.stdout


def test_the_command_is_there_and_names_the_extra_that_it_needs(bare):
    done = bare("--help", program="headstart")
    assert done.returncode == 0, done.stdout
    assert re.search(r"^ +fit ", done.stdout, re.MULTILINE)
    done = bare("fit", "photos", "--out", "run", program="headstart")
    assert done.returncode == 1
    assert "pip install 'headstart[cli]'" in done.stdout


def test_types_are_visible_to_a_strict_checker(bare, tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "from headstart import LightningModule, Plan, Phase, Trainer\n"
        "from headstart.callbacks import BackboneFinetuning\n"
        "from headstart.freezing import is_frozen\n"
        "class Net(LightningModule):\n"
        "    def training_step(self, batch: object, batch_idx: int) -> None: ...\n"
        "plan = Plan(phases=[Phase(name='head', trains='head', epochs=1)])\n"
        "trainer = Trainer(max_epochs=3, plan=plan, callbacks=[BackboneFinetuning(unfreeze_backbone_at_epoch=2)])\n"
        "trainer.fit(Net())\n"
        "frozen: bool = is_frozen(Net())\n"
        "Trainer(max_epochs='3')\n"  # line 10
        "reveal_type(trainer.global_step)\n"
    )
    # torch's own types are skipped: reading them takes a minute, and they are not what is asked for.
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\n[mypy-torch.*,numpy.*]\nfollow_imports = skip\n"
    )
    python = bare.packages.parents[2] / "bin" / "python"
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--config-file",
        "mypy.ini",
        "--python-executable",
        python,
        program.name,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=outside(), capture_output=True, text=True, check=False)
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 1, done.stdout
    assert errors[0].startswith(
        'program.py:10: error: Argument "max_epochs" to "Trainer" has incompatible type "str"'
    )
    assert 'Revealed type is "builtins.int"' in done.stdout.replace('"int"', '"builtins.int"')


# ---- each extra alone

#: In the clean environment: torch is imported once, and each program runs in a child of that process, in its own folder, with
#: the folders of links that its steps add to the path.
DRIVER = """
import importlib, json, os, sys, traceback
import headstart.trainer

for folder, steps in json.load(sys.stdin):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        continue
    os.chdir(folder)
    output = os.open("output.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1), os.dup2(output, 2)
    namespace = {"__name__": "__main__"}
    try:
        for packages, program in steps:
            sys.path.append(packages)
            importlib.invalidate_caches()
            exec(program, namespace)
        print("works", headstart.__file__, flush=True)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(0)
"""

IMAGES = """
from pathlib import Path
from PIL import Image
for name, color in (("cat", "red"), ("dog", "blue")):
    Path("photos", name).mkdir(parents=True)
    for index in range(6):
        Image.new("RGB", (40, 40), color).save(Path("photos", name, f"{index}.png"))
from headstart import Trainer
from headstart.artefact import load_artefact, save_artefact
from headstart.backbones import load_backbone
from headstart.data import ImageFolderData
from headstart.tasks import ImageClassifier
data = ImageFolderData("photos", batch_size=4).prepare()
model = ImageClassifier("timm:resnet18", class_names=data.class_names, image_size=32, pretrained=False)
data.train_transform = data.eval_transform = model.preprocessing.eval_transform()
trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
trainer.fit(model, datamodule=data)
save_artefact("run", model)
assert load_artefact("run").class_names == ["cat", "dog"]
try:
    load_backbone("efficientnet_lite0")
except ImportError as error:
    print(error)
"""
LITE0 = """
import torch
from headstart.backbones import load_backbone
assert load_backbone("efficientnet_lite0").eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1280)
"""
TEXT = """
from pathlib import Path
from transformers import BertConfig, BertModel, BertTokenizerFast
words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "good", "bad"]
Path("vocab.txt").write_text("\\n".join(words))
BertTokenizerFast(vocab_file="vocab.txt").save_pretrained("tiny")
sizes = dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
BertModel(BertConfig(vocab_size=len(words), **sizes)).save_pretrained("tiny")
Path("texts.csv").write_text("text,label\\n" + "".join(f"{w} {i},{w}\\n" for i in range(9) for w in ("good", "bad")))
from headstart import Trainer
from headstart.backbones import load_backbone
from headstart.data import TextTableData
from headstart.tasks import TextClassifier
data = TextTableData("texts.csv", batch_size=4).prepare()
model = TextClassifier("tiny", class_names=data.class_names)
data.tokenize = model.preprocessing
trainer = Trainer(max_steps=1, accelerator="cpu", logger=False, enable_progress_bar=False)
trainer.fit(model, datamodule=data)
try:
    load_backbone("minilm")
except ImportError as error:
    print(error)
"""
MINILM = """
from headstart.backbones import load_backbone
backbone = load_backbone("minilm")
assert backbone(backbone.preprocessing(["good"])).shape == (1, 384)
"""
TABLES = """
import pyarrow
import pyarrow.parquet
table = {"text": [f"{w} {i}" for i in range(9) for w in ("good", "bad")], "label": ["good", "bad"] * 9}
pyarrow.parquet.write_table(pyarrow.table(table), "texts.parquet")
from headstart.data import TextTableData
assert TextTableData("texts.parquet").prepare().class_names == ["bad", "good"]
"""
TENSORBOARD = """
from pathlib import Path
from headstart.loggers import TensorBoardLogger
logger = TensorBoardLogger("logs")
logger.log_metrics({"loss": 0.5}, step=1)
logger.finalize("success")
assert list(Path("logs").rglob("events.out.tfevents.*"))
"""
LORA = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from headstart import LightningModule, Trainer
from headstart.plans import named_plan
class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Sequential(nn.Linear(8, 8), nn.ReLU()), nn.Linear(8, 2)
    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)
loader = DataLoader(TensorDataset(torch.randn(8, 8), torch.randint(2, (8,))), batch_size=4)
plan = named_plan("lora", epochs=1, rank=2)
trainer = Trainer(plan=plan, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(Net(), loader)
assert trainer.global_step == 2
"""
PLOTS = """
from headstart.lr_finder import LRCurve
lrs = [10 ** (-5 + step / 10) for step in range(51)]
LRCurve(lrs=lrs, losses=[abs(1e-2 - lr) for lr in lrs], configured_lr=1e-3).plot().savefig("lr.png")
"""
SWEEP = """
from pathlib import Path
from headstart.sweep.space import space_of
from headstart.sweep.study import Study
space = space_of("images", backbones=["a"], plans=["head"], ranges={})
trial = Study(Path("sweep.db"), space, metric="accuracy", seed=0).begin()
trial.end("complete", value=0.5, seconds=1.0)
"""
# The options are read, and what is missing for this data is named.
CLI = """
from pathlib import Path
from headstart.cli.main import main
for name in ("cat", "dog"):
    Path("photos", name).mkdir(parents=True)
    for index in range(4):
        Path("photos", name, f"{index}.png").write_bytes(b"")
assert main(["fit", "photos", "--out", "run"]) == 1
"""

FIT = """
import shutil
shutil.rmtree("photos")
from PIL import Image
from headstart.cli.main import main
for name, color in (("cat", "red"), ("dog", "blue")):
    Path("photos", name).mkdir(parents=True)
    for index in range(8):
        Image.new("RGB", (40, 40), color).save(Path("photos", name, f"{index}.png"))
settings = ["--plan", "linear_probe", "--epochs", "1", "--image_size", "32", "--accelerator", "cpu"]
assert main(["fit", "photos", "--out", "run", *settings]) == 0
assert Path("run/report.html").is_file()
"""
EXPORT = """
from headstart.export import export
assert "model.onnx" in export("run", format="onnx", samples=["photos/cat/0.png"]).files
"""
SERVE = """
import torch
from headstart.artefact import read_metadata
from headstart.serving.app import make_app
from headstart.serving.limits import Limits
from headstart.serving.predictor import Predictor
predictor = Predictor(load_artefact("run"), takes="photos", device=torch.device("cpu"))
assert make_app(predictor, read_metadata("run"), Limits.of("photos")).openapi()["paths"]
"""
MLFLOW = """
from headstart.loggers import MLFlowLogger
logger = MLFlowLogger("first", save_dir="logs")
logger.log_metrics({"loss": 0.5}, step=1)
logger.finalize("success")
assert logger.version
"""
WANDB = """
from pathlib import Path
from headstart.loggers import WandbLogger
logger = WandbLogger("first", save_dir="logs", offline=True)
logger.log_metrics({"loss": 0.5}, step=1)
logger.experiment.finish()
assert list(Path("logs").rglob("*.wandb"))
"""

#: The steps of each program: extras that are added to those before them, and what is done with them. The names go on.
PROGRAMS = {
    "images": [("images", IMAGES), ("efficientnet_lite0", LITE0), ("export", EXPORT), ("serve", SERVE)],
    "text": [("text", TEXT), ("minilm", MINILM)],
    "tables": [("tables", TABLES)],
    "tensorboard": [("tensorboard", TENSORBOARD)],
    "mlflow": [("mlflow", MLFLOW)],
    "wandb": [("wandb", WANDB)],
    "lora": [("lora", LORA)],
    "plots": [("plots", PLOTS)],
    "sweep": [("sweep", SWEEP)],
    "cli": [("cli", CLI), ("images,efficientnet_lite0,report", FIT)],
}
#: What such a program lacks at first, and says so.
NAMES_MISSING = {"images": "efficientnet_lite0", "text": "minilm", "cli": "images"}


@pytest.fixture(scope="module")
def printed(bare, metadata, tmp_path_factory):
    """What each of the programs prints in the clean environment."""
    without_extras = set(closure(metadata.requires_dist, []))
    tasks = []
    for name, steps in PROGRAMS.items():
        folder, added, with_folders = tmp_path_factory.mktemp(name), [], []
        for number, (extras, program) in enumerate(steps):
            before = without_extras.union(closure(metadata.requires_dist, added))
            added += extras.split(",")
            packages = folder / f"packages-{number}"
            packages.mkdir()
            for each in sorted(set(closure(metadata.requires_dist, added)) - before):
                link_distribution(distribution(each), packages)
            with_folders.append((str(packages), program))
        tasks.append((str(folder), with_folders))
    done = bare("-W", "ignore", "-c", DRIVER, typed=json.dumps(tasks))
    assert done.returncode == 0, done.stdout
    return {Path(folder).name[:-1]: (Path(folder) / "output.txt").read_text() for folder, _ in tasks}


def test_every_extra_for_users_is_tried(metadata):
    extras = {extra for steps in PROGRAMS.values() for named, _ in steps for extra in named.split(",")}
    tried = set(map(canonicalize_name, extras))
    # `all` and `demo` are others together; the last ones are for whoever works on headstart.
    assert (
        tried
        == set(map(canonicalize_name, metadata.provides_extra))
        - {
            "all",
            "demo",
            "datasets",  # it pickles what it works on, which this environment of links does not bear: tests/data/test_records.py
            "docs",
            "test",
            "fuzz",
        }
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_an_extra_is_enough_for_what_it_is_for(name, printed, bare):
    assert printed[name].endswith(f"works {bare.packages / 'headstart' / '__init__.py'}\n"), printed[name]
    if missing := NAMES_MISSING.get(name):
        assert f"pip install 'headstart[{missing}]'" in printed[name]
