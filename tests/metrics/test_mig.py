import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from strucfast import _native
from strucfast.metrics import _histogram, mig

CASES = json.loads((Path(__file__).parents[1] / "data" / "metrics.json").read_text())["cases"]
GRID = np.stack(np.unravel_index(np.arange(20), (4, 5)), axis=1)


@pytest.fixture(params=["host", "numpy"])
def backend(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setattr(_histogram, "host", lambda: None)
    elif _native.missing("host") is not None:
        pytest.skip(f"needs the host module (make build): {_native.missing('host')}")


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in CASES if c["kind"] == "codes"])
def test_golden(backend, case):
    inputs, expected = case["inputs"], case["expected"]
    codes, factors = np.array(inputs["z"]).T, np.array(inputs["v"]).T
    result = mig(codes, factors, bins=inputs["num_bins"])
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(result.score, expected["mig"], **close)
    np.testing.assert_allclose(result.per_factor, expected["mig_per_factor"], **close)
    np.testing.assert_allclose(result.mutual_information, expected["mi"], **close)
    np.testing.assert_allclose(result.factor_entropy, expected["factor_entropy"], **close)
    np.testing.assert_allclose(result.code_entropy, expected["code_entropy"], **close)
    labels = _histogram.bin_labels(
        np.ascontiguousarray(codes), _histogram.bin_edges(np.ascontiguousarray(codes), inputs["num_bins"])
    )
    np.testing.assert_array_equal(labels.T, expected["labels"])


def test_independent_codes_score_exactly_zero(backend):
    # Every combination once: the counts are those of independence, so no rounding may be left over.
    grid = np.stack(np.unravel_index(np.arange(4 * 5 * 6), (4, 5, 6)), axis=1)
    result = mig(grid[:, :1].astype(float), grid[:, 1:])
    assert result.score == 0
    assert (result.mutual_information == 0).all()


def test_one_code(backend):
    result = mig(GRID[:, :1].astype(float), GRID)
    np.testing.assert_allclose(result.per_factor, [1, 0], atol=1e-12)


def test_factor_with_one_value_is_left_out(backend):
    factors = np.column_stack([np.full(20, 7), GRID])
    result = mig(GRID.astype(float), factors, factor_names=("color", "x", "y"))
    assert result.score == pytest.approx(1, abs=1e-12)
    assert np.isnan(result.per_factor[0])
    assert result.to_dict()["per_factor"][0] is None
    with pytest.raises(ValueError, match="at least two values"):
        mig(GRID.astype(float), factors[:, :1])


def test_single_sample(backend):
    with pytest.raises(ValueError, match="at least two values"):
        mig(np.zeros((1, 2)), np.zeros((1, 1), int))


@pytest.mark.parametrize(
    "convert",
    [
        lambda z: z.astype(np.float32),
        lambda z: z.astype(np.float16),
        lambda z: z.astype(np.int64),
        lambda z: np.asfortranarray(z),
        lambda z: z.tolist(),
        lambda z: torch.from_numpy(z),
        lambda z: torch.from_numpy(z).bfloat16().requires_grad_(),
    ],
)
def test_kinds_of_codes(convert):
    expected = mig(GRID.astype(float), GRID)
    for factors in (GRID, torch.from_numpy(GRID), GRID.astype(np.float64), GRID.astype(np.uint8)):
        result = mig(convert(GRID.astype(np.float64)), factors)
        np.testing.assert_array_equal(result.mutual_information, expected.mutual_information)


def test_float32_codes_are_binned_with_float64_edges():
    # 0.1 steps in float32: with float32 edges some of these fall into other bins.
    codes = (np.arange(21, dtype=np.float32) * np.float32(0.1))[:, None]
    edges = np.linspace(float(codes.min()), float(codes.max()), 21)
    labels = np.searchsorted(edges[1:-1], codes[:, 0].astype(np.float64), side="right")
    result = mig(codes, labels[:, None])
    np.testing.assert_allclose(result.mutual_information[0, 0], result.factor_entropy[0], rtol=1e-12)


@pytest.mark.parametrize(
    ("codes", "factors", "error", "match"),
    [
        (np.zeros((5, 2)), np.zeros((4, 1), int), ValueError, "factors: expected 5 rows, as many as codes, got 4"),
        (np.zeros((0, 2)), np.zeros((0, 1), int), ValueError, r"codes: expected a non-empty array \(N, D\), got shape"),
        (np.zeros((5, 0)), np.zeros((5, 1), int), ValueError, "codes: expected a non-empty array"),
        (np.zeros(5), np.zeros((5, 1), int), ValueError, r"codes: .*\(N, D\), got shape \(5,\)"),
        (np.zeros((5, 2)), np.zeros(5, int), ValueError, r"factors: .*\(N, K\), got shape \(5,\)"),
        (np.zeros((5, 2)), np.full((5, 1), 0.5), ValueError, "factors: expected integers, got 0.5 in row 0, column 0"),
        (np.zeros((5, 2)), np.full((5, 1), np.nan), ValueError, "factors: expected integers, got nan"),
        (np.zeros((5, 2)), np.array([["a"]] * 5), TypeError, "factors: expected real numbers, got dtype <U1"),
        (np.zeros((5, 2), complex), np.zeros((5, 1), int), TypeError, "codes: expected real numbers"),
        (np.full((5, 2), np.nan), np.zeros((5, 1), int), ValueError, "codes: expected finite values, got nan in row 0"),
        ([[1.0], [1.0, 2.0]], np.zeros((2, 1), int), ValueError, "codes: expected a rectangular array"),
    ],
)
def test_bad_input(codes, factors, error, match):
    with pytest.raises(error, match=match):
        mig(codes, factors)


@pytest.mark.parametrize("bins", [0, -1, 2.5, True])
def test_bad_bins(bins):
    with pytest.raises(ValueError, match="bins: expected a positive integer"):
        mig(GRID.astype(float), GRID, bins=bins)


def test_names_table_and_dict():
    result = mig(GRID.astype(float), GRID, code_names=("first", "second"), factor_names=["x", "y"])
    lines = str(result).splitlines()
    assert lines[0].startswith("MIG 1.0000")
    assert lines[1].split() == ["x", "y"]
    assert lines[3].split() == ["first", "1.3863", "0.0000"]
    assert lines[-1].split() == ["gap", "1.0000", "1.0000"]
    assert repr(result) == str(result)
    saved = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert saved["factor_names"] == ["x", "y"]
    assert saved["score"] == result.score
    with pytest.raises(ValueError, match="code_names: expected 2 names, got 1"):
        mig(GRID.astype(float), GRID, code_names=["first"])


def test_plot():
    result = mig(GRID.astype(float), np.column_stack([GRID, np.zeros(20, int)]))
    ax = result.plot()
    assert [text.get_text() for text in ax.texts] == ["1.00", "0.00", "0.00", "0.00", "1.00", "0.00"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["v0", "v1", "v2"]
    from matplotlib.figure import Figure

    own = Figure().add_subplot()
    assert result.plot(own) is own


def test_matplotlib_is_only_imported_to_plot():
    import subprocess

    code = (
        "import numpy as np, sys; from strucfast.metrics import mig;"
        "mig(np.random.randn(9, 2), np.arange(9)[:, None]); sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
