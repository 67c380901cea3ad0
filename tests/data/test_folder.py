import sys

import numpy as np
import pytest

from strucfast.data import ImageFolder

Image = pytest.importorskip("PIL.Image", reason="reading image files needs Pillow: pip install 'strucfast[images]'")
PIXELS = np.random.default_rng(0).integers(0, 256, (4, 40, 48, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    for name, pixels in zip(("b.png", "a.PNG", "sub/c.png"), PIXELS):
        Image.fromarray(pixels).save(tmp_path / name, format="PNG")
    smooth = np.repeat(np.linspace(0, 255, 48).astype(np.uint8)[None, :, None], 40, 0).repeat(3, 2)
    Image.fromarray(smooth).save(tmp_path / "d.jpg", quality=95)
    (tmp_path / "notes.txt").write_text("not an image")
    return tmp_path


def test_images(folder):
    ds = ImageFolder(folder, image_size=40)
    assert [file.name for file in ds.files] == ["a.PNG", "b.png", "d.jpg", "c.png"]
    assert (len(ds), ds.image_shape) == (4, (40, 40, 3))
    images = ds.images([3, 1, 0, 0])
    np.testing.assert_array_equal(images, PIXELS[[2, 0, 1, 1], :, 4:44])
    half = ImageFolder(folder, image_size=20).images([1])
    assert np.abs(half[0] - PIXELS[0, :, 4:44].reshape(20, 2, 20, 2, 3).mean((1, 3))).max() <= 0.5
    ramp = ds.images([2])[0, 20, :, 0].astype(int)
    assert (np.diff(ramp) > 0).mean() > 0.9
    assert ds.factors([0, 1]).shape == (2, 0)


def test_grey(folder, tmp_path_factory):
    other = tmp_path_factory.mktemp("grey")
    Image.fromarray(PIXELS[0, ..., 0]).save(other / "g.png")
    ds = ImageFolder(other, image_size=40)
    assert ds.image_shape == (40, 40, 1)
    np.testing.assert_array_equal(ds.images([0])[0, ..., 0], PIXELS[0, :, 4:44, 0])
    assert ImageFolder(folder, 40, channels=1).images([0]).shape == (1, 40, 40, 1)
    with pytest.raises(ValueError, match="channels"):
        ImageFolder(folder, 40, channels=2)


def test_bad_folders(folder, tmp_path_factory):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        ImageFolder(folder / "nowhere")
    with pytest.raises(NotADirectoryError, match="got a file"):
        ImageFolder(folder / "notes.txt")
    with pytest.raises(ValueError, match="expected image files"):
        ImageFolder(tmp_path_factory.mktemp("empty"))
    with pytest.raises(ValueError, match=r"b\.png: image_size: expected at most 40"):
        ImageFolder(folder, image_size=64).images([1])
    data = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"b\.png: not a readable image"):
        ImageFolder(folder, image_size=32).images([1])


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pip install 'strucfast\[images\]'"):
        ImageFolder(folder)
