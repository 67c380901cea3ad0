"""Disentanglement metrics of codes that any program wrote: an .npz in, a table out.

python examples/metrics_on_arrays.py FILE.npz     codes (N, D) and factors (N, K, integers)
python examples/metrics_on_arrays.py [--quick]    writes such a file first, of known answers
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np

import strucfast as sf


def made_up(path: Path, rows: int) -> Path:
    """Three factors; z0 and z1 hold one each, z2 is a mixture of two, z3 is noise."""
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(n, size=rows) for n in (4, 5, 6)], axis=1)
    mixture = factors[:, 1] + 1.5 * factors[:, 2]
    codes = np.stack([factors[:, 0], factors[:, 1], mixture, np.zeros(rows)], axis=1)
    codes = codes + rng.normal(scale=0.1, size=codes.shape)
    np.savez(path, codes=codes.astype(np.float32), factors=factors, factor_names=["shape", "scale", "angle"])
    return path


def show(path: Path) -> None:
    stored = sf.metrics.load_codes(path)
    if stored.factors is None:
        raise SystemExit(f"{path}: no array 'factors' in it")
    half = len(stored.codes) * 2 // 3
    fitted, held_out = slice(None, half), slice(half, None)
    names = {"factor_names": stored.factor_names, "code_names": stored.code_names}
    codes, factors = stored.codes[fitted], stored.factors[fitted]
    test = stored.codes[held_out], stored.factors[held_out]
    results = {
        "mig": sf.metrics.mig(codes, factors, **names),
        "modularity": sf.metrics.modularity(codes, factors, **names),
        "sap": sf.metrics.sap(codes, factors, *test, **names),
        "dci": sf.metrics.dci(codes, factors, *test, **names),
    }
    print(f"{path.name}: {codes.shape[1]} codes, {factors.shape[1]} factors, {half} rows to fit on\n")
    for name, result in results.items():
        print(f"{name:12} {result.score:.3f}")
    print("\nWhich code tells about which factor:\n")
    print(results["mig"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", nargs="?", type=Path, help=".npz with codes and factors; default: one made up")
    parser.add_argument("--quick", action="store_true", help="few rows in the made-up file")
    options = parser.parse_args()
    if options.file is not None:
        show(options.file)
        return
    with tempfile.TemporaryDirectory() as folder:
        show(made_up(Path(folder) / "made_up.npz", 600 if options.quick else 6000))


if __name__ == "__main__":
    main()
