import json

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


def grid(rows, sizes=(4, 5), seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, rows) for size in sizes], axis=1)


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_mig_of_a_known_code(kind):
    spy = Spy(kind)
    results = metrics.evaluate(spy, DSprites(), "mig", num_train=2000, num_test=100, batch_size=300)
    assert (spy.calls, spy.seen) == (7, 2100)
    result = results["mig"]
    assert result.factor_names == DSprites().factor_names
    assert result.num_samples == 2000
    assert result.mutual_information[0].argmax() == 4
    assert result.mutual_information[1].argmax() == 5
    assert (result.per_factor[4:] > 0.6).all()
    assert (result.mutual_information[2] == 0).all()
    assert (results.num_train, results.num_test) == (2000, 100)


def test_seed_decides():
    first, again, other = (
        metrics.evaluate(Spy(), DSprites(), ["mig"], seed=seed, num_train=300)["mig"].score for seed in (1, 1, 2)
    )
    assert first == again != other


def test_rows_to_sample_from():
    rows = np.arange(1000, 1400)
    spy = Spy()
    results = metrics.evaluate(spy, DSprites(), "mig", indices=rows)
    # Too few for 10,000 and 5,000: two thirds and one third, and all of them where nothing is fitted.
    assert (results.num_train, results.num_test) == (267, 133)
    assert spy.seen == results["mig"].num_samples == 400


@pytest.fixture
def registry(monkeypatch):
    monkeypatch.setattr(metrics._evaluate, "_METRICS", dict(metrics._evaluate._METRICS))


def test_one_pass_feeds_all_metrics(registry):
    seen = []

    @metrics.register("spread")
    def spread(data):
        seen.append((data.codes, data.rng.integers(1 << 30)))
        return data.codes.std()

    spy = Spy()
    for asked in (("spread", "mig"), ("mig", "spread", "mig")):
        results = metrics.evaluate(spy, DSprites(), asked, num_train=100, num_test=50)
        assert list(results) == list(dict.fromkeys(asked))
        assert list(results.seconds) == ["encoding", *results]
    assert spy.seen == 300
    # What a metric draws does not depend on the others.
    assert seen[0][1] == seen[1][1]
    np.testing.assert_array_equal(seen[0][0], seen[1][0])
    assert "spread" in metrics.names()
    with pytest.raises(ValueError, match="registered already"):
        metrics.register("spread")(spread)


def test_parts_are_disjoint_and_belong_together(registry):
    found = []
    metrics.register("look", default=False, needs_logvar=True)(lambda data: found.append(data) or 0.0)
    factors = np.arange(700)[:, None] % 350
    codes = np.stack([np.arange(700.0), factors[:, 0]], axis=1)
    logvar = np.repeat(-np.arange(700.0)[:, None], 2, axis=1)
    metrics.evaluate_codes(codes, factors, "look", logvar=logvar, num_train=400, num_test=100)
    metrics.evaluate_codes(codes[:90], factors[:90], "look", logvar=logvar[:90], num_train=400, num_test=100)
    for data, sizes in zip(found, [(400, 100, 400), (72, 18, 90)]):
        assert (len(data.codes), len(data.test_codes), len(data.sample_codes)) == sizes
        assert not set(data.codes[:, 0]) & set(data.test_codes[:, 0])
        for z, v in ((data.codes, data.factors), (data.test_codes, data.test_factors)):
            np.testing.assert_array_equal(z[:, 1], v[:, 0])
        np.testing.assert_array_equal(data.sample_codes[:, 1], data.sample_factors[:, 0])
        np.testing.assert_array_equal(data.sample_logvar[:, 0], -data.sample_codes[:, 0])
    assert set(found[0].sample_codes[:, 0]) == set(found[0].codes[:, 0])


def test_the_whole_suite_of_perfect_codes(tmp_path):
    factors = grid(900, (3, 4))
    codes = factors * [2.0, -1.0]
    logvar = np.full(codes.shape, -6.0)
    results = metrics.evaluate_codes(codes, factors, "all", logvar=logvar, factor_names=("shape", "size"), seed=3)
    assert set(results) == set(metrics.names())
    for name in ("mig", "dci", "modularity", "irs", "factor_vae_score", "beta_vae_score", "infomec"):
        assert results[name].score == pytest.approx(1, abs=0.03), name
    assert results["analytic_mig"].score > 0.9
    path = results.save(tmp_path / "results.json")
    saved = json.loads(path.read_text())
    assert (saved["num_train"], saved["num_test"], saved["seed"]) == (600, 300, 3)
    assert saved["metrics"]["mig"]["score"] == results["mig"].score
    assert list(saved["seconds"]) == list(saved["metrics"]) == list(results)
    assert [p.name for p in tmp_path.iterdir()] == ["results.json"]
    text = str(results)
    assert "600/300 rows, seed 3" in text and all(name in text for name in results)
    again = metrics.evaluate_codes(torch.from_numpy(codes), torch.from_numpy(factors), "all", logvar=logvar, seed=3)
    assert {n: r.score for n, r in again.items()} == {n: r.score for n, r in results.items()}


def test_saving_leaves_nothing_half_written(tmp_path, registry):
    metrics.register("odd")(lambda data: float("nan"))
    results = metrics.evaluate_codes(grid(30).astype(float), grid(30), "odd")
    with pytest.raises(ValueError):
        results.save(tmp_path / "results.json")
    with pytest.raises(OSError):
        metrics.evaluate_codes(grid(30).astype(float), grid(30), "mig").save(tmp_path / "none" / "results.json")
    assert list(tmp_path.iterdir()) == []


def test_default_metrics_are_named_and_posteriors_are_optional():
    assert set(metrics.names(default=True)) < set(metrics.names())
    codes, factors = grid(300).astype(float), grid(300)
    assert list(metrics.evaluate_codes(codes, factors)) == list(metrics.names(default=True))
    assert "analytic_mig" not in metrics.evaluate_codes(codes, factors, "all")
    with pytest.raises(ValueError, match="'analytic_mig' needs the posteriors' log-variances"):
        metrics.evaluate_codes(codes, factors, "analytic_mig")

    def encode(images):
        means = Spy()(images)
        return torch.from_numpy(means), torch.full(means.shape, -3.0)

    found = metrics.evaluate(encode, DSprites(), ("analytic_mig",), num_train=200, num_test=10)
    assert found["analytic_mig"].num_posteriors == 200


def test_what_cannot_be_computed_is_left_out_unless_it_was_named():
    codes, factors = grid(60)[:, :1].astype(float), grid(60)
    with pytest.warns(UserWarning, match="hoyer is left out: codes: expected at least two"):
        results = metrics.evaluate_codes(codes, factors)
    assert set(results) == set(results.seconds) == set(metrics.names(default=True)) - {"hoyer"}
    with pytest.raises(ValueError, match="codes: expected at least two"):
        metrics.evaluate_codes(codes, factors, ("mig", "hoyer"))


def test_progress(capsys):
    seen = []
    metrics.evaluate(
        Spy(), DSprites(), ("mig", "irs"), num_train=60, num_test=30, batch_size=50, progress=lambda *a: seen.append(a)
    )
    assert seen[:2] == [("encode", 50, 90), ("encode", 90, 90)]
    assert seen[2:] == [("mig", 0, 2), ("mig", 1, 2), ("irs", 1, 2), ("irs", 2, 2)]
    assert capsys.readouterr().err == ""
    metrics.evaluate(Spy(), DSprites(), "mig", num_train=60, num_test=30, progress=True)
    err = capsys.readouterr().err
    assert "encode" in err and "mig" in err


def test_bad_input():
    ds = DSprites()
    with pytest.raises(ValueError, match=r"metrics: expected names out of \[.*'mig'.*\] or 'all', got \['gim'\]"):
        metrics.evaluate(Spy(), ds, ["gim"])
    with pytest.raises(ValueError, match="metrics: expected names"):
        metrics.evaluate(Spy(), ds, ())
    with pytest.raises(ValueError, match="num_train: expected a positive integer, got 0"):
        metrics.evaluate(Spy(), ds, num_train=0)
    with pytest.raises(ValueError, match="num_test: expected an integer of at least 0, got -1"):
        metrics.evaluate(Spy(), ds, num_test=-1)
    with pytest.raises(ValueError, match="batch_size: expected a positive integer, got 2.5"):
        metrics.evaluate(Spy(), ds, batch_size=2.5)
    with pytest.raises(ValueError, match="indices: expected at least one row"):
        metrics.evaluate(Spy(), ds, indices=[])
    with pytest.raises(ValueError, match="expected known factors"):
        metrics.evaluate(Spy(), Arrays(np.zeros((4, 64, 64), np.uint8)))
    with pytest.raises(ValueError, match=r"encode: expected codes \(12, D\) for 12 images, got \(1, 3\)"):
        metrics.evaluate(lambda images: np.zeros((1, 3)), ds, num_train=8, num_test=4)
    with pytest.raises(ValueError, match="encode: expected codes or .* got a tuple of 3"):
        metrics.evaluate(lambda images: (1, 2, 3), ds, num_train=8)
    with pytest.raises(ValueError, match=r"logvar: expected the codes' shape \(8, 3\), got \(8, 2\)"):
        metrics.evaluate(lambda x: (np.zeros((len(x), 3)), np.zeros((len(x), 2))), ds, num_train=4, num_test=4)
    with pytest.raises(ValueError, match="codes: expected finite values, got nan"):
        metrics.evaluate(lambda images: np.full((len(images), 3), np.nan), ds, num_train=8)
    with pytest.raises(ValueError, match="factors: expected 5 rows"):
        metrics.evaluate_codes(np.zeros((5, 2)), np.zeros((4, 1), int))
    with pytest.raises(ValueError, match="factor_names: expected 1 names, got 2"):
        metrics.evaluate_codes(np.zeros((5, 2)), np.zeros((5, 1), int), factor_names=("a", "b"))
