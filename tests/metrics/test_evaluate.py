import numpy as np
import pytest
import torch

from strucfast import metrics
from strucfast.data import Arrays, DSprites


class Spy:
    """Encodes an image as the place of its sprite and a constant, and remembers how often it was asked."""

    def __init__(self, kind=np.asarray):
        self.kind, self.calls, self.seen = kind, 0, 0

    def __call__(self, images):
        assert images.dtype == np.uint8 and images.shape[1:] == (64, 64, 1)
        self.calls += 1
        self.seen += len(images)
        lit = (images[..., 0] > 0).astype(np.float32)
        total = lit.sum((1, 2))
        x = (lit.sum(1) * np.arange(64)).sum(1) / total
        y = (lit.sum(2) * np.arange(64)).sum(1) / total
        return self.kind(np.stack([x, y, np.ones_like(x)], 1))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_mig_of_a_known_code(kind):
    spy = Spy(kind)
    results = metrics.evaluate(spy, DSprites(), num_samples=2000, batch_size=300)
    assert (spy.calls, spy.seen) == (7, 2000)
    result = results["mig"]
    assert result.factor_names == DSprites().factor_names
    assert result.num_samples == 2000
    assert result.mutual_information[0].argmax() == 4
    assert result.mutual_information[1].argmax() == 5
    assert (result.per_factor[4:] > 0.6).all()
    assert (result.mutual_information[2] == 0).all()


def test_seed_decides():
    first, again, other = (
        metrics.evaluate(Spy(), DSprites(), ["mig"], seed=seed, num_samples=300)["mig"].score for seed in (1, 1, 2)
    )
    assert first == again != other


def test_rows_to_sample_from():
    rows = np.arange(1000, 1400)
    spy = Spy()
    result = metrics.evaluate(spy, DSprites(), "mig", indices=rows, num_samples=10_000)["mig"]
    assert spy.seen == result.num_samples == 400


def test_one_pass_feeds_all_metrics(monkeypatch):
    monkeypatch.setattr(metrics._evaluate, "_METRICS", dict(metrics._evaluate._METRICS))
    seen = []

    @metrics.register("spread")
    def spread(data):
        seen.append((data.codes, data.rng.integers(1 << 30)))
        return data.codes.std()

    spy = Spy()
    for _ in range(2):
        results = metrics.evaluate(spy, DSprites(), ("spread", "mig"), num_samples=100)
        assert list(results) == ["spread", "mig"]
    assert spy.seen == 200
    assert seen[0][1] == seen[1][1]
    assert "spread" in metrics.names()
    with pytest.raises(ValueError, match="registered already"):
        metrics.register("spread")(spread)


def test_bad_input():
    ds = DSprites()
    with pytest.raises(ValueError, match=r"metrics: expected names out of \['mig'\], got \['gim'\]"):
        metrics.evaluate(Spy(), ds, ["gim"])
    with pytest.raises(ValueError, match="num_samples: expected a positive number, got 0"):
        metrics.evaluate(Spy(), ds, num_samples=0)
    with pytest.raises(ValueError, match="indices: expected at least one row"):
        metrics.evaluate(Spy(), ds, indices=[])
    with pytest.raises(ValueError, match="expected known factors"):
        metrics.evaluate(Spy(), Arrays(np.zeros((4, 64, 64), np.uint8)))
    with pytest.raises(ValueError, match=r"encode: expected codes \(8, D\) for 8 images, got \(1, 3\)"):
        metrics.evaluate(lambda images: np.zeros((1, 3)), ds, num_samples=8)
    with pytest.raises(ValueError, match="codes: expected finite values, got nan"):
        metrics.evaluate(lambda images: np.full((len(images), 3), np.nan), ds, num_samples=8)
