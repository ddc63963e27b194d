"""Near duplicates, the map, reliability, shown samples, curves: what a report shows, each by itself."""

import numpy as np
import pytest
import torch

from headstart.data.base import Sample
from headstart.report.curves import read_curves
from headstart.report.duplicates import near_duplicates
from headstart.report.feature_map import map_features
from headstart.report.reliability import reliability_bins
from headstart.report.samples import is_same, shown


def features_of(parts, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {part: torch.randn(count, 64, generator=generator) + 3 for part, count in parts.items()}


def test_copies_between_parts_are_found_and_others_are_not():
    features = features_of({"train": 3000, "val": 50, "test": 50})
    features["val"][7] = features["train"][2345] + 0.001
    features["test"][3] = features["val"][20]
    found = near_duplicates(features)
    assert [(each.part, each.index, each.other_part, each.other_index) for each in found.found] == [
        ("test", 3, "val", 20),
        ("val", 7, "train", 2345),
    ]
    assert found.num_looked_at == found.num_held_out == 100


def test_of_very_many_samples_some_are_compared_and_their_number_is_known():
    found = near_duplicates(features_of({"train": 10, "val": 500}), most=100)
    assert (found.num_looked_at, found.num_held_out) == (100, 500)


def test_the_map_keeps_clusters_apart_and_has_a_limit():
    centres = 40 * torch.eye(3, 64).repeat_interleave(40, dim=0)  # 3 clusters of 40
    features = features_of({"train": 120})["train"] + centres
    found = map_features(features, most=90)
    assert found.method == "t-SNE"
    assert len(found.indices) == len(found.places) == 90
    places, cluster = np.array(found.places), np.array(found.indices) // 40
    distance = np.linalg.norm(places[:, None] - places[None], axis=2) + np.diag(np.full(90, np.inf))
    assert (cluster[distance.argmin(axis=1)] == cluster).all()
    assert map_features(features, most=90).places == found.places  # the same each time


def test_without_scikit_learn_the_map_is_of_principal_components(monkeypatch):
    monkeypatch.setattr("headstart.report.feature_map.find_spec", lambda name: None)
    features = features_of({"train": 30})["train"]
    features[:, 0] *= 50
    found = map_features(features)
    assert found.method == "PCA"
    assert found.share_of_variance > 0.9
    first = np.array(found.places)[:, 0]
    assert abs(np.corrcoef(first, features[:, 0].numpy())[0, 1]) > 0.999


@pytest.mark.parametrize("count", [1, 2, 30])
def test_samples_that_are_all_alike_have_a_map_too(count):
    assert map_features(torch.ones(count, 8)).places == [[0.0, 0.0]] * count


def test_reliability_is_accuracy_by_confidence():
    generator = np.random.default_rng(0)
    sure = generator.uniform(0.5, 1, size=4000)
    targets = (generator.uniform(size=4000) > sure).astype(int)  # right as often as it is sure
    bins = reliability_bins(np.stack([sure, 1 - sure], axis=1), targets)
    assert sum(each.num_samples for each in bins) == 4000
    assert len(bins) == 10
    for each in bins:
        assert each.accuracy.low <= each.accuracy.value <= each.accuracy.high
        assert each.accuracy.value == pytest.approx(each.confidence, abs=0.08)  # four standard errors


def test_an_image_that_is_gone_is_said_to_be(tmp_path):
    found = shown(Sample(tmp_path / "gone.jpg", "cat", "gone.jpg", ""))
    assert "gone.jpg" in found["missing"]
    assert "picture" not in found
    assert not is_same(Sample(tmp_path / "gone.jpg", "", "", ""), Sample(tmp_path / "x.jpg", "", "", ""))


def test_a_long_text_is_cut_between_words_and_a_pair_is_both():
    found = shown(Sample(("word " * 200, "an answer"), "yes", "row 3", ""))
    assert found["text"].endswith("word … | an answer")
    assert len(found["text"]) < 340


def test_curves_leave_out_points_of_very_long_runs(tmp_path):
    rows = ["step,epoch,train_loss,val_loss,val_f1"]
    for step in range(4000):
        rows.append(f"{step},{step // 1000},{1 / (step + 1)},,")
        if step % 1000 == 999:
            rows.append(f"{step},{step // 1000},,0.5,{'nan' if step < 1000 else 0.8}")
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    epochs = [{"epoch": n} for n in range(4)]
    found = read_curves(tmp_path / "metrics.csv", epochs)
    assert len(found["curves"]["train_loss"]) <= 501
    assert found["curves"]["train_loss"][-1] == (3999, 1 / 4000)
    assert found["curves"]["val_loss"] == [(n * 1000 + 999, 0.5) for n in range(4)]
    assert read_curves(tmp_path / "gone.csv", []) == {"curves": {}, "epoch_ends": []}


def test_the_end_of_an_epoch_is_a_point_at_the_mean_of_its_training_loss(tmp_path):
    rows = ["step,epoch,train_loss,val_loss", "3,0,,0.5", "4,1,0.25,", "7,1,,0.5"]
    (tmp_path / "metrics.csv").write_text("\n".join(rows))
    epochs = [{"epoch": n, "train_loss": 9.0, "train_loss_epoch": 1.0 - n / 2} for n in range(2)]
    found = read_curves(tmp_path / "metrics.csv", epochs)
    assert found["curves"]["train_loss"] == [(3, 1.0), (4, 0.25), (7, 0.5)]
