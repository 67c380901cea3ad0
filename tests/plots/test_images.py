"""Image conversion, grids, and PNG files read back by another decoder."""

import io
import os

import matplotlib.image
import numpy as np
import pytest
import torch

from strucfast.plots import encode_png, image_grid, save_png, to_uint8


def read_png(data: bytes) -> np.ndarray:
    return np.rint(matplotlib.image.imread(io.BytesIO(data), format="png") * 255).astype(np.uint8)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["noise", "ramp", "flat"])
def test_png_reads_back_exactly(channels, kind):
    shape = (13, 7, channels)
    image = {
        "noise": np.random.default_rng(0).integers(0, 256, shape),
        "ramp": np.arange(13)[:, None, None] * 19 + np.arange(7)[:, None] * np.arange(1, channels + 1),
        "flat": np.full(shape, 200),
    }[kind].astype(np.uint8)
    back = read_png(encode_png(image))
    assert np.array_equal(back, image[..., 0] if channels == 1 else image)


def test_png_of_a_two_dimensional_array_is_grey():
    image = np.arange(12, dtype=np.uint8).reshape(3, 4)
    assert np.array_equal(read_png(encode_png(image)), image)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (np.zeros((4, 4, 3), np.float32), TypeError),
        ([[1]], TypeError),
        (np.zeros((4, 4, 2), np.uint8), ValueError),
        (np.zeros((0, 4, 3), np.uint8), ValueError),
    ],
)
def test_png_refuses_what_is_no_picture(image, error):
    with pytest.raises(error, match="image: expected"):
        encode_png(image)


def test_grid_puts_every_image_in_its_cell():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
    grid = image_grid(images, columns=2, padding=1, background=9)
    assert grid.shape == (3 * 3 - 1, 2 * 4 - 1, 3)
    for place in range(5):
        top, left = place // 2 * 3, place % 2 * 4
        assert (grid[top : top + 2, left : left + 3] == place + 1).all()
    assert (grid[2] == 9).all() and (grid[:, 3] == 9).all()
    assert (grid[6:, 4:] == 9).all()


def test_grid_of_tensors_scales_and_clips():
    images = torch.tensor([0.0, 0.5, 1.0, 1.7, -0.3]).view(5, 1, 1, 1).expand(5, 1, 2, 2)
    assert image_grid(images, columns=5, padding=0)[0, ::2, 0].tolist() == [0, 128, 255, 255, 0]


@pytest.mark.parametrize(
    ("images", "options", "error", "words"),
    [
        (np.zeros((2, 4, 4, 3), np.float32), {}, TypeError, "images"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), {}, TypeError, "images"),
        (torch.zeros(2, 5, 4, 3), {}, ValueError, "images"),
        (torch.full((1, 3, 2, 2), torch.nan), {}, ValueError, "NaN"),
        (np.zeros((0, 4, 4, 3), np.uint8), {}, ValueError, "at least one"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"columns": 0}, ValueError, "columns"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"padding": -1}, ValueError, "padding"),
        (np.zeros((1, 4, 4, 3), np.uint8), {"background": 256}, ValueError, "background"),
    ],
)
def test_grid_names_the_bad_argument(images, options, error, words):
    with pytest.raises(error, match=words):
        image_grid(images, **options)


def test_to_uint8_passes_a_data_sets_images_through():
    images = np.zeros((2, 4, 4, 1), np.uint8)
    assert to_uint8(images) is images


def test_save_png_makes_folders_and_honours_the_umask(tmp_path):
    mask = os.umask(0o027)
    try:
        path = save_png(tmp_path / "new" / "a.png", np.zeros((2, 2, 3), np.uint8))
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert (read_png(path.read_bytes()) == 0).all()


def test_save_png_under_a_file_says_which_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"path: cannot write the image to .*file.a\.png"):
        save_png(tmp_path / "file" / "a.png", np.zeros((2, 2, 3), np.uint8))
