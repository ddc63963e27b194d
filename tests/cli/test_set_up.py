"""From the options of a command to its data and its model."""

import pytest
import torch
from PIL import Image

from headstart.cli.options import FitOptions
from headstart.cli.set_up import make_model, open_data

SIZE = 64
#: A row of pixels from black to white.
RAMP = torch.linspace(0, 1, SIZE)


@pytest.fixture
def ramps(tmp_path):
    """Photos that are black at the left and white at the right, of two classes."""
    for name in ("a", "b"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(10):
            picture = Image.linear_gradient("L").rotate(90).resize((SIZE, SIZE)).convert("RGB")
            picture.putpixel((0, 0), (number, 0, 0))  # no two are the same
            picture.save(tmp_path / "photos" / name / f"{number}.png")
    return tmp_path / "photos"


def rows_in_training(photos, **options):
    """Give the middle row of each photo as training sees it, brought back to [0, 1]: (N, SIZE)."""
    torch.manual_seed(0)
    options = FitOptions(data=str(photos), out="run", image_size=SIZE, **options)
    data = open_data(options).prepare()
    preprocessing = make_model(options, data).preprocessing
    seen = torch.cat([images for _ in range(5) for images, _ in data.train_dataloader()])
    return seen[:, 0, SIZE // 2] * preprocessing.std[0] + preprocessing.mean[0]


@pytest.mark.parametrize(
    ("augment", "is_mirrored", "is_cropped"),
    [("flip", True, False), ("crop", True, True), ("none", False, False)],
)
def test_training_sees_photos_as_augment_says(ramps, augment, is_mirrored, is_cropped):
    rows = rows_in_training(ramps, augment=augment)
    mirrored = rows[:, 0] > rows[:, -1]
    assert mirrored.any() == is_mirrored
    assert not mirrored.all()
    upright = torch.where(mirrored[:, None], rows.flip(1), rows)
    is_whole = (upright - RAMP).abs().amax(dim=1) < 0.02  # 8 bits, and the ends of the gradient
    assert is_whole.all() == (not is_cropped)
