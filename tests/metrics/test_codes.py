import h5py
import numpy as np
import pytest
import torch

from strucfast.metrics import load_codes, mig, save_codes

CODES = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
FACTORS = np.random.default_rng(1).integers(0, 3, (30, 2))
NAMES = {"code_names": ("a", "b", "c", "d"), "factor_names": ("hue", "größe")}


def test_round_trip(tmp_path):
    path = save_codes(tmp_path / "codes.h5", torch.from_numpy(CODES), FACTORS, indices=np.arange(30) * 7, **NAMES)
    data = load_codes(path)
    np.testing.assert_array_equal(data.codes, CODES)
    assert data.codes.dtype == np.float32
    np.testing.assert_array_equal(data.factors, FACTORS)
    np.testing.assert_array_equal(data.indices, np.arange(30) * 7)
    assert (data.code_names, data.factor_names) == (NAMES["code_names"], NAMES["factor_names"])
    assert mig(data.codes, data.factors, factor_names=data.factor_names).score >= 0


def test_codes_alone(tmp_path):
    data = load_codes(save_codes(tmp_path / "codes.h5", CODES.astype(np.float64)))
    assert data.codes.dtype == np.float64
    assert data.factors is data.indices is data.code_names is data.factor_names is None


def test_npz(tmp_path):
    np.savez(tmp_path / "codes.npz", codes=CODES, factors=FACTORS, factor_names=np.array(["x", "y"]))
    data = load_codes(tmp_path / "codes.npz")
    np.testing.assert_array_equal(data.codes, CODES)
    assert data.factor_names == ("x", "y")


def test_nothing_half_written(tmp_path):
    path = save_codes(tmp_path / "codes.h5", CODES)
    with pytest.raises(ValueError, match="codes: expected finite values"):
        save_codes(path, np.full((3, 2), np.nan))
    with pytest.raises(ValueError, match="factors: expected 30 rows"):
        save_codes(path, CODES, FACTORS[:3])
    with pytest.raises(ValueError, match="factor_names: expected 2 names, got 1"):
        save_codes(path, CODES, FACTORS, factor_names=["x"])
    with pytest.raises(ValueError, match="factor_names: expected none without factors"):
        save_codes(path, CODES, factor_names=["x"])
    with pytest.raises(ValueError, match="indices"):
        save_codes(path, CODES, indices=np.zeros(30))
    np.testing.assert_array_equal(load_codes(path).codes, CODES)
    assert [file.name for file in tmp_path.iterdir()] == ["codes.h5"]


@pytest.mark.parametrize("suffix", [".h5", ".npz"])
def test_bad_files(tmp_path, suffix):
    path = tmp_path / f"c{suffix}"

    def write(**fields):
        if suffix == ".npz":
            np.savez(path, **fields)
        else:
            with h5py.File(path, "w") as file:
                for name, value in fields.items():
                    file[name] = value

    with pytest.raises(FileNotFoundError, match=rf"c{suffix}: no such file"):
        load_codes(path)
    path.write_text("nothing of the kind")
    with pytest.raises(ValueError, match=rf"c{suffix}: field 'codes': not a readable"):
        load_codes(path)
    write(factors=FACTORS)
    with pytest.raises(ValueError, match=r"field 'codes': missing; the file has \['factors'\]"):
        load_codes(path)
    write(codes=CODES, factors=FACTORS[:4])
    with pytest.raises(ValueError, match=rf"c{suffix}: field factors: expected 30 rows"):
        load_codes(path)
    write(codes=CODES[0])
    with pytest.raises(ValueError, match=rf"c{suffix}: field codes: expected a non-empty array"):
        load_codes(path)
    write(codes=CODES)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=rf"c{suffix}: field 'codes': not a readable"):
        load_codes(path)


def test_log_variances(tmp_path):
    codes, logvar = np.random.default_rng(0).normal(size=(2, 7, 3))
    for path in (save_codes(tmp_path / "codes.h5", codes, logvar=logvar), tmp_path / "codes.npz"):
        np.savez(tmp_path / "codes.npz", codes=codes, logvar=logvar)
        np.testing.assert_array_equal(load_codes(path).logvar, logvar)
    with pytest.raises(ValueError, match=r"logvar: expected the codes' shape \(7, 3\), got \(7, 2\)"):
        save_codes(tmp_path / "codes.h5", codes, logvar=logvar[:, :2])
    np.savez(tmp_path / "codes.npz", codes=codes, logvar=logvar * np.nan)
    with pytest.raises(ValueError, match="field logvar: expected finite values"):
        load_codes(tmp_path / "codes.npz")
