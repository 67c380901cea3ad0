import json
from pathlib import Path

import numpy as np
import pytest
import torch

from strucfast.metrics import hoyer

CASES = json.loads((Path(__file__).parents[1] / "data" / "divergences.json").read_text())["cases"]
CLOSE = {"rtol": 1e-12, "atol": 1e-13}


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "hoyer"])
def test_golden(case):
    codes, expected = np.array(case["inputs"]["z"]), case["expected"]
    np.testing.assert_allclose(hoyer(codes, normalise=False).per_sample, expected["hoyer_raw"], **CLOSE)
    result = hoyer(torch.from_numpy(codes))
    np.testing.assert_allclose(result.per_sample, expected["hoyer_normalised"], **CLOSE)
    np.testing.assert_allclose(result.std, expected["std"], **CLOSE)
    np.testing.assert_allclose(result.score, expected["sparsity"], **CLOSE)


def test_closed_forms():
    # k equal codes of D: (sqrt D - sqrt k) / (sqrt D - 1).
    rows = np.tril(np.ones((9, 9)))
    expected = (3 - np.sqrt(np.arange(1, 10))) / 2
    np.testing.assert_allclose(hoyer(rows, normalise=False).per_sample, expected, **CLOSE)
    # Neither the size of a row nor, with normalise, the unit of a code matters.
    values = np.random.default_rng(0).normal(size=(30, 5))
    scaled = hoyer(values * 10.0 ** np.array([-120, 0, 3, 140, 1])).per_sample
    np.testing.assert_allclose(scaled, hoyer(values).per_sample, rtol=1e-9)
    raw = hoyer(values * 1e-200, normalise=False).per_sample
    np.testing.assert_allclose(raw, hoyer(values, normalise=False).per_sample, rtol=1e-9)


def test_not_centred():
    values = np.random.default_rng(0).normal(size=(300, 4))
    assert hoyer(values + np.array([50, 0, 0, 0])).score > hoyer(values).score + 0.3


def test_constant_codes_and_zero_rows():
    values = np.random.default_rng(0).normal(size=(6, 2))
    values[2] = 0
    # The standard deviation of these equal values is a rounding error, which must not blow the code up.
    dead = np.column_stack([values, np.full(6, 0.1)])
    assert 0 < dead[:, 2].std() < 1e-16
    result = hoyer(dead)
    assert result.std[2] == 0 and result.share[2] == 0
    assert result.per_sample[2] == 0
    y = np.abs(dead[:, :2] / result.std[:2])
    root = np.sqrt(3)
    live = [0, 1, 3, 4, 5]
    expected = (root - y.sum(axis=1)[live] / np.sqrt((y**2).sum(axis=1))[live]) / (root - 1)
    np.testing.assert_allclose(result.per_sample[live], expected, **CLOSE)
    assert hoyer(np.ones((4, 3))).score == 0


def test_bad_input():
    with pytest.raises(ValueError, match="at least two codes, got one"):
        hoyer(np.zeros((5, 1)))
    with pytest.raises(ValueError, match="at least two samples"):
        hoyer(np.ones((1, 5)))
    assert hoyer(np.ones((1, 5)), normalise=False).score == 0
    with pytest.raises(ValueError, match="codes: expected finite values, got nan"):
        hoyer(np.full((5, 2), np.nan))
    with pytest.raises(ValueError, match="non-empty"):
        hoyer(np.zeros((0, 2)))


def test_table_dict_and_plot():
    result = hoyer(np.eye(3), code_names=("a", "b", "c"))
    assert str(result).splitlines()[0] == "Hoyer sparsity 1.0000  (3 samples)"
    assert str(result).splitlines()[3].split() == ["share", "0.3333", "0.3333", "0.3333"]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["score"] == 1
    assert [text.get_text() for text in result.plot().texts] == ["0.33"] * 3
