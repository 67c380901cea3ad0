import threading

import numpy as np
import pytest
import torch

from strucfast.training.batches import BatchOrder, HostBatches, step_seed, to_float


def test_every_epoch_visits_every_image_once_in_another_order():
    order = BatchOrder(np.arange(100, 123), batch_size=5, seed=3)
    stream = np.concatenate([order(step) for step in range(23)])
    epochs = stream.reshape(5, 23)
    for epoch in epochs:
        assert sorted(epoch) == list(range(100, 123))
    assert not np.array_equal(epochs[0], epochs[1])


def test_any_step_in_any_order_of_asking():
    first = BatchOrder(np.arange(50), 8, seed=1)
    steps = [40, 3, 17, 0, 39, 3]
    forward = [BatchOrder(np.arange(50), 8, seed=1)(step) for step in steps]
    for step, expected in zip(steps, forward):
        assert np.array_equal(first(step), expected)


def test_seeds_give_different_orders():
    assert not np.array_equal(BatchOrder(np.arange(99), 50, 0)(0), BatchOrder(np.arange(99), 50, 1)(0))


def test_batch_larger_than_the_data():
    batch = BatchOrder(np.arange(3), 8, seed=0)(0)
    assert sorted(np.bincount(batch)) in ([2, 3, 3],)


def test_processes_share_a_global_batch():
    whole = BatchOrder(np.arange(40), 6, seed=2)
    parts = [BatchOrder(np.arange(40), 3, seed=2, rank=r, world_size=2) for r in range(2)]
    for step in range(15):
        assert np.array_equal(whole(step), np.concatenate([part(step) for part in parts]))


def test_no_images():
    with pytest.raises(ValueError, match="indices: expected at least one training image"):
        BatchOrder(np.arange(0), 4, seed=0)
    with pytest.raises(ValueError, match="batch_size: expected at least 1, got 0"):
        BatchOrder(np.arange(3), 0, seed=0)


class Counting:
    """Images that hold their own number; remembers the threads it was read from."""

    image_shape = (2, 2, 1)

    def __init__(self):
        self.threads = set()

    def images(self, indices, out):
        self.threads.add(threading.current_thread())
        out[:] = np.asarray(indices, dtype=np.uint8)[:, None, None, None]
        return out


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_fetching_ahead_keeps_the_order(workers):
    data, order = Counting(), BatchOrder(np.arange(97), 4, seed=0)
    batches = HostBatches(data, order, start=5, device=torch.device("cpu"), workers=workers)
    for step in range(5, 60):
        images = batches.next()
        assert images.dtype == torch.uint8
        assert np.array_equal(images[:, 0, 0, 0], order(step))
    batches.close()
    assert (threading.main_thread() in data.threads) == (workers == 0)


def test_a_failing_reader_is_heard():
    class Broken(Counting):
        def images(self, indices, out):
            raise OSError("disk gone")

    batches = HostBatches(Broken(), BatchOrder(np.arange(9), 4, 0), 0, torch.device("cpu"), workers=1)
    with pytest.raises(OSError, match="disk gone"):
        batches.next()
    batches.close()


def test_to_float_moves_nothing():
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 3), dtype=np.uint8)
    x = to_float(images)
    assert x.shape == (3, 3, 4, 5)
    assert x.dtype == torch.float32
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    white = to_float(np.full((1, 2, 2, 1), 255, np.uint8))
    assert white.max() == 1
    unit = torch.rand(2, 4, 4, 3, dtype=torch.float64)
    assert torch.equal(to_float(unit), unit.permute(0, 3, 1, 2).float())


@pytest.mark.parametrize(
    ("images", "kind", "message"),
    [
        (np.zeros((2, 4, 4, 3), np.int64), TypeError, "expected uint8, or floating point in .0, 1., got torch.int64"),
        (np.zeros((2, 4, 4, 3), bool), TypeError, "got torch.bool"),
        (np.full((2, 4, 4, 3), 7.0), ValueError, r"expected values in \[0, 1\], got \[7, 7\]"),
        (np.full((2, 4, 4, 3), -0.5), ValueError, r"expected values in \[0, 1\]"),
        (np.full((2, 4, 4, 3), np.nan), ValueError, r"expected values in \[0, 1\], got \[nan, nan\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), ValueError, "got an empty batch of shape"),
        (np.zeros((4, 4, 3), np.uint8), ValueError, r"expected \(N, H, W, C\), got shape \(4, 4, 3\)"),
        (np.zeros((2, 3, 4, 4), np.uint8), ValueError, "expected 3 channels in the last axis"),
    ],
)
def test_bad_images(images, kind, message):
    with pytest.raises(kind, match=message):
        to_float(images, channels=3)


def test_step_seeds_differ_and_fit_63_bits():
    seeds = {step_seed(seed, step, rank) for seed in range(8) for step in range(64) for rank in range(-1, 3)}
    assert len(seeds) == 8 * 64 * 4
    assert all(0 <= seed < 1 << 63 for seed in seeds)
    assert step_seed(1, 2) == step_seed(1, 2, 0)
