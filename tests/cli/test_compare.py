"""`headstart compare`: backbones ranked by a probe of their features, each error in its place."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import torch

from headstart.artefact import read_metadata
from headstart.choice import paired_test
from headstart.cli import compare
from headstart.cli.main import main
from headstart.cli.options import parse
from headstart.data import ClassificationData, ImageFolderData
from headstart.errors import DataError, MisconfigurationError, WriteError
from headstart.probe import PathRow, Probe, fit_probe
from headstart.scores import Estimate
from headstart.tasks import ImageClassifier
from headstart.transferability import h_score, log_me

LITE0 = "efficientnet_lite0"
SMALL = ("--image_size", "64", "--batch_size", "8")


@pytest.fixture(scope="session")
def untrained_bert(tmp_path_factory):
    """A folder with a small BERT of random weights and MiniLM's tokenizer."""
    from transformers import BertConfig, BertModel

    from headstart.backbones import load_backbone

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("weights") / "bert"
    config = BertConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=30522
    )
    BertModel(config).save_pretrained(folder)
    load_backbone("minilm", pretrained=False).preprocessing.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def compared(tmp_path, capsys, monkeypatch):
    """Compare backbones; give the exit code, the JSON, and what was printed in lines of single spaces."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(data, backbones, *options):
        file = tmp_path / "compared.json"
        named = [word for name in backbones for word in ("--backbone", name)]
        code = compare.run([str(data), *named, *map(str, options), "--json", str(file)])
        printed = capsys.readouterr()
        return code, json.loads(file.read_text()), printed

    return call


@pytest.fixture(scope="session")
def by_hand(solar_cells, untrained):
    """Features and targets of both networks by a plain loop over the training part."""
    found = {}
    for name in (LITE0, untrained):
        model = ImageClassifier(name, class_names=["defective", "functional"], image_size=64).eval()
        data = ImageFolderData(solar_cells, eval_transform=model.preprocessing.eval_transform()).prepare()
        samples = data.train_set
        samples.transform = data.eval_transform
        images, targets = zip(*[samples[index] for index in range(len(samples))], strict=True)
        with torch.no_grad():
            found[name] = model.backbone(torch.stack(images)), torch.tensor(targets)
    return found


def lines_of(text):
    return [" ".join(line.split()) for line in text.splitlines()]


# ---- the ranking


@pytest.mark.slow
def test_backbones_are_ranked_by_a_probe_of_the_training_part(compared, solar_cells, untrained, by_hand):
    code, found, printed = compared(solar_cells, [untrained, LITE0], *SMALL)
    assert code == 0
    assert [each["backbone"] for each in found["backbones"]] == [LITE0, untrained]
    assert (found["best"], found["num_samples"], found["failed"]) == (LITE0, 28, [])
    is_right = {}
    for each in found["backbones"]:
        features, targets = by_hand[each["backbone"]]
        probe = fit_probe(features, targets, seed=0)  # balanced: both classes have 14
        is_right[each["backbone"]] = (probe.out_of_fold.argmax(dim=1) == targets).numpy()
        assert each["accuracy"] == probe.accuracy.to_dict()
        # Features may differ by 1e-5 of the largest, as they may be computed in other chunks.
        assert each["log_me"] == pytest.approx(log_me(features, targets), abs=1e-4)
        assert each["h_score"] == pytest.approx(h_score(features, targets), abs=1e-4)
        assert each["width"] == features.shape[1]
    first, second = found["backbones"]
    assert first["num_parameters"] == 3_371_008
    assert first["p_value_to_best"] is None
    assert second["p_value_to_best"] == paired_test(is_right[LITE0], is_right[untrained])

    lines = lines_of(printed.out)
    assert lines[0] == "Linear probe in 5 folds of 28 training samples"
    value, low, high = (f"{each:.3f}" for each in first["accuracy"].values())
    row = next(index for index, line in enumerate(lines) if line.startswith(f"* {LITE0} {value} "))
    assert f"{first['log_me']:.3f} {first['h_score']:.3f} 3.4 M" in lines[row]
    assert lines[row + 1].startswith(f"{low} to {high} 1280 ")
    assert f"{solar_cells}: 40 samples in 2 classes: 28 train, 6 val, 6 test" in printed.err


@pytest.mark.slow
def test_only_the_training_part_is_read(compared, solar_cells, untrained, monkeypatch):
    def touched(self):
        raise AssertionError("another part was read")

    for part in ("train", "val", "test", "predict"):
        monkeypatch.setattr(ClassificationData, f"{part}_dataloader", touched)
    assert compared(solar_cells, [untrained, LITE0], *SMALL)[1]["failed"] == []


@pytest.mark.slow
def test_texts_are_compared_too(compared, reviews, untrained_bert):
    columns = ("--text_column", "what was said", "--label_column", "sentiment")
    code, found, printed = compared(reviews, [untrained_bert, "minilm"], *columns, "--max_length", "32")
    assert code == 0
    assert [each["backbone"] for each in found["backbones"]] == ["minilm", untrained_bert]
    assert [each["width"] for each in found["backbones"]] == [384, 16]
    assert parse(shlex.split(found["fit"])[2:]).options.text_columns == ["what was said"]
    assert found["fit"] in printed.out


@pytest.mark.slow
def test_the_next_fit_finds_the_features_and_the_same_head(
    compared, solar_cells, untrained, tmp_path, capsys
):
    features = tmp_path / "features"
    _, found, printed = compared(solar_cells, [untrained, LITE0], *SMALL, "--features", features)
    command = shlex.split(lines_of(printed.out)[-1].removeprefix("Fit with it: "))
    assert command == shlex.split(found["fit"])
    command[command.index("--out") + 1] = str(tmp_path / "run")
    assert main([*command[1:], "--epochs", "1", "--report", "false"]) == 0  # it looks at the test part, too
    # 8 of 28 training samples: the first batch, to be compared with what was kept; and the 6 of validation, which
    # no comparison has seen. 20 are looked up.
    lines = " ".join(capsys.readouterr().out.split())
    assert "frozen work done once: 14 passes through the backbone and 20 that were looked up" in lines
    head = read_metadata(tmp_path / "run")["metrics"]["head"]
    assert head["accuracy"] == found["backbones"][0]["accuracy"]


# ---- the cut by LogME


@pytest.mark.slow
def test_first_fits_a_head_for_the_best_by_log_me_alone(compared, solar_cells, untrained):
    code, found, printed = compared(solar_cells, [untrained, LITE0], *SMALL, "--first", "1")
    first, second = found["backbones"]
    assert code == 0
    assert first["log_me"] > second["log_me"]
    assert first["accuracy"] is not None
    assert (second["accuracy"], second["num_folds"], second["seconds"]["probe"]) == (None, None, None)
    assert f"* {LITE0}: the only one that was probed." in printed.out
    assert f"Without a probe, as LogME is lower: {untrained}." in printed.out


# ---- what cannot be used


@pytest.mark.slow
def test_a_backbone_that_cannot_be_used_costs_nothing_of_the_others(compared, solar_cells, untrained):
    code, found, printed = compared(
        solar_cells, ["minilm", untrained, "efficientnet_lite1", LITE0], *SMALL, "--first", "2"
    )
    assert code == 0
    assert {each["backbone"] for each in found["backbones"]} == {LITE0, untrained}
    reasons = {each["backbone"]: each["reason"] for each in found["failed"]}
    assert "takes text" in reasons["minilm"]
    assert "Did you mean 'timm:efficientnet_lite1'?" in reasons["efficientnet_lite1"]
    assert lines_of(printed.err)[-2:] == [
        f"Not compared: {name}: {reason}" for name, reason in reasons.items()
    ]


@pytest.mark.slow
def test_an_error_of_a_network_is_named_with_its_kind(compared, solar_cells, untrained, monkeypatch):
    measure = compare._measure

    def broken(options, data):
        if options.backbone == LITE0:
            raise IndexError("index out of range in self")
        return measure(options, data)

    monkeypatch.setattr(compare, "_measure", broken)
    code, found, printed = compared(solar_cells, [untrained, LITE0], *SMALL)
    assert code == 0
    assert found["failed"] == [{"backbone": LITE0, "reason": "IndexError: index out of range in self"}]
    assert f"{LITE0}: cannot be compared; the reason stands at the end." in printed.err


@pytest.mark.slow
def test_the_exit_code_is_1_if_no_backbone_could_be_used(compared, solar_cells):
    code, found, printed = compared(solar_cells, ["minilm", "nothing"], *SMALL)
    assert code == 1
    assert (found["best"], found["fit"], found["backbones"]) == (None, None, [])
    assert len(found["failed"]) == 2
    assert printed.out == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "minilm"], "Received --backbone minilm; expected two or more to compare"),
        ([], "Received no --backbone; expected two or more to compare"),
        (["--backbone", "a", "--backbone", "b", "--backbone", "a"], "--backbone a is given more than once"),
        (["--backbone", "a", "--backbone", "b", "--first", "0"], "--first is 0; expected 1 or more"),
        (["--backbone", "a", "--backbone", "b", "--json", "no/such/file.json"], "there is no folder no/such"),
        (
            ["--backbone", "a", "--backbone", "b", "--image_size", "1"],
            "--image_size is 1; expected 16 or more",
        ),
        (
            ["--backbone", "a", "--backbone", "b", "--max_length", "64"],
            "--max_length is for a table of texts",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(solar_cells, options, message):
    with pytest.raises(MisconfigurationError, match=re.escape(message)):
        compare.run([str(solar_cells), *options])


def test_a_class_with_one_training_sample_is_refused_before_any_work(tmp_path):
    rows = [f"{label},a text of {label} number {n}" for label in ("good", "bad") for n in range(10)]
    (tmp_path / "texts.csv").write_text("\n".join(["label,text", *rows, "odd,one alone"]))
    with pytest.raises(DataError, match="one training sample only of class 'odd'; expected two or more"):
        compare.run([str(tmp_path / "texts.csv"), "--backbone", "a", "--backbone", "b"])


# ---- for programs


@pytest.mark.slow
def test_a_result_that_cannot_be_written_is_named(solar_cells, untrained, tmp_path):
    arguments = ["--backbone", untrained, "--backbone", LITE0, *SMALL, "--json", str(tmp_path)]
    with pytest.raises(WriteError, match=f"{tmp_path} was not written: Is a directory"):
        compare.run([str(solar_cells), *arguments])


@pytest.mark.slow
def test_json_on_standard_output_stands_alone(solar_cells, untrained, capsys):
    arguments = ["--backbone", untrained, "--backbone", LITE0, *SMALL, "--json", "-"]
    assert compare.run([str(solar_cells), *arguments]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["best"] == LITE0
    assert "Linear probe in 5 folds" in printed.err
    assert "Fit with it: headstart fit" in printed.err


@pytest.mark.slow
def test_the_table_fits_80_columns(solar_cells, headstart, untrained):
    arguments = ["--backbone", untrained, "--backbone", LITE0, *SMALL]
    done = headstart("compare", solar_cells, *arguments, COLUMNS="80")
    assert done.returncode == 0, done.stderr
    table = done.stdout.partition("\n* ")[0]
    assert "…" not in table
    assert f"*  {LITE0} " in table


def test_its_help_imports_no_torch(headstart):
    code = (
        "import sys\nfrom headstart.cli.main import main\ntry:\n    main(['compare', '--help'])\n"
        "except SystemExit as ended:\n    print(ended.code, 'torch' in sys.modules)"
    )
    assert headstart.python("-c", code).stdout.splitlines()[-1] == "0 False"


# ---- how sure the first place is


def measured(name, is_right, log_loss):
    """A backbone whose probe is right where `is_right` says so; all samples are of class 0."""
    right = torch.tensor(is_right)
    out_of_fold = torch.stack([right.double(), 1 - right.double()], dim=1)
    accuracy = Estimate(float(right.double().mean()), low=0.0, high=1.0)
    probe = Probe(
        torch.zeros(2, 1), torch.zeros(2), 1.0, (PathRow(1.0, accuracy, log_loss),), accuracy, out_of_fold, 5
    )
    return compare.Compared(
        name=name, num_parameters=1, width=1, features=None, targets=torch.zeros(len(right)).long(),
        class_weights=None, feature_seconds=1.0, log_me=0.0, h_score=0.0, probe=probe, probe_seconds=1.0,
    )  # fmt: skip


def test_who_is_not_shown_to_be_worse_is_named():
    best, near = [True] * 20, [True] * 17 + [False] * 3
    far = [True] * 10 + [False] * 10
    ranked = compare._ranked(
        [measured("far", far, 0.1), measured("near", near, 0.1), measured("best", best, 0.1)]
    )
    assert [each.name for each in ranked] == ["best", "near", "far"]
    # 0 to 3: 2 / 2**3; 0 to 10: 2 / 2**10.
    assert [each.p_value for each in ranked] == [None, 0.25, 2**-9]
    (line,) = compare._notes(ranked, [])
    assert line == (
        "* best: the best. Not shown to be worse (McNemar's test on the same samples, level 0.05): near (p = 0.25)."
    )
    (line,) = compare._notes([ranked[0], ranked[2]], [])
    assert (
        line
        == "* best: the best; all others are shown to be worse (McNemar's test on the same samples, level 0.05)."
    )


def test_of_equals_the_lower_log_loss_is_first():
    equal = [True] * 9 + [False]
    ranked = compare._ranked([measured("unsure", equal, 0.4), measured("sure", equal, 0.2)])
    assert [each.name for each in ranked] == ["sure", "unsure"]
    assert ranked[1].p_value == 1.0
