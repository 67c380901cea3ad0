import json
import os
import subprocess
import sys

import numpy as np
import pytest

from strucfast import cli
from strucfast.training import Run, TrainConfig

TINY = [
    "--model.image-size", "32", "--model.overrides", "width=8", "blocks=3", "hidden=[8]", "latent-dim=4",
    "--train.steps", "4", "--train.batch-size", "8", "--train.eval-every", "0", "--train.eval-images", "16",
    "--train.device", "cpu", "--train.threads", "1", "--log.progress", "none", "--log.no-tensorboard",
]  # fmt: skip


def run(*arguments, code=0):
    assert cli.main([str(a) for a in arguments]) == code


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli") / "run"
    run("train", "sae-2", "--out", folder, *TINY)
    return folder


def png_size(path):
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_help_names_every_command_and_preset(capsys):
    run("--help")
    text = capsys.readouterr().out
    for name in ("demo", "train", "evaluate", "sample", "traverse", "report", "data", "info", "sae-12"):
        assert name in text
    run(code=2)


@pytest.mark.parametrize("command", ["demo", "train", "evaluate", "sample", "traverse", "report", "info"])
def test_help_of_each_command(capsys, command):
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert f"usage: strucfast {command}" in text


def test_every_field_of_the_configuration_is_an_option(capsys):
    import dataclasses

    with pytest.raises(SystemExit):
        cli.main(["train", "sae-12", "--help"])
    text = capsys.readouterr().out
    for section in dataclasses.fields(TrainConfig):
        for field in dataclasses.fields(section.default_factory()):
            assert f"--{section.name}.{field.name.replace('_', '-')}" in text


def test_the_command_starts_as_a_module_too():
    command = [sys.executable, "-m", "strucfast", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ})
    assert done.returncode == 0
    assert done.stdout.startswith("strucfast 0.")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trian"], "unknown command 'trian'; did you mean 'train'?"),
        (["train", "sae12"], "unknown preset 'sae12'; did you mean 'sae-12'"),
        (["train"], "expected a preset, a config.yaml, or a run folder with --resume; presets: ae,"),
        (["train", "sae-12", "--train.steps", "0"], "train.steps: expected at least 1, got 0"),
        (["train", "none.yaml"], "none.yaml: cannot be read: No such file or directory"),
        (["train", "runs/none"], "expected a preset, a .yaml file, or a run folder"),
        (["train", "sae-12", "--resume", "--out", "none"], "none: no run to resume there"),
        (["train", "sae-2", "--data.spec", "shape3d"], "got 'shape3d'"),
        (["train", "sae-2", "--data.spec", "shapes3d:none.h5"], "none.h5"),
        (["train", "sae-2", "--model.overrides", "widht=3"], "widht"),
        (["evaluate", "none"], "none: no run there"),
        (["evaluate", "none.h5"], "none.h5"),
        (["sample", "none"], "none: no run there"),
        (["traverse", "none"], "none: no run there"),
        (["report", "none"], "none: no run there"),
        (["data", "inf"], "unknown command 'data inf'; did you mean 'info'"),
        (["data", "info", "nothing"], "got 'nothing'"),
    ],
)
def test_errors_are_one_line_without_a_traceback(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    run(*arguments, code=2)
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert err.startswith(f"strucfast {arguments[0]}: error: " if arguments[0] != "trian" else "strucfast: error: ")
    assert list(tmp_path.iterdir()) == []


def test_wrong_option_ends_with_2(capsys):
    with pytest.raises(SystemExit) as ended:
        cli.main(["train", "sae-12", "--optim.learning-rat", "1"])
    assert ended.value.code == 2
    assert "--optim.learning-rate" in capsys.readouterr().err


def test_debug_shows_where(capsys, tmp_path):
    run("evaluate", tmp_path / "none", "--debug", code=2)
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "no run there" in err


def test_options_reach_the_run(trained):
    config = Run(trained).config
    assert config.model.name == "sae-2"
    assert config.model.overrides == {"width": 8, "blocks": 3, "hidden": [8], "latent_dim": 4}
    assert (config.train.steps, config.train.batch_size) == (4, 8)
    assert Run(trained).scalars("last")["step"] == 4


def test_overrides_add_to_those_of_the_preset(monkeypatch):
    default = TrainConfig()
    default.model.overrides = {"width": 16, "blocks": 6}
    arguments = ["--model.overrides", "width=32", "hidden=[4,5]", "--optim.betas", "0.5", "0.9"]
    arguments += ["--train.seeds", "1", "2"]
    options = cli._parse(cli.TrainOptions, arguments, "test", cli.TrainOptions(default))
    assert options.config.model.overrides == {"width": 32, "blocks": 6, "hidden": [4, 5]}
    assert options.config.optim.betas == (0.5, 0.9)
    assert options.config.train.seeds == (1, 2)
    assert cli._parse(cli.TrainOptions, [], "test", cli.TrainOptions(default)).config == default


def test_existing_run_resume_and_overwrite(capsys, tmp_path):
    folder = tmp_path / "run"
    run("train", "sae-2", "--out", folder, *TINY)
    run("train", "sae-2", "--out", folder, *TINY, code=2)
    assert "holds a run already; go on with it (--resume) or replace it (--overwrite)" in capsys.readouterr().err
    run("train", folder, code=2)
    assert "is a run; go on with it: strucfast train" in capsys.readouterr().err
    run("train", folder, "--resume", "--train.steps", "6")
    assert Run(folder).scalars("last")["step"] == 6
    run("train", "--resume", folder, "--train.steps", "7")
    assert Run(folder).scalars("last")["step"] == 7
    run("train", "sae-2", "--out", folder, "--resume", "--train.steps", "8")
    assert Run(folder).scalars("last")["step"] == 8
    assert Run(folder).config.train.batch_size == 8
    run("train", "ae", "--out", folder, "--resume", code=2)
    assert "holds a run of sae-2, not of ae" in capsys.readouterr().err
    run("train", "sae-2", "--out", folder, "--overwrite", *TINY)
    assert Run(folder).scalars("last")["step"] == 4


def test_config_file(trained, tmp_path):
    run("train", trained / "config.yaml", "--out", tmp_path / "again")
    a, b = (Run(path).scalars("last")["best_loss"] for path in (trained, tmp_path / "again"))
    assert a == b


def test_several_seeds(capsys, tmp_path, monkeypatch):
    from strucfast.training import seeds

    evaluate = seeds.evaluate_run
    monkeypatch.setattr(seeds, "evaluate_run", lambda run, num_images: evaluate(run, num_images=40))
    run("train", "sae-2", "--out", tmp_path / "s", *TINY, "--train.seeds", "3", "4")
    out = capsys.readouterr().out
    assert "2 seeds (3, 4)" in out
    assert json.loads((tmp_path / "s" / "summary.json").read_text())["seeds"] == [3, 4]
    run("report", tmp_path / "s", code=2)
    assert "holds several runs; choose one of" in capsys.readouterr().err


def test_evaluate_a_run_and_then_its_codes(capsys, trained):
    from strucfast import metrics

    run("evaluate", trained, "--num-images", "80")
    first = capsys.readouterr().out
    assert "PSNR" in first
    assert "held-out images  80" in first
    assert "54/26 rows" in first
    found = json.loads((trained / "evaluation.json").read_text())["metrics"]
    assert tuple(found) == metrics.names(default=True)
    run("evaluate", trained / "codes.h5", "--out", trained / "again.json")
    again = capsys.readouterr().out
    for name, result in found.items():
        assert f"{name} " in first and f"{result['score']:.4f}" in first and f"{result['score']:.4f}" in again
    saved = json.loads((trained / "again.json").read_text())["metrics"]
    assert {name: r["score"] for name, r in saved.items()} == {name: r["score"] for name, r in found.items()}
    run("report", trained)
    page = (trained / "report.html").read_text()
    assert all(f"<td>{name}</td>" in page or f">{name}<" in page for name in found if name != "mig")


def test_evaluate_npz(capsys, tmp_path):
    factors = np.random.default_rng(0).integers(0, 5, (2000, 2))
    codes = factors.astype(np.float32)
    np.savez(tmp_path / "codes.npz", codes=codes, factors=factors)
    from strucfast import metrics

    score = metrics.mig(codes, factors).score
    run("evaluate", tmp_path / "codes.npz", "--metrics", "mig", "irs")
    out = capsys.readouterr().out
    # few metrics show their matrices
    assert f"MIG {score:.4f}" in out and "z1" in out and "1334/666 rows" in out
    run("evaluate", tmp_path / "codes.npz", "--metrics", "all", "--num-images", "300", "--seed", "4")
    out = capsys.readouterr().out
    assert "200/100 rows, seed 4" in out and "z1" not in out
    assert all(f"\n{name} " in out for name in metrics.names() if name != "analytic_mig")
    assert "analytic_mig" not in out
    np.savez(tmp_path / "posteriors.npz", codes=codes, factors=factors, logvar=np.full(codes.shape, -4.0))
    run("evaluate", tmp_path / "posteriors.npz", "--metrics", "analytic_mig", "--num-images", "600")
    assert "Analytic MIG 0.9" in capsys.readouterr().out
    run("evaluate", tmp_path / "codes.npz", "--metrics", "migg", code=2)
    assert "unknown metric 'migg'; did you mean 'mig'" in capsys.readouterr().err
    run("evaluate", tmp_path, "--out", tmp_path / "x.json", code=2)
    assert "--out: is for a file of codes" in capsys.readouterr().err


def test_sample_traverse_report(capsys, trained):
    run("sample", trained, "--num", "6")
    # 6 images of 32 px in one row with 2 px between
    assert png_size(trained / "samples.png") == (6 * 34 - 2, 32)
    run("sample", trained, "--num", "6", "--groups", "0", "--out", trained / "other.png", "--seed", "1")
    assert (trained / "other.png").read_bytes() != (trained / "samples.png").read_bytes()
    run("traverse", trained, "--steps", "5", "--stored", "20")
    width, height = png_size(trained / "traversals.png")
    assert min(width, height) > 100
    run("report", trained)
    page = (trained / "report.html").read_text()
    assert "sae-2 on" in page
    assert str(trained / "report.html") in capsys.readouterr().out


def test_sample_errors(capsys, trained):
    run("sample", trained, "--num", "0", code=2)
    assert "--num: expected at least 1, got 0" in capsys.readouterr().err
    run("sample", trained, "--sampler", "prior", code=2)
    assert "prior" in capsys.readouterr().err
    run("sample", trained, "--groups", "9", code=2)
    assert "0..1" in capsys.readouterr().err


def test_data_info_and_preview(capsys, tmp_path):
    run("data", "info", "shapes3d", "--image-size", "32")
    out = capsys.readouterr().out
    assert "480,000" in out
    assert "32 x 32 x 3 uint8" in out
    assert "orientation (15)" in out
    run("data", "preview", "dsprites", "--out", tmp_path / "grid.png", "--num", "16", "--image-size", "32")
    assert png_size(tmp_path / "grid.png") == (8 * 34 - 2, 2 * 34 - 2)
    run("data", "--help")
    assert "preview" in capsys.readouterr().out


def test_info(capsys):
    run("info")
    out = capsys.readouterr().out
    assert "torch" in out
    assert "native" in out


def test_no_memory_is_one_line(capsys, monkeypatch):
    def fail():
        raise RuntimeError("[enforce fail] not enough memory")

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command(lambda _: fail(), ""))
    run("info", code=2)
    assert "RuntimeError: [enforce fail] not enough memory (--debug shows where)" in capsys.readouterr().err


def test_ctrl_c_before_training_is_quiet(capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli.COMMANDS, "info", cli.Command(interrupt, ""))
    run("info", code=130)
    assert capsys.readouterr().err == "interrupted\n"


def test_demo_from_nothing_to_a_report(capsys, tmp_path, monkeypatch):
    from strucfast.training import demo

    preset = demo.preset

    def small(name):
        config = preset(name)
        config.model.overrides |= {"width": 8, "hidden": [8]}
        config.train.batch_size, config.train.steps, config.train.threads = 8, 30, 1
        return config

    monkeypatch.setattr(demo, "preset", small)
    evaluate = demo.evaluate_run
    monkeypatch.setattr(demo, "evaluate_run", lambda run, num_images: evaluate(run, num_images=100))
    run("demo", "--fast", "--out", tmp_path / "demo")
    out = capsys.readouterr().out
    for text in ("PSNR held-out", "MIG", "images/s", "training", f"report: {tmp_path / 'demo' / 'report.html'}"):
        assert text in out
    assert "data:image" in (tmp_path / "demo" / "report.html").read_text()
    # a second demo replaces the first
    run("demo", "--fast", "--out", tmp_path / "demo")


