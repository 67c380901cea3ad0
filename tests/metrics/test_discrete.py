import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import mutual_info_score

from strucfast.metrics import conditioning_measures, discretise, entropy, mutual_information, nmi

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def cases(kind):
    return [pytest.param(case, id=case["name"]) for case in CASES if case["kind"] == kind]


@pytest.mark.parametrize("case", cases("binning"))
def test_golden_bins(case):
    labels = discretise(np.array(case["inputs"]["x"])[:, None], case["inputs"]["num_bins"])
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels[:, 0], case["expected"]["labels"])


@pytest.mark.parametrize("case", cases("mi"))
def test_golden_information(case):
    a, b = (np.array(case["inputs"][name])[:, None] for name in "ab")
    np.testing.assert_allclose(mutual_information(a.astype(float), b)[0, 0], case["expected"]["mi"], **CLOSE)
    np.testing.assert_allclose(entropy(a), case["expected"]["h_a"], **CLOSE)
    np.testing.assert_allclose(entropy(b), case["expected"]["h_b"], **CLOSE)


@pytest.mark.parametrize("case", cases("nmi"))
def test_golden_nmi(case):
    inputs, expected = case["inputs"], case["expected"]
    result = nmi(np.array(inputs["c_r"]).T, np.array(inputs["c"]).T, inputs["num_bins"])
    np.testing.assert_allclose(result.score, expected["nmi"], **CLOSE)
    np.testing.assert_allclose(result.per_code, expected["per_dim"], **CLOSE)


def test_entropy_of_factors_and_torch():
    labels = np.array([[0, 5], [1, 5], [1, 5], [10**12, 5]])
    expected = [0.25 * np.log(4) * 2 + 0.5 * np.log(2), 0.0]
    np.testing.assert_allclose(entropy(labels), expected, **CLOSE)
    np.testing.assert_allclose(entropy(torch.from_numpy(labels)), expected, **CLOSE)
    assert not np.signbit(entropy(labels)[1])


def test_information_against_scikit_learn():
    rng = np.random.default_rng(0)
    factors = rng.integers(0, 5, (500, 2))
    codes = factors @ rng.normal(size=(2, 3)) + rng.normal(size=(500, 3))
    labels = discretise(codes, 13)
    expected = [[mutual_info_score(label, factor) for factor in factors.T] for label in labels.T]
    np.testing.assert_allclose(mutual_information(codes, factors, 13), expected, rtol=1e-10)


def test_nmi_is_matched_by_dimension_and_normalised_by_the_images_codes():
    rng = np.random.default_rng(1)
    codes = rng.normal(size=(400, 2))
    swapped = nmi(codes, codes[:, ::-1])
    assert swapped.score < 0.3 and nmi(codes, codes).score == pytest.approx(1, abs=1e-12)
    # A counterpart that keeps the sign only tells log 2 of a uniform code's log 20.
    even = np.tile(np.arange(20.0), 20)[:, None]
    kept = nmi(even, np.sign(even - 9.5))
    np.testing.assert_allclose(kept.score, np.log(2) / np.log(20), rtol=1e-12)
    np.testing.assert_allclose(nmi(np.sign(even - 9.5), even).score, 1, rtol=1e-12)
    assert nmi(np.ones((9, 1)), np.arange(9.0)[:, None]).score == 0


def test_conditioning_measures():
    rng = np.random.default_rng(2)
    c_r = rng.normal(size=(2000, 3)).astype(np.float32)
    codes = {
        "c_y": c_r + 0.1 * rng.normal(size=c_r.shape),
        "c_x": c_r + 0.05 * rng.normal(size=c_r.shape),
        "c_zeps": c_r + 0.2 * rng.normal(size=c_r.shape),
        "c_yeps": torch.from_numpy(rng.normal(size=c_r.shape)),
    }
    result = conditioning_measures(c_r, **codes, code_names=("a", "b", "c"))
    assert result.m2 > result.m1 > result.m3 > 5 * result.m4
    assert result.score == result.m3
    for value, row, other in zip((result.m1, result.m2, result.m3, result.m4), result.per_code, codes.values()):
        assert value == nmi(c_r, other).score
        np.testing.assert_array_equal(row, nmi(c_r, other).per_code)
    lines = str(result).splitlines()
    assert lines[1].split() == ["a", "b", "c", "mean"] and lines[3].split()[0] == "M1"
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["m4"] == result.m4
    assert [label.get_text() for label in result.plot().get_yticklabels()] == ["M1", "M2", "M3", "M4"]


def test_bad_input():
    good = np.arange(12.0).reshape(6, 2)
    nan = np.where(good == 3, np.nan, good)
    with pytest.raises(ValueError, match=r"reconstructed_codes: expected shape \(6, 2\).*got \(6, 1\)"):
        nmi(good, good[:, :1])
    with pytest.raises(ValueError, match="reconstructed_codes: expected finite values, got nan in row 1, column 1"):
        nmi(good, nan)
    with pytest.raises(ValueError, match="codes: expected finite values"):
        nmi(nan, good)
    with pytest.raises(ValueError, match=r"c_r: expected a non-empty array \(N, D\)"):
        conditioning_measures(np.zeros((0, 2)), good, good, good, good)
    with pytest.raises(ValueError, match="c_zeps: expected finite values"):
        conditioning_measures(good, good, good, nan, good)
    with pytest.raises(ValueError, match=r"c_yeps: expected shape \(6, 2\)"):
        conditioning_measures(good, good, good, good, good[:3])
    with pytest.raises(ValueError, match="bins: expected a positive integer"):
        discretise(good, 0)
    with pytest.raises(ValueError, match="labels: expected integers, got 0.5"):
        entropy(good + 0.5)
    with pytest.raises(ValueError, match="factors: expected 6 rows"):
        mutual_information(good, np.zeros((5, 1), int))


def test_table_and_plot():
    result = nmi(np.arange(12.0).reshape(6, 2), np.arange(12.0).reshape(6, 2), code_names=("a", "b"))
    lines = str(result).splitlines()
    assert lines[0].startswith("Normalised mutual information 1.0000")
    assert lines[-1].split() == ["normalised", "1.0000", "1.0000"]
    assert [text.get_text() for text in result.plot().texts] == ["1.00", "1.00"]
