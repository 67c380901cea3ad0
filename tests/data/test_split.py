import numpy as np
import pytest

from strucfast.data import DSprites, split


def test_partition():
    parts = split(1003, seed=4)
    assert [len(part) for part in parts] == [702, 100, 201]
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1003))
    for part in parts:
        assert part.dtype == np.int64
        assert (np.diff(part) > 0).all()
    for first, second in zip(parts, split(1003, seed=4)):
        np.testing.assert_array_equal(first, second)
    assert not np.array_equal(parts[1], split(1003, seed=5)[1])


def test_data_set_and_shares():
    train, validation, test = split(DSprites(), (0.01, 0.0, 0.005), seed=1)
    assert (len(train), len(validation), len(test)) == (7373, 0, 3686)
    assert len(np.intersect1d(train, test)) == 0


@pytest.mark.parametrize("fractions", [(0.5, 0.5), (0.9, 0.2, 0.1), (-0.1, 0.5, 0.5), (float("nan"), 0.1, 0.1)])
def test_bad_fractions(fractions):
    with pytest.raises(ValueError, match="fractions: expected three shares"):
        split(100, fractions)


def test_a_share_without_rows():
    with pytest.raises(ValueError, match="leaves no row for validation"):
        split(3, (0.7, 0.1, 0.2))
