import h5py
import numpy as np
import pytest

from strucfast.data import Arrays

IMAGES = np.random.default_rng(0).integers(0, 256, (10, 20, 24, 3), np.uint8)
FACTORS = np.stack([np.arange(10) % 2, np.arange(10) // 2], 1)
ROWS = np.array([9, 0, 3, 3])


def write(path, **fields):
    if path.suffix == ".npy":
        np.save(path, fields["images"])
    elif path.suffix == ".npz":
        np.savez(path, **fields)
    else:
        with h5py.File(path, "w") as file:
            for name, value in fields.items():
                file[name] = value
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_files(tmp_path, suffix):
    ds = Arrays(write(tmp_path / f"mine{suffix}", images=IMAGES))
    assert (len(ds), ds.image_shape, ds.name) == (10, (20, 24, 3), "mine")
    assert ds.factor_names == () and ds.factors(ROWS).shape == (4, 0)
    np.testing.assert_array_equal(ds.images(ROWS), IMAGES[ROWS])


def test_compressed_npz(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES)
    np.testing.assert_array_equal(Arrays(tmp_path / "a.npz").images(ROWS), IMAGES[ROWS])


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (IMAGES[..., 0], IMAGES[..., :1]),
        (IMAGES.transpose(0, 3, 1, 2).copy(), IMAGES),
        ((IMAGES / 255).astype(np.float32), IMAGES),
        (IMAGES > 100, (IMAGES > 100) * 255),
    ],
)
def test_layouts_and_dtypes(array, expected):
    np.testing.assert_array_equal(Arrays(array).images(ROWS), expected[ROWS])


def test_resize_is_an_area_average_of_the_middle_square():
    square = IMAGES[:, :, 2:22].astype(float)
    half = square.reshape(10, 10, 2, 10, 2, 3).mean((2, 4))
    assert np.abs(Arrays(IMAGES, 10).images(ROWS) - half[ROWS]).max() <= 0.5
    fifth = square.reshape(10, 5, 4, 5, 4, 3).mean((2, 4))
    assert np.abs(Arrays(IMAGES, 5).images(ROWS) - fifth[ROWS]).max() <= 0.5 + 1e-4
    # 20 pixels to 8: each takes 2.5.
    weights = np.zeros((8, 20))
    for i in range(8):
        for j in range(20):
            weights[i, j] = max(0, min(2.5 * (i + 1), j + 1) - max(2.5 * i, j)) / 2.5
    exact = np.einsum("ij,njkc,lk->nilc", weights, square, weights)
    assert np.abs(Arrays(IMAGES, 8).images(ROWS) - exact[ROWS]).max() <= 0.5 + 1e-4


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_factors_in_the_file(tmp_path, suffix):
    ds = Arrays(write(tmp_path / f"a{suffix}", images=IMAGES, factors=FACTORS))
    assert (ds.factor_names, ds.factor_sizes) == (("factor_0", "factor_1"), (2, 5))
    np.testing.assert_array_equal(ds.factors(ROWS), FACTORS[ROWS])
    np.testing.assert_array_equal(ds.index(FACTORS[ROWS]), ROWS)
    with pytest.raises(ValueError, match=r"no image has \(0, 7\)"):
        ds.index([[0, 7]])


def test_factor_arguments():
    ds = Arrays(IMAGES, factors=FACTORS, factor_names=("side", "row"), name="own")
    assert (ds.name, ds.factor_names) == ("own", ("side", "row"))
    with pytest.raises(ValueError, match="factors: expected 10 rows"):
        Arrays(IMAGES, factors=FACTORS[:4])
    with pytest.raises(TypeError, match="factors: expected integers"):
        Arrays(IMAGES, factors=FACTORS * 0.5)
    with pytest.raises(ValueError, match="factor_names: expected 2 names, got 1"):
        Arrays(IMAGES, factors=FACTORS, factor_names=("side",))
    with pytest.raises(ValueError, match="not known"):
        Arrays(IMAGES).index([[0, 0]])


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_which_field(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    np.testing.assert_array_equal(Arrays(write(path, other=np.zeros(3), photos=IMAGES)).images(ROWS), IMAGES[ROWS])
    np.testing.assert_array_equal(Arrays(write(path, imgs=IMAGES, b=IMAGES[:2])).images(ROWS), IMAGES[ROWS])
    with pytest.raises(ValueError, match=rf"a{suffix}: field 'images'.* the file has left \(10.*, right \(10"):
        Arrays(write(path, left=IMAGES, right=IMAGES))
    with pytest.raises(ValueError, match="field 'images'"):
        Arrays(write(path, other=np.zeros(3)))


@pytest.mark.parametrize(
    ("array", "error", "match"),
    [
        (np.zeros((4, 5)), ValueError, "expected .N,H,W"),
        (np.zeros((4, 8, 8, 2)), ValueError, "C in"),
        (np.zeros((0, 8, 8, 3)), ValueError, "at least one image"),
        (np.zeros((4, 8, 8, 3), np.int64), TypeError, "expected uint8, bool or float images, got dtype int64"),
        (np.zeros((4, 8, 8, 3), np.complex64), TypeError, "got dtype complex64"),
    ],
)
def test_bad_arrays(array, error, match):
    with pytest.raises(error, match=match):
        Arrays(array)


def test_bad_values_and_sizes():
    for value in (np.nan, 1.5, -0.1):
        with pytest.raises(ValueError, match=r"expected floats in \[0, 1\]"):
            Arrays(np.full((2, 8, 8, 1), value)).images([0])
    with pytest.raises(ValueError, match="image_size: expected 1 to 20"):
        Arrays(IMAGES, 64)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    with pytest.raises(FileNotFoundError, match=rf"a{suffix}: no such file"):
        Arrays(path)
    write(path, images=IMAGES)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(ValueError, match=rf"a{suffix}: field '(images|array)'"):
        Arrays(path).images(ROWS)
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=rf"a{suffix}: field '(images|array)': not a readable"):
        Arrays(path)
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ValueError, match=r"a\.txt: expected a \.npy"):
        Arrays(tmp_path / "a.txt")
