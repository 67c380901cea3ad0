import json
import statistics

import pytest

from strucfast.training import ConfigError, Run, RunFolderError, Trainer, train_seeds
from strucfast.training.seeds import summary_table


def test_runs_summary_and_going_on(tiny, tmp_path):
    config = tiny(train__steps=3, train__eval_every=0, train__seeds=(0, 5))
    summary = train_seeds(config, tmp_path / "runs", num_images=60)
    assert summary["seeds"] == [0, 5]
    group = Run(tmp_path / "runs")
    assert [run.path.name for run in group.seeds] == ["seed-0", "seed-5"]
    losses = [run.scalars("last")["best_loss"] for run in group.seeds]
    assert losses[0] != losses[1]
    assert summary["figures"]["validation_loss"]["mean"] == pytest.approx(statistics.fmean(losses))
    assert summary["figures"]["validation_loss"]["std"] == pytest.approx(statistics.stdev(losses))
    assert {"psnr", "mig", "seconds"} <= set(summary["figures"])
    assert json.loads((tmp_path / "runs" / "summary.json").read_text()) == summary
    table = summary_table(summary)
    assert "2 seeds (0, 5)" in table
    assert "deviation" in table
    # the same as a run by itself
    single = tiny(train__steps=3, train__eval_every=0, train__seed=5)
    assert Trainer(single, tmp_path / "single").fit().scalars("last")["best_loss"] == losses[1]

    with pytest.raises(RunFolderError, match="holds a run already"):
        train_seeds(config, tmp_path / "runs")
    # finished runs are kept, new seeds are trained
    config.train.seeds = (0, 5, 6)
    again = train_seeds(config, tmp_path / "runs", resume=True, num_images=60)
    assert again["figures"]["validation_loss"]["values"][:2] == losses
    assert again["figures"]["psnr"]["values"][:2] == summary["figures"]["psnr"]["values"]
    assert len(again["figures"]["mig"]["values"]) == 3


def test_no_seeds(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.seeds: expected at least one"):
        train_seeds(tiny(), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_score_that_is_not_defined_has_no_mean(tiny, tmp_path, monkeypatch):
    from strucfast.training import seeds

    evaluate = seeds.evaluate_run

    class Found:
        def __init__(self, run, num_images):
            self.figures = evaluate(run, num_images=num_images, metrics="mig").to_dict()
            self.figures["metrics"]["gaussian_total_correlation"] = {"score": None}

        def to_dict(self):
            return self.figures

    monkeypatch.setattr(seeds, "evaluate_run", Found)
    config = tiny(train__steps=2, train__eval_every=0, train__seeds=(0,))
    summary = train_seeds(config, tmp_path / "runs", num_images=20)
    assert "mig" in summary["figures"] and "gaussian_total_correlation" not in summary["figures"]
