import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest
import torch

from strucfast import _native
from strucfast.data import Shapes3D, _host, _shapes3d_scene, shapes3d
from strucfast.data._files import H5Field

needs_host = pytest.mark.skipif(
    _native.missing("host") is not None, reason=f"native host module: {_native.missing('host')}"
)


@pytest.fixture(scope="module")
def ds():
    return Shapes3D()


def row(**factors):
    values = [factors.get(name, 0) for name in shapes3d.FACTOR_NAMES]
    return int(np.ravel_multi_index(values, shapes3d.FACTOR_SIZES))


def test_grid(ds):
    assert len(ds) == 480_000
    assert ds.image_shape == (64, 64, 3)
    assert dict(zip(ds.factor_names, ds.factor_sizes)) == {
        "floor_hue": 10,
        "wall_hue": 10,
        "object_hue": 10,
        "scale": 8,
        "shape": 4,
        "orientation": 15,
    }
    # The row order of 3dshapes.h5: orientation runs fastest, floor hue slowest.
    assert ds.factors([0, 1, 15, 60, 480, 4800, 48000, 479_999]).tolist() == [
        [0, 0, 0, 0, 0, 0],
        [0, 0, 0, 0, 0, 1],
        [0, 0, 0, 0, 1, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 1, 0, 0, 0],
        [0, 1, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0],
        [9, 9, 9, 7, 3, 14],
    ]


def test_factors_and_index_are_inverse(ds):
    rows = np.random.default_rng(0).permutation(len(ds))[:5000]
    np.testing.assert_array_equal(ds.index(ds.factors(rows)), rows)


@needs_host
@pytest.mark.parametrize("size", [32, 64])
def test_native_geometry_equals_numpy(size):
    layers = shapes3d._native_layers(size)
    for number in range(0, 480, 73):
        difference = layers[number].astype(int) - _shapes3d_scene.geometry(number, size)
        assert np.abs(difference).max() <= 1


@needs_host
@pytest.mark.parametrize("size", [32, 64, 128])
def test_native_recolouring_equals_numpy(size):
    rows = np.random.default_rng(1).integers(480_000, size=100)
    layers, palette = shapes3d._native_layers(size), shapes3d.palette()
    images = np.full((len(rows), size, size, 3), 7, np.uint8)
    _native.host().render_shapes3d(layers, palette, rows, images, 1)
    for image, index in zip(images, rows):
        hues, number = divmod(index, 480)
        colours = palette[[0, 1, 2], [hues // 100, hues // 10 % 10, hues % 10]].astype(int)
        parts = layers[number].astype(int)
        expected = (parts[:3].T @ colours + 256 * parts[3, :, None] + 128) >> 8
        np.testing.assert_array_equal(image.reshape(-1, 3), expected)


@needs_host
def test_threads_do_not_change_images():
    # Enough rows for three threads of the smallest share that is worth one.
    rows = np.random.default_rng(5).integers(480_000, size=7000)
    one, three = (np.zeros((len(rows), 32, 32, 3), np.uint8) for _ in range(2))
    for images, threads in ((one, 1), (three, 3)):
        _native.host().render_shapes3d(shapes3d._native_layers(32), shapes3d.palette(), rows, images, threads)
    np.testing.assert_array_equal(one, three)


def test_without_the_native_module_the_pictures_are_the_same(ds, monkeypatch):
    rows = np.array([0, 480 * 123 + 77, 479_999])
    expected = ds.images(rows)

    def gone():
        raise RuntimeError("not built on this machine")

    monkeypatch.setattr(_native, "host", gone)
    _host.host.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="not built on this machine"):
            slow = Shapes3D()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            images = slow.images(rows)
    finally:
        _host.host.cache_clear()
    assert np.abs(images.astype(int) - expected).max() <= 1


def test_factors_mean_what_they_say(ds):
    hue = lambda image, y, x: np.argsort(image[y, x]).tolist()  # noqa: E731
    plain = ds.images([row(floor_hue=0, wall_hue=3, object_hue=7, scale=7, shape=2, orientation=7)])[0]
    # Red floor in the front, green wall at the top, blue-violet ball in the middle.
    assert hue(plain, 62, 32)[-1] == 0
    assert hue(plain, 1, 10)[-1] == 1
    assert hue(plain, 32, 32)[-1] == 2
    for name, size in zip(ds.factor_names, ds.factor_sizes):
        series = ds.images([row(**{"scale": 4, "object_hue": 5, "wall_hue": 2, name: value}) for value in range(size)])
        flat = series.reshape(size, -1).astype(int)
        distance = np.abs(flat[:, None] - flat[None]).mean(axis=2)
        assert distance[~np.eye(size, dtype=bool)].min() > 0.2, f"two values of {name} look alike"


@pytest.mark.parametrize(("shape", "least"), [(0, 0.36), (1, 0.3), (2, 0.36), (3, 0.24)])
def test_object_is_large_in_the_frame(ds, shape, least):
    layers = _shapes3d_scene.geometry(7 * 60 + shape * 15 + 12, 64)[2].reshape(64, 64)
    columns = np.flatnonzero(layers.max(axis=0) > 20)
    assert least <= (columns[-1] - columns[0] + 1) / 64 <= 0.6
    # Nothing touches the frame.
    assert layers[0].max() == layers[-1].max() == 0


def test_shadow_is_soft_and_edges_are_smooth(ds):
    floor = _shapes3d_scene.geometry(7 * 60 + 2 * 15 + 7, 64)[0].reshape(64, 64)
    assert len(np.unique(floor)) > 60
    assert floor[40:].max() > 1.5 * np.min(floor[40:][floor[40:] > 60])


def test_half_size_is_the_area_average(ds):
    rows = np.random.default_rng(2).integers(480_000, size=64)
    large = ds.images(rows).reshape(64, 32, 2, 32, 2, 3).mean(axis=(2, 4))
    assert np.abs(Shapes3D(image_size=32).images(rows) - large).mean() < 0.6


def test_out_buffer(ds):
    out = np.empty((3, 64, 64, 3), np.uint8)
    assert ds.images([5, 5, 9], out=out) is out
    np.testing.assert_array_equal(out, ds.images([5, 5, 9]))
    assert ds.images([]).shape == (0, 64, 64, 3)


@pytest.mark.parametrize(
    ("out", "error", "match"),
    [
        (np.empty((2, 64, 64, 3), np.float32), TypeError, "out: expected dtype uint8, got float32"),
        (np.empty((3, 64, 64, 3), np.uint8), ValueError, r"out: expected shape \(2, 64, 64, 3\)"),
        (np.empty((2, 64, 3, 64), np.uint8).swapaxes(2, 3), ValueError, "C-contiguous"),
        (torch.empty(2, 64, 64, 3, dtype=torch.uint8), TypeError, "expected a numpy array"),
    ],
)
def test_bad_out(ds, out, error, match):
    with pytest.raises(error, match=match):
        ds.images([0, 1], out=out)


@pytest.mark.parametrize(
    ("indices", "error", "match"),
    [
        ([480_000], IndexError, r"\[0, 480000\), got 480000 at position 0"),
        ([0, -1], IndexError, "got -1 at position 1"),
        ([0.0, 1.0], TypeError, "expected integers, got dtype float64"),
        ([True, False], TypeError, "got dtype bool"),
        ([[0], [1]], ValueError, "expected 1 axes"),
        (3, ValueError, "expected 1 axes"),
    ],
)
def test_bad_indices(ds, indices, error, match):
    for method in (ds.images, ds.factors):
        with pytest.raises(error, match=match):
            method(indices)


def test_bad_factors(ds):
    with pytest.raises(ValueError, match=r"expected shape \(N, 6\)"):
        ds.index([[0, 0, 0]])
    with pytest.raises(ValueError, match=r"shape in \[0, 4\), got 4 in row 1"):
        ds.index([[0] * 6, [0, 0, 0, 0, 4, 0]])
    with pytest.raises(ValueError, match="image_size: expected one of"):
        Shapes3D(image_size=48)


def test_torch_indices_and_data_loader(ds):
    rows = torch.tensor([3, 400_000])
    np.testing.assert_array_equal(ds.images(rows), ds.images(rows.numpy()))
    loader = torch.utils.data.DataLoader(
        torch.utils.data.Subset(ds, range(0, 480_000, 30_000)), batch_size=4, num_workers=2
    )
    batches = torch.cat(list(loader))
    np.testing.assert_array_equal(batches.numpy(), ds.images(np.arange(0, 480_000, 30_000)))


@needs_host
def test_native_module_checks_its_arguments():
    host, palette = _native.host(), shapes3d.palette()
    layers, out = shapes3d._native_layers(32), np.empty((1, 32, 32, 3), np.uint8)
    with pytest.raises(ValueError, match=r"indices: expected values in \[0, 480000\), got 480000"):
        host.render_shapes3d(layers, palette, np.array([480_000]), out, 1)
    with pytest.raises(ValueError, match="out: expected shape"):
        host.render_shapes3d(layers, palette, np.array([0, 1]), out, 1)
    with pytest.raises(TypeError):
        host.render_shapes3d(layers, palette, np.array([0.0]), out, 1)
    with pytest.raises(ValueError, match="image_size"):
        host.shapes3d_geometry(7, 1)


# The real file's layout with a smaller grid: 2 hues each, 2 scales, 4 shapes, 3 orientations.
SIZES = (2, 2, 2, 2, 4, 3)


def write_h5(path, images=None, labels=None, **options):
    count = int(np.prod(SIZES))
    grid = np.stack(np.unravel_index(np.arange(count), SIZES), 1)
    if images is None:
        images = np.random.default_rng(3).integers(0, 256, (count, 64, 64, 3), np.uint8)
    if labels is None:
        labels = np.array([0.1, 0.1, 0.1, 0.5 / 7, 1, 30]) * grid + np.array([0, 0, 0, 0.75, 0, -30])
    with h5py.File(path, "w") as file:
        file.create_dataset("images", data=images, **options)
        file.create_dataset("labels", data=labels)
    return images


@pytest.mark.parametrize("options", [{}, {"compression": "gzip", "chunks": (5, 64, 64, 3)}])
def test_real_file(tmp_path, options):
    images = write_h5(tmp_path / "3dshapes.h5", **options)
    ds = Shapes3D(path=tmp_path / "3dshapes.h5")
    assert len(ds) == len(images)
    assert ds.factor_sizes == SIZES
    rows = np.array([17, 3, 4, 5, 190, 3, 0])
    np.testing.assert_array_equal(ds.images(rows), images[rows])
    np.testing.assert_array_equal(ds.index(ds.factors(rows)), rows)
    assert ds.factors([len(ds) - 1]).tolist() == [[s - 1 for s in SIZES]]
    # The handle that the parent holds open must not disturb its workers.
    loader = torch.utils.data.DataLoader(ds, batch_size=16, num_workers=2)
    np.testing.assert_array_equal(torch.cat(list(loader)).numpy(), images)
    small = Shapes3D(path=str(tmp_path / "3dshapes.h5"), image_size=32).images(rows)
    mean = images[rows].reshape(-1, 32, 2, 32, 2, 3).mean((2, 4))
    np.testing.assert_array_equal(small, np.floor(mean + 0.5))


def test_file_is_read_from_threads_and_copies(tmp_path):
    images = write_h5(tmp_path / "3dshapes.h5", compression="gzip", chunks=(5, 64, 64, 3))
    ds = Shapes3D(path=tmp_path / "3dshapes.h5")
    parts = np.random.default_rng(4).permutation(192).reshape(16, 12)
    with ThreadPoolExecutor(4) as pool:
        for rows, part in zip(parts, pool.map(ds.images, parts)):
            np.testing.assert_array_equal(part, images[rows])
    write_h5(tmp_path / "plain.h5")
    for path in ("3dshapes.h5", "plain.h5"):
        ds = Shapes3D(path=tmp_path / path)
        # What a spawned DataLoader worker gets.
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(ds)).images([5, 100]), ds.images([5, 100]))


def test_slow_layout_is_said(tmp_path, caplog):
    images = np.zeros((300, 64, 64, 3), np.uint8)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("images", data=images, chunks=(300, 4, 4, 1))
    H5Field(tmp_path / "a.h5", "images")
    assert "a.h5: field 'images' is stored in chunks (300, 4, 4, 1)" in caplog.text
    assert "h5repack -l images:CONTI" in caplog.text


def test_damaged_real_files(tmp_path):
    path = tmp_path / "3dshapes.h5"
    with pytest.raises(FileNotFoundError, match=r"3dshapes\.h5: no such file"):
        Shapes3D(path=path)
    path.write_bytes(b"not a file of this kind")
    with pytest.raises(ValueError, match=r"3dshapes\.h5: field 'images': not a readable HDF5 file"):
        Shapes3D(path=path)
    with h5py.File(path, "w") as file:
        file["pictures"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"field 'images': missing; the file has \['pictures'\]"):
        Shapes3D(path=path)
    write_h5(path, images=np.zeros((192, 64, 64), np.uint8))
    with pytest.raises(ValueError, match=r"field 'images': expected shape \(N, 64, 64, 3\), got \(192, 64, 64\)"):
        Shapes3D(path=path)
    write_h5(path, images=np.zeros((192, 64, 64, 3), np.float32), compression="gzip")
    with pytest.raises(ValueError, match="field 'images': expected dtype uint8, got float32"):
        Shapes3D(path=path)
    write_h5(path, labels=np.zeros((192, 5)))
    with pytest.raises(ValueError, match="field 'labels': expected shape"):
        Shapes3D(path=path)
    write_h5(path, labels=np.zeros((192, 6)))
    with pytest.raises(ValueError, match="field 'labels': expected every combination of the factors once"):
        Shapes3D(path=path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
@pytest.mark.parametrize("options", [{}, {"chunks": (16, 64, 64, 3)}])
def test_truncated_real_file(tmp_path, keep, options):
    path = tmp_path / "3dshapes.h5"
    write_h5(path, **options)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    with pytest.raises(ValueError, match=r"3dshapes\.h5: field 'images'"):
        Shapes3D(path=path).images(np.arange(192))


def test_damaged_chunk_is_named(tmp_path):
    path = tmp_path / "3dshapes.h5"
    write_h5(path, compression="gzip", chunks=(16, 64, 64, 3))
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info(5)
    with open(path, "r+b") as file:
        file.seek(chunk.byte_offset + 20)
        file.write(b"\xff" * 4000)
    ds = Shapes3D(path=path)
    ds.images([0])
    with pytest.raises(ValueError, match=r"field 'images': cannot be read, the file is damaged"):
        ds.images(np.arange(192))


def test_to_device(tmp_path):
    write_h5(tmp_path / "a.h5")
    ds = Shapes3D(path=tmp_path / "a.h5")
    held = ds.to_device("cpu")
    rows = torch.tensor([7, 7, 150])
    assert held.tensor.dtype == torch.uint8
    np.testing.assert_array_equal(held.images(rows).numpy(), ds.images(rows))
    np.testing.assert_array_equal(held.index(held.factors(rows)).numpy(), rows)
    with pytest.raises(TypeError, match="indices"):
        held.images([0.5])
