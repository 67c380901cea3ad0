"""The checks of arguments: the quick question and the thorough ones must agree."""

import itertools

import numpy as np
import pytest
import torch

import strucfast as sf
from strucfast.ops import _validate

X = torch.randn(2, 6, 4)
GOOD = (X[:, :, 0], X[:, :, 0].clone(), X, None)
BAD = (
    2.0,
    torch.randn(6),
    torch.randn(2, 5),
    torch.randn(6, 2).t()[:, :5],
    torch.ones(2, 6, dtype=torch.int64),
    torch.randn(2, 6, 1),
    torch.empty(2, 6, device="meta"),
)


def _thorough(x, affine, per_channel=()):
    _validate.check_features("op", x)
    for value in (v for v in affine if v is not None):
        _validate.check_affine("op", "scale", value, x)
    for value in (v for v in per_channel if v is not None):
        _validate.check_per_channel("op", "weight", value, x)
    return _validate.unify_parameters(x, [*affine, *per_channel])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_plain_arguments_pass_every_check_unchanged(dtype):
    x = X.to(dtype)
    good = [None if v is None else v.to(dtype) for v in GOOD]
    for scale, shift in itertools.product(good, repeat=2):
        channel = torch.randn(6, dtype=dtype)
        assert _validate.is_plain(x, (scale, shift), (channel, None))
        unified = _thorough(x, (scale, shift), (channel, None))
        assert all(a is b for a, b in zip(unified, (scale, shift, channel, None)))


@pytest.mark.parametrize("bad", BAD, ids=lambda v: str(getattr(v, "shape", v)))
def test_what_is_wrong_is_never_plain(bad):
    for affine in ((bad, None), (GOOD[0], bad)):
        assert not _validate.is_plain(X, affine)
        with pytest.raises((TypeError, ValueError), match="op: scale must"):
            _thorough(X, affine)


@pytest.mark.parametrize("bad", [2.0, torch.randn(2, 6), torch.randn(5), torch.ones(6, dtype=torch.int32)], ids=str)
def test_a_wrong_weight_is_never_plain(bad):
    assert not _validate.is_plain(X, (None, None), (None, bad))
    with pytest.raises((TypeError, ValueError), match="op: weight must"):
        _thorough(X, (), (None, bad))


@pytest.mark.parametrize(
    "x", [1.0, torch.randn(6), torch.randn(1, 1, 1, 1, 1, 1), torch.ones(2, 3, dtype=torch.int8)], ids=str
)
def test_wrong_features_are_never_plain(x):
    assert not _validate.is_plain(x, ())
    with pytest.raises((TypeError, ValueError), match="op: x must"):
        _thorough(x, ())


def test_mixed_dtypes_are_valid_but_not_plain():
    x = X.bfloat16()
    assert not _validate.is_plain(x, (X, None)) and not _validate.is_plain(x, (None,), (torch.ones(6),))
    assert [t.dtype for t in _thorough(x, (X, X.bfloat16()))] == [torch.float32, torch.float32]


def test_integers_of_numpy_are_integers():
    z = torch.randn(4, 3)
    sized = sf.ops.aggregate_log_density(z, z, z, dataset_size=9, groups=[[0, 2], [1]])
    groups = [np.array([0, 2]), np.arange(1, 2)]
    of_numpy = sf.ops.aggregate_log_density(z, z, z, dataset_size=np.int64(9), groups=groups)
    torch.testing.assert_close(of_numpy, sized, rtol=0, atol=0)
    exponents = torch.tensor(2.0), torch.tensor([2.0, 2.0]), torch.tensor(1.0)
    expected = sf.ops.lp_nested_log_prob(z, (1, 2), *exponents)
    torch.testing.assert_close(sf.ops.lp_nested_log_prob(z, np.array([1, 2]), *exponents), expected, rtol=0, atol=0)
    expected = sf.ops.group_norm_modulate(X, 3)
    torch.testing.assert_close(sf.ops.group_norm_modulate(X, np.int32(3)), expected, rtol=0, atol=0)
    for value in (True, np.bool_(True), 3.0):
        with pytest.raises(TypeError, match="num_groups must be an int"):
            sf.ops.group_norm_modulate(X, value)
