import json
import math

import numpy as np
import pytest
import torch

from strucfast import metrics, plots
from strucfast.training import Trainer
from strucfast.training.evaluation import (
    encode,
    evaluate_run,
    mean_and_deviation,
    metrics_of,
    psnr,
    stored_codes,
)
from strucfast.training.report import write_run_report


@pytest.fixture
def run(tiny, tmp_path):
    return Trainer(tiny(train__steps=4, train__eval_every=0), tmp_path / "run").fit()


def test_psnr_is_the_mean_over_images():
    assert psnr(np.array([0.01, 0.001])) == pytest.approx(25.0)
    assert psnr(np.array([0.0])) == pytest.approx(100.0)


def test_encoding_against_the_model_by_hand(run):
    model, dataset, indices = run.load_model(), run.dataset(), run.splits()[2][:7]
    codes, errors = encode(model, dataset, indices, batch_size=3)
    with torch.no_grad():
        x = torch.from_numpy(dataset.images(indices)).permute(0, 3, 1, 2) / 255.0
        z = model.encode(x).mean
        reconstruction = model.decode(z)
    np.testing.assert_allclose(codes, z.numpy(), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(errors, ((reconstruction - x) ** 2).mean((1, 2, 3)).numpy(), rtol=1e-4)
    with pytest.raises(ValueError, match="indices: expected at least one image"):
        encode(model, dataset, indices[:0])


def test_evaluating_a_run_leaves_codes_and_figures(run):
    evaluation = evaluate_run(run, num_images=150)
    assert evaluation.codes.shape == (150, 4)
    assert evaluation.factors.shape == (150, 6)
    assert set(evaluation.indices) <= set(run.splits()[2])
    expected = metrics.mig(evaluation.codes, evaluation.factors).score
    assert evaluation.metrics["mig"].score == pytest.approx(expected)
    stored = metrics.load_codes(run.path / "codes.h5")
    np.testing.assert_array_equal(stored.codes, evaluation.codes)
    np.testing.assert_array_equal(stored.factors, evaluation.factors)
    assert tuple(stored.factor_names) == run.dataset().factor_names
    figures = json.loads((run.path / "evaluation.json").read_text())
    assert figures["step"] == 4
    assert figures["psnr"] == pytest.approx(evaluation.psnr)
    assert 5 < figures["psnr"] < 40
    assert figures["metrics"]["mig"]["score"] == pytest.approx(expected)
    assert "PSNR" in evaluation.table()
    # the same images and figures again
    assert evaluate_run(run, num_images=150).psnr == evaluation.psnr


def test_posteriors_of_a_vae_reach_the_analytic_mig(tiny, tmp_path):
    config = tiny(model__name="beta-vae", train__steps=2, train__eval_every=0)
    config.model.overrides = {"width": 8, "blocks": 3, "latent_dim": 4}
    run = Trainer(config, tmp_path / "run").fit()
    evaluation = evaluate_run(run, num_images=60, metrics="all")
    assert tuple(evaluation.metrics) == metrics.names()
    model, dataset = run.load_model(), run.dataset()
    x = torch.from_numpy(dataset.images(evaluation.indices)).permute(0, 3, 1, 2) / 255.0
    with torch.no_grad():
        logvar = model.posterior(x)[1].numpy()
    np.testing.assert_allclose(evaluation.logvar, logvar, rtol=1e-3, atol=1e-4)
    stored = metrics.load_codes(run.path / "codes.h5")
    np.testing.assert_array_equal(stored.logvar, evaluation.logvar)
    write_run_report(run)


def test_no_metrics_and_few(run):
    assert evaluate_run(run, num_images=50, metrics=()).metrics == {}
    few = evaluate_run(run, num_images=50, metrics=("mig", "irs", "mig"))
    assert tuple(few.metrics) == ("mig", "irs") and "entropy" in few.table() and "entropy" not in few.table(False)
    assert few.logvar is None and metrics.load_codes(run.path / "codes.h5").logvar is None
    assert list(few.to_dict()["seconds"]) == ["encoding", "mig", "irs"]


def test_unknown_metric():
    with pytest.raises(ValueError, match="unknown metric 'migg'; did you mean 'mig'"):
        metrics_of(np.zeros((3, 2)), np.zeros((3, 1), dtype=np.int64), ("migg",))


def test_data_without_factors(tiny, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "own.npy", images)
    run = Trainer(tiny(data__spec=str(tmp_path / "own.npy"), train__steps=2), tmp_path / "run").fit()
    evaluation = evaluate_run(run)
    assert evaluation.metrics == {}
    assert len(evaluation.codes) == 12
    assert "no known factors" in evaluation.table()
    page = write_run_report(run)
    assert "<html" in page.read_text()


def test_report_reuses_the_codes_of_the_same_checkpoint(run, monkeypatch):
    from strucfast.training import report

    evaluate_run(run, num_images=100)
    seen = {}
    write = plots.write_report

    def remember(path, **options):
        seen.update(options)
        return write(path, **options)

    monkeypatch.setattr(plots, "write_report", remember)
    monkeypatch.setattr(report, "evaluate_run", lambda *_: pytest.fail("evaluated again"))
    page = write_run_report(run)
    assert page == run.path / "report.html"
    assert seen["metrics"]["mig"].score == pytest.approx(run.evaluation()["metrics"]["mig"]["score"])
    assert seen["timings"]["training"] == run.scalars("last")["seconds"]
    monkeypatch.undo()
    (run.path / "evaluation.json").unlink()
    monkeypatch.setattr(report, "evaluate_run", lambda run, which: evaluate_run(run, which, num_images=60))
    write_run_report(run)
    assert run.evaluation()["images"] == 60


def test_stored_codes_are_of_training_images(run):
    model = run.load_model()
    codes = stored_codes(run, model, 16)
    assert codes.shape == (16, 4)
    everything = stored_codes(run, model, 16)
    assert torch.equal(codes, everything)


def test_mean_and_deviation():
    assert mean_and_deviation([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(math.sqrt(2)), "values": [1.0, 3.0]}
    assert mean_and_deviation([4.0])["std"] == 0.0
