"""Images per second of the procedural renderers into a preallocated buffer, and of their numpy fallbacks."""

import numpy as np
import pytest
import torch

from strucfast import _native
from strucfast.data import DSprites, Shapes3D, _shapes3d_scene, dsprites, shapes3d

COUNT = 2048


def fallback_shapes3d(rows, out):
    _shapes3d_scene.render(rows, shapes3d.palette(), out)


@pytest.mark.parametrize("size", [32, 64])
@pytest.mark.parametrize(
    ("dataset", "fallback", "pool"),
    # The numpy scene ray casts each geometry on first use: few of them keep the benchmark short.
    [(Shapes3D, fallback_shapes3d, 480 * np.arange(1000)), (DSprites, dsprites._render, None)],
    ids=["shapes3d", "dsprites"],
)
def test_render(compare, dataset, fallback, pool, size):
    _native.host()
    ds, rng = dataset(image_size=size), np.random.default_rng(0)
    rows = rng.integers(len(ds), size=COUNT)
    few = rng.choice(np.arange(len(ds)) if pool is None else pool, COUNT)
    out = np.zeros((COUNT, *ds.image_shape), np.uint8)
    fallback(few, out)
    np.testing.assert_array_equal(out, ds.images(few))
    providers = {"strucfast": lambda: ds.images(rows, out=out), "numpy": lambda: fallback(few, out)}
    case = f"{COUNT}x{size}x{size}x{ds.image_shape[2]}"
    op = f"render_{ds.name}"
    stats = compare(op, case, "forward", torch.uint8, "channels_last", providers, moved=out.nbytes)
    print(f"\n{ds.name} {size}: {COUNT / stats['strucfast'].median_ms * 1e3:,.0f} images/s")
