"""What a bounded augmentation costs: a head on a frozen backbone, trained on a fixed number of views of each photo.

ELPV photos, EfficientNet-Lite0, frozen. Each row trains a new head for the same number of epochs: on the photos as they
are, on K augmented views of each (`Views`, stored), and on augmentation that is drawn anew in every epoch (computed in every
epoch). What is printed is the accuracy of the last epoch on the held-back photos, the mean over seeds, with its standard
error over photos, and the time of all seeds together.

    python benchmarks/views.py [--epochs 16] [--seeds 2] [--image-size 160] [--quick]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

LIVE = "live"


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare a fixed number of augmented views with live augmentation."
    )
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--quick", action="store_true", help="few photos and epochs, to see that it runs")
    arguments = parser.parse_args()
    limit, size = (96, 64) if arguments.quick else (None, arguments.image_size)
    epochs, seeds = (2, 1) if arguments.quick else (arguments.epochs, arguments.seeds)
    rows = (1, 2, LIVE) if arguments.quick else (1, 2, 4, 8, LIVE)
    with tempfile.TemporaryDirectory() as folder:
        print(f"{epochs} epochs of the head, {size} px, {seeds} seeds")
        print(f"{'training photos':<34}{'accuracy':>10}{'+-':>8}{'seconds':>10}")
        for views in rows:
            begun = time.perf_counter()
            found = [accuracy(Path(folder), views, epochs, seed, size, limit) for seed in range(seeds)]
            mean, count = sum(value for value, _ in found) / seeds, found[0][1]
            error = math.sqrt(mean * (1 - mean) / count)
            name = {1: "as they are", LIVE: "augmented anew in every epoch"}.get(
                views, f"{views} augmented views of each"
            )
            print(f"{name:<34}{mean:>10.3f}{error:>8.3f}{time.perf_counter() - begun:>10.1f}", flush=True)


def accuracy(
    folder: Path, views: object, epochs: int, seed: int, size: int, limit: int | None
) -> tuple[float, int]:
    """Train one head; give its accuracy on the held-back photos, and their number."""
    from demo import lay_out_photos

    from headstart import Trainer, freezing, seed_everything
    from headstart.data import ImageFolderData
    from headstart.deferred import Reuse
    from headstart.tasks import ImageClassifier

    photos = folder / "photos"
    if not photos.exists():
        lay_out_photos(photos, limit=limit)
    data = ImageFolderData(photos).prepare()
    seed_everything(seed)
    model = ImageClassifier(class_names=data.class_names, image_size=size)
    freezing.freeze(model.backbone)
    data.train_transform = model.preprocessing.with_changes(min_scale=0.7).train_transform()
    data.eval_transform = model.preprocessing.eval_transform()
    if isinstance(views, int):
        data.show_fixed_views(views, until_epoch=epochs)
    # What is kept in the folder is there for the next seed, as it would be in a sweep.
    reuse = Reuse(setting="auto", directory=folder / "features", say=lambda line: None)
    trainer = Trainer(
        max_epochs=epochs, reuse_frozen=reuse, accelerator="cpu", limit_val_batches=0, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, datamodule=data)
    (result,) = trainer.test(model, data.test_dataloader(), verbose=False)
    reuse.close()
    return result["test_acc"], data.report.part_sizes["test"]


if __name__ == "__main__":
    main()
