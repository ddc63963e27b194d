"""Time `fit_probe`, the whole path of strengths with five folds, beside single fits of scikit-learn.

Features are those of `reuse.py`'s data: solar cells by EfficientNet-Lite0 (1,557 x 1,280, two classes), and Reuters R8 by
MiniLM (1,000 and 5,485 x 384, eight classes). Both start from raw features; scikit-learn fits one strength, `C=1`, once, with
its default tolerance, which ends above the optimum by what the last column says; `fit_probe` ends at the optimum.
Fastest of the rounds, in turns. Ratios carry from one machine to another, seconds do not; on a busy machine neither do.

    python benchmarks/probe.py [--rounds 3] [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor
from torch.nn.functional import cross_entropy

from headstart.probe import fit_probe

AT_MOST = 5  # single fits of scikit-learn


def main() -> None:
    parser = argparse.ArgumentParser(description="Time fit_probe beside single fits of scikit-learn.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="small random features, to see that it runs")
    arguments = parser.parse_args()
    print(
        f"{'data':<28}{'path, 5 folds':>14}{'one fit':>10}{'path / one fit':>16}{'processor':>11}{'above optimum':>15}"
    )
    for title, features, targets in random_data() if arguments.quick else real_data():
        report(title, features, targets, rounds=1 if arguments.quick else arguments.rounds)
    print(f"wanted: path / one fit at most {AT_MOST}")


def report(title: str, features: Tensor, targets: Tensor, *, rounds: int) -> None:
    """Print a row: seconds, their ratios, and how far scikit-learn's fit is above the optimum."""
    path, single = [], []
    for _ in range(rounds):
        path.append(timed(lambda: fit_probe(features, targets)))
        single.append(timed(lambda: fit_peer(features, targets)))
    seconds, peer_seconds = min(each[0] for each in path), min(each[0] for each in single)
    processor = min(each[1] for each in path) / min(each[1] for each in single)
    size = f"{title} {features.shape[0]:,} x {features.shape[1]:,}, {int(targets.max()) + 1}"
    print(
        f"{size:<28}{seconds:>12.2f} s{peer_seconds:>8.2f} s{seconds / peer_seconds:>16.2f}{processor:>11.2f}"
        f"{excess(features, targets):>15.1e}",
        flush=True,
    )


def timed(work) -> tuple[float, float]:
    """Seconds by the clock, and of the processor."""
    begun, begun_processor = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begun, time.process_time() - begun_processor


def fit_peer(features: Tensor, targets: Tensor) -> tuple[LogisticRegression, StandardScaler]:
    scaler = StandardScaler()
    scaled = scaler.fit_transform(features.double().numpy())
    return LogisticRegression(C=1.0, max_iter=10_000).fit(scaled, targets.numpy()), scaler


def excess(features: Tensor, targets: Tensor) -> float:
    """How far scikit-learn's objective is above that of `fit_probe` at the same strength, as a share of it."""
    model, scaler = fit_peer(features, targets)
    scaled = torch.from_numpy(scaler.transform(features.double().numpy()))
    probe = fit_probe(features, targets, strengths=[1.0], num_folds=2)
    weight, bias = torch.from_numpy(model.coef_), torch.from_numpy(model.intercept_)
    if len(weight) == 1:
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    own_weight = probe.weight * torch.from_numpy(scaler.scale_)
    own_bias = probe.bias + probe.weight @ torch.from_numpy(scaler.mean_)
    return objective(weight, bias, scaled, targets) / objective(own_weight, own_bias, scaled, targets) - 1


def objective(weight: Tensor, bias: Tensor, features: Tensor, targets: Tensor) -> float:
    penalty = (weight[1] - weight[0]).square().sum() if len(weight) == 2 else weight.square().sum()
    return float(cross_entropy(features @ weight.T + bias, targets, reduction="sum") + penalty / 2)


# ---- data


def random_data():
    """Noisy clusters at a fraction of the sizes."""
    generator = torch.Generator().manual_seed(0)
    for title, num_samples, num_features, num_classes in [
        ("random", 200, 128, 2),
        ("random", 300, 48, 8),
    ]:
        targets = torch.arange(num_samples) % num_classes
        centres = torch.randn(num_classes, num_features, generator=generator)
        noise = torch.randn(num_samples, num_features, generator=generator)
        yield title, centres[targets] + 3 * noise, targets


def real_data():
    """The features of photos and texts, computed here."""
    import reuse
    import reuse_work

    with tempfile.TemporaryDirectory() as directory:
        reuse.write_photos(Path(directory), None)
        data = {"file": f"{directory}/photos.json", "size": 224}
        features, targets, _ = reuse_work.features_of(reuse_work.new_parts("photos")[0].eval(), data)
        yield "photos", features, targets
        file = Path(directory) / "texts.json"
        reuse.write_texts(file, 5485)
        features, targets = text_features(reuse_work.Texts(str(file), 128))
        yield "texts", features[:1000], targets[:1000]
        yield "texts", features, targets


@torch.no_grad()
def text_features(texts) -> tuple[Tensor, Tensor]:
    """What MiniLM gives for all texts; those of a length together, for padding is work."""
    import reuse_work

    backbone = reuse_work.new_parts("texts")[0].eval()
    order = torch.tensor([len(tokens) for tokens, _ in texts.rows]).argsort(stable=True)
    parts = [backbone(reuse_work.pad([texts[int(row)] for row in rows])[0]) for rows in order.split(64)]
    features = torch.empty(len(order), parts[0].shape[1])
    features[order] = torch.cat(parts)
    return features, torch.tensor([target for _, target in texts.rows])


if __name__ == "__main__":
    main()
