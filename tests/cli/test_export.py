"""`headstart export`: what another program loads computes what the run does, or is not there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest

from headstart.artefact import load_artefact
from headstart.cli.main import main
from headstart.errors import ExportError, MisconfigurationError, MissingDependencyError, UnknownNameError
from headstart.export import export
from headstart.export.bundle import logits_of
from headstart.export.source import read_source

pytestmark = pytest.mark.slow

# Read where a run keeps what it was trained on, and without headstart: the exports' own facts are enough.
PHOTO_PROGRAM = """
import json, sys
sys.modules["torch"] = sys.modules["headstart"] = None
import numpy as np, onnxruntime
from PIL import Image
folder, *files = sys.argv[1:]
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
facts = {name: json.loads(value) for name, value in session.get_modelmeta().custom_metadata_map.items()}
steps = facts["preprocessing"]

def pixels(file):
    photo = Image.open(file).convert(steps["color"])
    side, size = steps["resize_shorter_side"], steps["center_crop"]
    photo = photo.resize((side, side), Image.Resampling[steps["interpolation"].upper()])  # these are square
    edge = (side - size) // 2
    return np.asarray(photo.crop((edge, edge, edge + size, edge + size)))

probabilities, _ = session.run(None, {"pixels": np.stack([pixels(file) for file in files])})
print(json.dumps([dict(zip(facts["class_names"], row.tolist())) for row in probabilities]))
"""

TEXT_PROGRAM = """
import json, sys
sys.modules["torch"] = sys.modules["headstart"] = sys.modules["transformers"] = None
import numpy as np, onnxruntime
from tokenizers import Tokenizer
folder, *texts = sys.argv[1:]
session = onnxruntime.InferenceSession(f"{folder}/model.onnx")
class_names = json.loads(session.get_modelmeta().custom_metadata_map["class_names"])
found = Tokenizer.from_file(f"{folder}/tokenizer.json").encode_batch(texts)
tokens = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
inputs = {each.name: np.array([getattr(row, tokens[each.name]) for row in found]) for each in session.get_inputs()}
probabilities, _ = session.run(None, inputs)
print(json.dumps([dict(zip(class_names, row.tolist())) for row in probabilities]))
"""

TEXTS = ["I love this boat", "where can I buy a house? " * 80, "no"]  # the second is cut off


def run_program(program, *arguments, cwd=None):
    """Run a program in a Python of its own, in which headstart cannot be imported from this checkout's path."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    found = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    return found.stdout


def probabilities_of(run, samples):
    logits = logits_of(load_artefact(run), samples)
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def photos_of(solar_cells):
    return sorted(solar_cells.rglob("*.png"))


def test_onnx_of_photos_predicts_without_torch(cell_run, solar_cells, tmp_path, capsys):
    out = tmp_path / "onnx"
    assert main(["export", str(cell_run), "--format", "onnx", "--out", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["comparison"]["are_real"]
    assert said["comparison"]["num_samples"] == 14  # every third of 40
    assert said["comparison"]["origin"] == str(solar_cells)
    assert 0 < said["comparison"]["difference"] < 2e-5 < said["comparison"]["allowed"]
    files = photos_of(solar_cells)[::7]  # a batch of another size than the one that was traced or compared
    found = json.loads(run_program(PHOTO_PROGRAM, out, *files))
    expected = probabilities_of(cell_run, files)
    assert list(found[0]) == load_artefact(cell_run).class_names
    np.testing.assert_allclose([list(row.values()) for row in found], expected, atol=1e-5)


def test_onnx_of_texts_has_its_tokenizer_beside_it(text_run, tmp_path):
    found = export(text_run, format="onnx", out=tmp_path / "onnx")
    assert {"model.onnx", "tokenizer.json", "export.json"} <= set(found.files)
    answers = json.loads(run_program(TEXT_PROGRAM, found.folder, *TEXTS))
    np.testing.assert_allclose(
        [list(row.values()) for row in answers], probabilities_of(text_run, TEXTS), atol=1e-5
    )
    alone = json.loads(run_program(TEXT_PROGRAM, found.folder, TEXTS[2]))
    np.testing.assert_allclose(list(alone[0].values()), list(answers[2].values()), atol=1e-5)


def test_torch_export_runs_where_headstart_is_not(text_run, tmp_path):
    found = export(text_run, format="torch-export", out=tmp_path / "program")  # compares in such a process
    description = json.loads((found.folder / "export.json").read_text())
    assert description["inputs"][0]["shape"][0] == "batch"
    program = (
        "import sys, torch; inside = {'export.json': ''}; torch.export.load(sys.argv[1], extra_files=inside);"
        "print(inside['export.json'])"
    )
    inside = json.loads(run_program(program, found.folder / "model.pt2"))
    assert inside == {name: description[name] for name in inside}
    assert inside["class_names"] == load_artefact(text_run).class_names


def test_safetensors_has_the_names_of_its_library(cell_run, tmp_path, solar_cells):
    import timm
    import torch
    from safetensors import safe_open

    found = export(cell_run, format="safetensors", out=tmp_path / "weights")
    with safe_open(found.folder / "model.safetensors", "pt") as file:
        facts = {name: json.loads(value) for name, value in file.metadata().items() if name != "format"}
        weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    network = timm.create_model(facts["architecture"]["model"], num_classes=len(facts["class_names"])).eval()
    network.load_state_dict(weights)
    photo = photos_of(solar_cells)[0]
    transform = read_source(cell_run).model.preprocessing.eval_transform()
    from headstart.data import open_image

    with torch.no_grad():
        logits = network(transform(open_image(photo))[None]).numpy()
    np.testing.assert_allclose(logits, logits_of(load_artefact(cell_run), [photo]), atol=1e-5)


def card_program(folder):
    """Give the program of a card, which a reader would paste."""
    (program,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.DOTALL)
    return program


def test_hub_folder_of_photos_is_timms_and_its_card_says_what_is_known(cell_run, solar_cells, tmp_path):
    from huggingface_hub import ModelCard

    found = export(cell_run, format="hf", out=tmp_path / "cells")
    photo = photos_of(solar_cells)[0]
    shutil.copyfile(photo, found.folder / "photo.jpg")  # whatever it is called
    lines = run_program(card_program(found.folder), cwd=found.folder).splitlines()
    expected = probabilities_of(cell_run, [photo])[0]
    names = load_artefact(cell_run).class_names
    assert lines == [f"{name}: {share:.3f}" for name, share in zip(names, expected, strict=True)]
    card = ModelCard.load(found.folder / "README.md")
    test = read_source(cell_run).metadata["metrics"]["test"]
    assert (card.data.library_name, card.data.license) == ("timm", "apache-2.0")
    assert card.data.eval_results[0].metric_value == pytest.approx(test["accuracy"]["value"], abs=1e-6)
    interval = f"{test['accuracy']['low']:.3f} to {test['accuracy']['high']:.3f}"
    assert f"| accuracy | {test['accuracy']['value']:.3f} | {interval} |" in card.text
    assert f"On {test['num_samples']} samples held back from training" in card.text
    assert "28 for training, 6 for validation, 6 for test" in card.text
    assert "not calibrated" in card.text


def test_hub_folder_of_texts_is_loaded_by_what_the_card_names_and_by_nothing_else(text_run, tmp_path):
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForSequenceClassification

    found = export(text_run, format="hf", out=tmp_path / "texts")
    expected = logits_of(load_artefact(text_run), TEXTS)
    program = card_program(found.folder).replace('["a text", "another one"]', repr(TEXTS))
    printed = run_program(program, cwd=found.folder).splitlines()
    shares = [list(eval(line).values()) for line in printed]
    np.testing.assert_allclose(shares, probabilities_of(text_run, TEXTS), atol=6e-4)  # printed with 3 digits
    assert list(eval(printed[0])) == load_artefact(text_run).class_names
    # A second library, and its own code for all of it: tokenizer, mean, head.
    stock = SentenceTransformer(str(found.folder), device="cpu")
    np.testing.assert_allclose(stock.encode(TEXTS, show_progress_bar=False), expected, atol=1e-5)
    # What the card warns of: this class reads other layers, and they are not there.
    _, report = AutoModelForSequenceClassification.from_pretrained(found.folder, output_loading_info=True)
    assert {"classifier.weight", "classifier.bias"} <= set(report["missing_keys"])
    assert "`AutoModelForSequenceClassification`" in (found.folder / "README.md").read_text()


@pytest.fixture(scope="module")
def lora_run(reviews, tmp_path_factory):
    from headstart.cli import fit

    run = tmp_path_factory.mktemp("runs") / "lora"
    assert fit.run(
        [str(reviews), "--out", str(run), "--plan", "lora", "--epochs", "1", "--batch_size", "8", "--lr", "0.01",
         "--text_column", "what was said", "--label_column", "sentiment"]
    ) == 0  # fmt: skip
    return run


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft's use of transformers
def test_adapters_are_kept_and_fit_the_pretrained_weights(lora_run, tmp_path):
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file

    from headstart.backbones import load_backbone

    found = export(lora_run, format="adapters", out=tmp_path / "adapters")
    assert sum(size for name, size in found.files.items() if "safetensors" in name) < 5_000_000  # of 90 MB
    backbone = load_backbone("minilm")
    untouched = logits_of(load_artefact(lora_run), TEXTS)
    backbone.model = PeftModel.from_pretrained(backbone.model, str(found.folder)).eval()
    head = load_file(found.folder / "head.safetensors")
    with torch.no_grad():
        features = backbone(backbone.preprocessing(TEXTS))
        logits = features @ head["weight"].T + head["bias"]
        with backbone.model.disable_adapter():
            without = backbone(backbone.preprocessing(TEXTS)) @ head["weight"].T + head["bias"]
    np.testing.assert_allclose(logits, untouched, atol=1e-4)
    assert np.abs(without.numpy() - untouched).max() > 1e-2  # they do something
    # The others hold the whole, adapters added.
    assert export(lora_run, format="safetensors", out=tmp_path / "merged").comparison.difference < 1e-5


def test_a_run_without_adapters_says_so(cell_run, tmp_path, capsys):
    assert main(["export", str(cell_run), "--format", "adapters", "--out", str(tmp_path / "out")]) == 1
    assert "it was not fitted with --plan lora" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_computes_something_else_is_not_left_there(cell_run, tmp_path, monkeypatch):
    from headstart.export import prepare

    right = prepare.pixels_of

    def otherwise(photo, preprocessing):  # a mistake of the quiet kind: photos resized in another way
        return right(photo, {**preprocessing, "interpolation": "bilinear"})

    out = tmp_path / "out"
    mask = os.umask(0o027)
    try:
        export(cell_run, format="safetensors", out=out)
    finally:
        os.umask(mask)
    assert out.stat().st_mode & 0o777 == 0o750
    before = (out / "export.json").read_bytes()
    monkeypatch.setattr(prepare, "pixels_of", otherwise)
    with pytest.raises(
        ExportError, match=r"does not compute what the run does: on .*cells, its logits differ"
    ):
        export(cell_run, format="safetensors", out=out, overwrite=True)
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    assert (out / "export.json").read_bytes() == before


def test_samples_may_be_given_and_are_random_where_the_data_is_gone(cell_run, solar_cells, tmp_path, capsys):
    moved = tmp_path / "run"
    shutil.copytree(cell_run, moved, ignore=shutil.ignore_patterns("features", "checkpoints", "logs"))
    text = (moved / "headstart.json").read_text().replace(str(solar_cells), str(tmp_path / "gone"))
    (moved / "headstart.json").write_text(re.sub(r',\n  "checksum": "\w+"', "", text))
    arguments = ["export", str(moved), "--format", "safetensors"]
    assert main(arguments) == 0
    said = capsys.readouterr()
    assert "Compared on random inputs" in said.err and "gone cannot be read from here" in said.err
    assert (moved / "exports" / "safetensors" / "model.safetensors").is_file()
    photo = photos_of(solar_cells)[0]
    assert main([*arguments, "--overwrite", "--samples", str(photo)]) == 0
    assert "1 sample: " in capsys.readouterr().out


def test_wrong_use_is_answered(cell_run, text_run, tmp_path, reviews, monkeypatch, capsys):
    with pytest.raises(UnknownNameError, match="Did you mean 'onnx'"):
        export(cell_run, format="onx")
    with pytest.raises(MisconfigurationError, match="tolerance is 0; expected a number above 0"):
        export(cell_run, format="onnx", out=tmp_path / "out", tolerance=0)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    with pytest.raises(MisconfigurationError, match=r"mine is there already. Give another folder"):
        export(cell_run, format="onnx", out=tmp_path / "mine")
    with pytest.raises(MisconfigurationError, match=r"no export .*--overwrite does not replace it"):
        export(cell_run, format="onnx", out=tmp_path / "mine", overwrite=True)
    assert main(["export", str(cell_run), "--format", "hf", "--samples", str(reviews)]) == 1
    assert "nothing there can be read" in capsys.readouterr().err
    assert main(["export", str(cell_run), "--format", "hf", "--samples", str(tmp_path / "nowhere")]) == 1
    assert "there is no such file or folder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        MissingDependencyError, match=r"'onnxscript' is needed for --format onnx.*headstart\[export\]"
    ):
        export(text_run, format="onnx", out=tmp_path / "onnx")
    assert [each.name for each in tmp_path.iterdir()] == ["mine"]


def test_networks_that_a_format_cannot_hold_are_refused_and_others_are_held(solar_cells, tmp_path):
    import torch

    from headstart.artefact import save_artefact
    from headstart.tasks import ImageClassifier

    torch.manual_seed(0)
    names = ["functional", "defective"]
    for name in ("squeezenet1_1", "resnet18"):
        model = ImageClassifier(f"torchvision:{name}", class_names=names, image_size=96, pretrained=False)
        save_artefact(tmp_path / name, model, metrics={"calibration": {"temperature": 1.7}})
    photo = str(photos_of(solar_cells)[0])
    with pytest.raises(MisconfigurationError, match=r"no head that is one linear layer.*--format onnx"):
        export(tmp_path / "squeezenet1_1", format="safetensors", samples=[photo])
    with pytest.raises(MisconfigurationError, match=r"is torchvision's.*Take --format onnx"):
        export(tmp_path / "resnet18", format="hf", samples=[photo])
    found = export(tmp_path / "resnet18", format="safetensors", samples=[photo])
    assert found.comparison.difference < 1e-5
    description = json.loads((found.folder / "export.json").read_text())
    assert description["calibration"] == {"temperature": 1.7, "where": "in the weights of the head"}


def test_pairs_of_texts_are_cut_and_told_apart_as_in_training(tmp_path):
    import torch

    from headstart.artefact import save_artefact
    from headstart.tasks import TextClassifier

    torch.manual_seed(0)
    model = TextClassifier("minilm", class_names=["follows", "contradicts"], max_length=32)
    save_artefact(tmp_path / "run", model, data_report={"source": str(tmp_path), "texts_per_sample": 2})
    table = tmp_path / "pairs.csv"
    rows = [f"{'a man sleeps ' * n},nobody is {'not ' * (20 - n)} awake" for n in range(1, 20)]
    table.write_text("\n".join(["premise,hypothesis", *rows]))
    for form in ("safetensors", "hf"):  # the tokenizer alone, and by transformers
        found = export(tmp_path / "run", format=form, samples=[str(table)])
        assert 0 < found.comparison.num_samples <= 16
        assert found.comparison.difference < 1e-5
    assert "SentenceTransformer" not in (found.folder / "README.md").read_text()
    # What was trained on is there, and is no table.
    assert not export(tmp_path / "run", format="safetensors", overwrite=True).comparison.are_real


def test_the_description_is_that_of_the_run(cell_run, tmp_path):
    found = export(cell_run, format="safetensors", out=tmp_path / "out")
    description = json.loads((found.folder / "export.json").read_text())
    source = read_source(cell_run)
    assert description["preprocessing"]["resize_shorter_side"] == source.model.preprocessing.size == 64
    assert description["calibration"] == {"temperature": None, "where": "in the weights of the head"}
    assert set(description["files"]) | {"export.json"} == set(found.files)
