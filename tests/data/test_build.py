import numpy as np
import pytest

from strucfast import data


def test_names():
    assert isinstance(data.build("shapes3d"), data.Shapes3D)
    assert data.build("shapes3d", image_size=32).image_shape == (32, 32, 3)
    assert data.build("dsprites", image_size=32).image_shape == (32, 32, 1)
    own = data.Arrays(np.zeros((2, 8, 8), np.uint8))
    assert data.build(own, image_size=8) is own
    with pytest.raises(ValueError, match="image_size: expected 8"):
        data.build(own, image_size=64)


def test_paths(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((2, 64, 64, 3), np.uint8))
    assert data.build(tmp_path / "a.npy").image_shape == (64, 64, 3)
    assert data.build(str(tmp_path / "a.npy"), image_size=32).image_shape == (32, 32, 3)
    pillow = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install 'strucfast[images]'")
    pillow.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "a.png")
    assert isinstance(data.build(tmp_path), data.ImageFolder)


@pytest.mark.parametrize("name", ["shapes3d", "dsprites"])
def test_real_files_are_named(tmp_path, name):
    with pytest.raises(FileNotFoundError, match=r"missing\.h5: no such file"):
        data.build(f"{name}:{tmp_path / 'missing.h5'}")
    with pytest.raises(ValueError, match="expected a path after"):
        data.build(f"{name}:")


def test_unknown(tmp_path):
    with pytest.raises(ValueError, match=r"expected shapes3d, dsprites, .* got 'shape3d'"):
        data.build("shape3d")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        data.build(tmp_path / "nowhere.npz")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        data.build(tmp_path / "notes.txt")
