from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from PIL import Image, ImageFile

from headstart.data import ImageFiles, LabelledImages, open_image, open_images
from headstart.data.images import check_images
from headstart.errors import DataError

RAMP = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)


def rgb_of(path) -> np.ndarray:
    image = open_image(path)
    assert image.mode == "RGB"
    return np.asarray(image)


def test_a_grey_image_has_three_equal_channels(tmp_path):
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    assert np.array_equal(rgb_of(tmp_path / "grey.png"), np.stack([RAMP] * 3, axis=-1))


def test_a_black_and_white_image_becomes_rgb(tmp_path):
    Image.fromarray(RAMP > 127).save(tmp_path / "bits.png")
    assert np.array_equal(rgb_of(tmp_path / "bits.png")[..., 0], np.where(RAMP > 127, 255, 0))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_a_16_bit_image_is_scaled_and_not_clipped(tmp_path, suffix):
    path = tmp_path / f"deep{suffix}"
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(path)  # 255 * 257 = 65535
    with Image.open(path) as image:
        assert image.mode.startswith("I")
    assert np.array_equal(rgb_of(path)[..., 1], RAMP)


def test_a_palette_image_shows_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "palette.png")
    assert rgb_of(tmp_path / "palette.png").tolist() == [[[10, 20, 30], [200, 100, 0]]]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "L", "RGB"])
def test_transparent_parts_become_white(tmp_path, mode):
    path = tmp_path / "clear.png"
    if mode == "RGBA":
        Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(path)
    elif mode == "LA":
        Image.new("LA", (2, 2), (0, 0)).save(path)
    else:  # one colour is declared transparent
        transparency = (0, 0, 0) if mode == "RGB" else 0
        Image.new(mode, (2, 2), 0).save(path, transparency=transparency)
    assert (rgb_of(path) == 255).all()


def test_a_cmyk_jpeg_becomes_rgb(tmp_path):
    Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK").save(tmp_path / "print.jpg", quality=95)
    # JPEG loses a little.
    assert np.abs(rgb_of(tmp_path / "print.jpg").astype(int) - [200, 30, 30]).max() <= 6


def test_a_photo_taken_sideways_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to view
    Image.new("RGB", (20, 10)).save(tmp_path / "phone.jpg", exif=exif)
    assert open_image(tmp_path / "phone.jpg").size == (10, 20)


def test_of_an_animation_the_first_picture_is_taken(tmp_path):
    first, second = Image.new("L", (4, 4), 10), Image.new("L", (4, 4), 240)
    first.save(tmp_path / "moves.gif", save_all=True, append_images=[second])
    assert (rgb_of(tmp_path / "moves.gif") == 10).all()


def test_floating_point_pixels_from_0_to_1_are_read_and_others_refused(tmp_path):
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "unit.tif")
    assert np.array_equal(rgb_of(tmp_path / "unit.tif")[..., 2], RAMP)
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "large.tif")
    with pytest.raises(
        DataError, match=r"large.tif: pixels of mode 'F' outside 0 to 1.0; save it with 8 or 16 bits"
    ):
        open_image(tmp_path / "large.tif")


def damaged_files(folder):
    """Each kind of damage, by name, with what is said of it."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for name in ("cut.jpg", "cut.png", "cut.bmp", "cut.tif", "cut.webp", "cut.gif"):
        Image.fromarray(noise).save(folder / name)
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[: len(whole) // 2])
    (folder / "empty.jpg").touch()
    (folder / "text.jpg").write_text("This is no image.")
    (folder / "page.png").write_text("<html>404</html>")
    (folder / "gone.jpg").symlink_to(folder / "nowhere.jpg")
    Image.fromarray(noise).save(folder / "flipped.png")
    data = bytearray((folder / "flipped.png").read_bytes())
    data[len(data) // 2] ^= 0xFF
    (folder / "flipped.png").write_bytes(bytes(data))
    os.mkfifo(folder / "pipe.jpg")
    return {
        "cut.jpg": "truncated",
        "cut.png": "",
        "cut.bmp": "truncated",
        "cut.tif": "",
        "cut.webp": "",
        "cut.gif": "",
        "empty.jpg": "an empty file",
        "text.jpg": "not an image",
        "page.png": "not an image",
        "gone.jpg": "a link to a file that is missing",
        "flipped.png": "",
        "pipe.jpg": "not a file",
    }


@pytest.mark.parametrize("filled_up_by_others", [False, True])
def test_each_kind_of_damage_is_found_whatever_other_libraries_set(
    tmp_path, monkeypatch, filled_up_by_others
):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", filled_up_by_others)
    expected = damaged_files(tmp_path)
    reasons = dict(zip(expected, check_images([tmp_path / name for name in expected]), strict=True))
    for name, words in expected.items():
        assert reasons[name] is not None, name
        assert words in reasons[name], (name, reasons[name])
        assert str(tmp_path) not in reasons[name], "the place is said once, beside the reason"
    assert ImageFile.LOAD_TRUNCATED_IMAGES is filled_up_by_others


def test_sound_files_of_every_kind_pass_the_check(images):
    suffixes = (".png", ".jpg", ".bmp", ".gif", ".tif", ".webp", ".ppm")
    paths = [path for suffix in suffixes for path in images.add("a", 3, suffix)]
    assert check_images(paths) == [None] * 21


def test_an_error_while_reading_names_the_file(tmp_path):
    with pytest.raises(DataError, match=r"nothing.png: no such file"):
        open_image(tmp_path / "nothing.png")


def test_open_images_answers_for_every_named_file_and_searches_folders(images):
    first, second = images.add("a", 2)
    (images.root / "a" / ".hidden.png").write_bytes(first.read_bytes())
    (images.root / "a" / "notes.txt").write_text("not asked for")
    (images.root / "broken.jpg").write_text("x")
    readable, set_aside = open_images([images.root / "a", images.root / "broken.jpg", str(first)])
    assert readable == [first, second, first]
    assert set_aside == [(str(images.root / "broken.jpg"), "not an image")]


def test_open_images_takes_from_folders_what_decodes_and_answers_for_what_is_named_as_an_image(images):
    plain, other, nameless = images.add("a", 3)
    other = other.rename(other.with_suffix(".tga"))
    Image.open(plain).save(other)
    nameless = nameless.rename(nameless.with_suffix(""))
    (images.root / "a" / "broken.jpg").write_text("x")
    (images.root / "a" / "labels.csv").write_text("file,label")
    (images.root / "a" / "empty").touch()
    readable, set_aside = open_images([images.root / "a"])
    assert readable == [plain, other, nameless]
    assert set_aside == [(str(images.root / "a" / "broken.jpg"), "not an image")]


def test_open_images_refuses_a_name_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match="no file or folder"):
        open_images([tmp_path / "missing.jpg"])


def test_datasets_give_images_transformed_and_survive_pickling(images):
    paths = images.add("a", 2)
    assert ImageFiles(paths)[0].size == (16, 12)
    labelled = pickle.loads(pickle.dumps(LabelledImages(paths, [1, 0], transform=np.asarray)))
    pixels, target = labelled[1]
    with Image.open(paths[1]) as image:
        assert np.array_equal(pixels, np.asarray(image))
    assert target == 0
    assert len(labelled) == 2
