"""What training does to a photo: it may be mirrored, and things keep their size unless parts of it are asked for."""

import numpy as np
import torch
from PIL import Image

from headstart.backbones.preprocessing import ImagePreprocessing

SIZE = 24


def photo() -> Image.Image:
    """A gradient from left to right and from top to bottom: where a pixel came from can be read off it."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] * 10
    return Image.fromarray(np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8))


def seen(count: int = 200, **settings) -> list[np.ndarray]:
    """What training sees of the photo, as pixels (H, W, 3)."""
    preprocessing = ImagePreprocessing(size=SIZE, mean=(0, 0, 0), std=(1, 1, 1), **settings)
    transform = preprocessing.train_transform()
    torch.manual_seed(0)
    return [(transform(photo()) * 255).round().numpy().astype(int).transpose(1, 2, 0) for _ in range(count)]


def test_training_mirrors_every_second_photo_unless_left_and_right_mean_something():
    pictures = seen()
    plain = seen(1, horizontal_flip=False)[0]
    mirrored = [bool((picture == plain[:, ::-1]).all()) for picture in pictures]
    assert 0.4 < np.mean(mirrored) < 0.6
    assert all((picture == plain).all() for picture, flag in zip(pictures, mirrored, strict=True) if not flag)
    assert not any(picture[0, 0, 1] > picture[0, -1, 1] for picture in seen(horizontal_flip=False))


def test_without_any_of_it_training_sees_what_prediction_does():
    preprocessing = ImagePreprocessing(size=SIZE, horizontal_flip=False)
    expected = preprocessing.eval_transform()(photo())
    assert all(torch.equal(preprocessing.train_transform()(photo()), expected) for _ in range(20))


def test_parts_of_a_photo_are_enlarged_where_that_is_asked_for():
    steps = [
        np.diff(picture[SIZE // 2, :, 1]).mean() for picture in seen(min_scale=0.25, horizontal_flip=False)
    ]
    assert min(steps) < 6.5  # of 10 where a photo is shown as it is, and 5 at a quarter of its area
    assert max(steps) < 10.1
