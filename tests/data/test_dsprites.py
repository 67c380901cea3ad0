import pickle
import zipfile

import numpy as np
import pytest

from strucfast import _native
from strucfast.data import DSprites, _host, dsprites


@pytest.fixture(scope="module")
def ds():
    return DSprites()


def test_grid(ds):
    assert len(ds) == 737_280
    assert ds.image_shape == (64, 64, 1)
    assert ds.factor_names == ("color", "shape", "scale", "orientation", "x", "y")
    assert ds.factor_sizes == (1, 3, 6, 40, 32, 32)
    # The row order of the real file: y runs fastest.
    assert ds.factors([1, 32, 1024, 40 * 1024, 6 * 40 * 1024]).tolist() == [
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
    ]
    rows = np.random.default_rng(0).permutation(len(ds))[:5000]
    np.testing.assert_array_equal(ds.index(ds.factors(rows)), rows)


def test_binary_and_never_clipped(ds):
    rows = ds.index([[0, s, 5, o, x, y] for s in range(3) for o in range(40) for x in (0, 31) for y in (0, 31)])
    images = ds.images(rows)
    assert set(np.unique(images)) == {0, 255}
    # A sprite has as many pixels in every corner of the frame as in its middle.
    middle = ds.images(ds.index([[0, s, 5, o, 16, 16] for s in range(3) for o in range(40)]))
    count = (images > 0).sum((1, 2, 3)).reshape(-1, 4)
    np.testing.assert_array_equal(count, np.repeat((middle > 0).sum((1, 2, 3))[:, None], 4, axis=1))
    # Real dSprites lights 4.25% of its pixels.
    assert 0.035 < (ds.images(np.arange(0, len(ds), 97)) > 0).mean() < 0.05


def test_factors_mean_what_they_say(ds):
    def centre(**factors):
        row = [factors.get(name, 3) for name in ds.factor_names]
        row[0] = 0
        row[1] = factors.get("shape", 1)
        ys, xs = np.nonzero(ds.images(ds.index([row]))[0, ..., 0])
        return xs.mean(), ys.mean(), len(xs)

    x0, y0, _ = centre(x=0, y=0)
    assert centre(x=10, y=0)[:2] == pytest.approx((x0 + 10, y0))
    assert centre(x=0, y=31)[:2] == pytest.approx((x0, y0 + 31))
    sizes = [centre(scale=s)[2] for s in range(6)]
    assert sizes == sorted(sizes)
    assert sizes[5] == pytest.approx(4 * sizes[0], rel=0.1)
    # Squares fill their box, ellipses pi/4 of it; first and last orientation are the same turn.
    box = {}
    for shape in range(3):
        image = ds.images(ds.index([[0, shape, 5, 0, 16, 16]]))[0, ..., 0]
        ys, xs = np.nonzero(image)
        box[shape] = len(xs) / ((np.ptp(xs) + 1) * (np.ptp(ys) + 1))
    assert box[0] == 1
    assert box[1] == pytest.approx(np.pi / 4, abs=0.05)
    assert 0.5 < box[2] < 0.8
    first, last, quarter = ds.images(ds.index([[0, 2, 5, turn, 16, 16] for turn in (0, 39, 10)]))
    np.testing.assert_array_equal(first, last)
    assert (first != quarter).any()


@pytest.mark.parametrize("size", [32, 64])
def test_native_equals_numpy(size):
    reason = _native.missing("host")
    if reason is not None:
        pytest.skip(f"needs the host module (make build): {reason}")
    # Enough rows for three threads of the smallest share that is worth one.
    rows = np.random.default_rng(1).integers(737_280, size=13_000 if size == 64 else 50_000)
    one, three = (np.full((len(rows), size, size, 1), 7, np.uint8) for _ in range(2))
    for images, threads in ((one, 1), (three, 3)):
        _native.host().render_dsprites(dsprites.sprites(size), rows, images, threads)
    np.testing.assert_array_equal(one, three)
    expected = np.empty((500, size, size, 1), np.uint8)
    dsprites._render(rows[:500], expected)
    np.testing.assert_array_equal(one[:500], expected)


def test_half_size_is_the_area_average(ds):
    rows = np.random.default_rng(2).integers(len(ds), size=500)
    mean = ds.images(rows).reshape(-1, 32, 2, 32, 2, 1).mean((2, 4))
    np.testing.assert_array_equal(DSprites(image_size=32).images(rows), np.floor(mean + 0.5))


def test_without_the_native_module(ds, monkeypatch):
    def gone():
        raise RuntimeError("not built")

    monkeypatch.setattr(_native, "host", gone)
    _host.host.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="not built"):
            images = ds.images([5, 737_279])
    finally:
        _host.host.cache_clear()
    monkeypatch.undo()
    np.testing.assert_array_equal(images, ds.images([5, 737_279]))


SIZES = (1, 3, 2, 4, 2, 3)


def fields(**changes):
    count = int(np.prod(SIZES))
    grid = np.stack(np.unravel_index(np.arange(count), SIZES), 1)
    images = np.random.default_rng(3).integers(0, 2, (count, 64, 64), np.uint8)
    named = {"imgs": images, "latents_classes": grid, "latents_values": grid * 0.5, **changes}
    return {name: value for name, value in named.items() if value is not None}


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("size", [32, 64])
def test_real_file(tmp_path, save, size):
    path = tmp_path / "dsprites.npz"
    data = fields()
    save(path, **data)
    ds = DSprites(path=path, image_size=size)
    assert ds.factor_sizes == SIZES
    rows = np.array([5, 5, 143, 0, 77])
    expected = data["imgs"][rows][..., None] * 255
    if size == 32:
        expected = np.floor(expected.reshape(-1, 32, 2, 32, 2, 1).mean((2, 4)) + 0.5)
    np.testing.assert_array_equal(ds.images(rows), expected)
    np.testing.assert_array_equal(ds.factors(rows), data["latents_classes"][rows])
    np.testing.assert_array_equal(ds.index(ds.factors(rows)), rows)
    # What a spawned DataLoader worker gets.
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(ds)).images(rows), expected)


def test_compressed_images_are_kept_as_bits(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **fields())
    ds = DSprites(path=tmp_path / "a.npz")
    ds.images([0])
    assert ds._file._packed.nbytes == len(ds) * 64 * 64 // 8


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"imgs": None}, r"a\.npz: field 'imgs': missing; the file has \['latents_classes', 'latents_values'\]"),
        ({"latents_values": None}, "field 'latents_values': missing"),
        (
            {"imgs": np.zeros((144, 32, 32), np.uint8)},
            r"field 'imgs': expected shape \(N, 64, 64\), got \(144, 32, 32\)",
        ),
        ({"imgs": np.zeros((144, 64, 64))}, "field 'imgs': expected dtype uint8, got float64"),
        ({"latents_classes": np.zeros((144, 6))}, "field 'latents_classes': expected dtype integer, got float64"),
        (
            {"latents_classes": np.zeros((9, 6), int)},
            r"field 'latents_classes': expected shape \(144, 6\), got \(9, 6\)",
        ),
        ({"latents_classes": np.zeros((144, 6), int)}, "field 'latents_classes': expected every combination"),
        ({"imgs": np.array([[object()]])}, "field 'imgs': expected a C-ordered array of numbers"),
    ],
)
def test_wrong_fields(tmp_path, changes, match):
    np.savez_compressed(tmp_path / "a.npz", **fields(**changes))
    with pytest.raises(ValueError, match=match):
        DSprites(path=tmp_path / "a.npz")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_files(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, **fields())
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=r"a\.npz: field 'imgs': not a readable npz file"):
        DSprites(path=path)
    path.write_text("nothing")
    with pytest.raises(ValueError, match=r"a\.npz: field 'imgs': not a readable npz file"):
        DSprites(path=path)
    with pytest.raises(FileNotFoundError, match=r"b\.npz: no such file"):
        DSprites(path=tmp_path / "b.npz")


def test_damaged_data_are_found_when_read(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, **fields())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("imgs.npy").header_offset
    with open(path, "r+b") as file:
        file.seek(start + 3000)
        file.write(b"\xff" * 2000)
    ds = DSprites(path=path)
    with pytest.raises(ValueError, match=r"a\.npz: field 'imgs': cannot be read, the file is damaged"):
        ds.images([0])


def test_images_that_are_not_binary(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", **fields(imgs=np.full((144, 64, 64), 255, np.uint8)))
    with pytest.raises(ValueError, match="field 'imgs': expected binary images"):
        DSprites(path=tmp_path / "a.npz").images([0])


def test_bad_arguments(ds):
    with pytest.raises(ValueError, match="image_size: expected one of"):
        DSprites(image_size=48)
    with pytest.raises(IndexError, match="737280"):
        ds.images([737_280])
