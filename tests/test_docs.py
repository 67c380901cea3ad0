"""What the documentation says must exist: links, options, environment variables, presets, code that runs."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import strucfast as sf

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "benchmarks" / "results" / "README.md"]
SOURCES = [ROOT / "setup.py", *sorted((ROOT / "strucfast").rglob("*.py"))]
# read by others: the compiler driver of the build, Triton, glibc
FOREIGN = {"MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "TRITON_INTERPRET"}


def blocks(page: Path, language: str = "") -> list[str]:
    """Contents of the fenced blocks of one language ("" has none)."""
    # every odd part lies between two fences; its first line is the language
    parts = (part.split("\n", 1) for part in page.read_text().split("```")[1::2])
    return [code for found, code in parts if found == language]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), target


@pytest.fixture(scope="module")
def help_text():
    command = [sys.executable, "-m", "strucfast", "train", "sae-12", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_option_of_train_exists(help_text):
    known = set(re.findall(r"--[a-z][a-z.-]+", help_text))
    for page in PAGES:
        # fields of the configuration have a dot; --resume and --overwrite stand on the training page
        for option in re.findall(r"--(?:model|data|optim|train|log)\.[a-z-]+|--resume|--overwrite", page.read_text()):
            assert option in known, f"{page.name}: {option}"


def test_every_command_and_preset_exists():
    from strucfast.cli import COMMANDS
    from strucfast.training.config import preset

    for page in PAGES:
        inline = re.findall(r"`(strucfast [^`]+)`", page.read_text())
        typed = [line for block in blocks(page) for line in block.splitlines() if line.startswith("strucfast ")]
        for words in (command.split() for command in [*inline, *typed]):
            assert words[1] in COMMANDS or not words[1].islower(), f"{page.name}: {' '.join(words)}"
            if words[1] == "train" and len(words) > 2 and re.fullmatch(r"[a-z0-9-]+", words[2]):
                preset(words[2])


def test_every_environment_variable_is_read_somewhere():
    read = "\n".join(path.read_text() for path in SOURCES)
    named = set(
        re.findall(r"`((?:STRUCFAST|CUDA|TRITON|MALLOC|MAX)_[A-Z_]+|CXX)\b", (ROOT / "docs/install.md").read_text())
    )
    assert {"STRUCFAST_CPU", "STRUCFAST_CUDA", "STRUCFAST_CUDA_ARCHS", "CXX", "CUDA_HOME", "MAX_JOBS"} <= named
    for name in named - FOREIGN:
        assert name in read, name


def test_every_name_of_the_package_exists():
    for page in PAGES:
        for name in re.findall(r"\b(?:sf|strucfast)\.([a-z]+(?:\.[A-Za-z_]+)?)\b(?!\.)", page.read_text()):
            if name in ("py", "cli"):
                continue
            found = sf
            for part in name.split("."):
                assert hasattr(found, part), f"{page.name}: sf.{name}"
                found = getattr(found, part)


def test_the_models_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    space: dict = {}
    for block in blocks(ROOT / "docs" / "models.md", "python"):
        lines = block.splitlines()
        if "PriorSampler" in block:
            lines = [line for line in lines if "PriorSampler" not in line]
            with pytest.raises(ValueError, match="prior"):
                sf.samplers.PriorSampler(space["model"])
        exec("\n".join(lines), space)
    assert space["images"].shape == (16, 3, 64, 64) and (tmp_path / "my-model" / "model.safetensors").exists()


def test_the_backends_page_runs():
    space = {"x": torch.rand(2, 4, 3), "scale": torch.rand(2, 4), "shift": torch.rand(2, 4)}
    for block in blocks(ROOT / "docs" / "backends.md", "python"):
        exec(block, space)
    assert torch.equal(space["y"], space["x"] * space["scale"][..., None] + space["shift"][..., None])


def test_the_objectives_page_runs():
    torch.manual_seed(0)
    space: dict = {}
    for block in blocks(ROOT / "docs" / "objectives.md", "python"):
        exec(block, space)
    torch.testing.assert_close(space["same"], space["sampled"].mean())
    assert torch.isfinite(space["loss"].total) and space["model"].name == "factor-vae"
    assert torch.isfinite(space["total"]) and space["annealed"].training_step == 2


def test_the_objectives_page_names_every_loss_and_preset():
    page = (ROOT / "docs" / "objectives.md").read_text()
    for name in sf.losses.__all__:
        assert name[0].isupper() or f"`{name}`" in page, name
    for name in sf.models.list():
        family = re.sub(r"-\d+$", "-k", name)
        assert f"`{family}`" in page, name


def test_the_distributions_page_runs():
    torch.manual_seed(0)
    space: dict = {}
    for block in blocks(ROOT / "docs" / "distributions.md", "python"):
        exec(block, space)
    torch.testing.assert_close(space["isa"].variance, torch.ones(20))
    assert space["prior"].std.argsort(descending=True).tolist() == list(range(10))
    text = (ROOT / "docs" / "distributions.md").read_text()
    named = re.findall(r"^\| `([a-z-]+)` \| `([A-Za-z]+)` \|(.*)\|$", text, re.MULTILINE)
    priors = sf.distributions.priors
    assert {name: getattr(priors, kind) for name, kind, _ in named} == priors.PRIORS
    for _, kind, options in named:
        known = set(inspect.signature(getattr(priors, kind)).parameters) - {"dim"}
        assert set(re.findall(r"`([a-z_0-9]+)`", options)) == known, kind


def test_the_metrics_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sf.metrics._evaluate, "_METRICS", dict(sf.metrics._evaluate._METRICS))
    torch.manual_seed(0)
    space: dict = {}
    for block in blocks(ROOT / "docs" / "metrics.md", "python"):
        exec(block, space)
    assert space["mig"].score > 0.8 and set(space["scores"]) == {"mig", "irs"}
    assert space["found"]["mig"].score > 0.1 and (tmp_path / "results.json").exists()
    assert space["own"]["mean_range"] > 2 and space["distance"] > 0


def test_the_metrics_page_names_every_metric():
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name in sf.metrics.__all__:
        if name[0].islower() and name not in ("names",):
            assert re.search(rf"\b{name}\b", page), name
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (yes|no) \|", page, re.MULTILINE)
    listed = {name: default == "yes" for names, default in rows for name in re.findall(r"`([a-z_]+)`", names)}
    assert set(listed) == set(sf.metrics.names())
    assert {name for name, default in listed.items() if default} == set(sf.metrics.names(default=True))


def test_the_training_page_trains(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = blocks(ROOT / "docs" / "training.md", "python")
    assert block.count("config.train.steps = 20_000") == 1
    small = (
        "config.train.steps, config.train.batch_size, config.train.eval_images = 2, 4, 4\n"
        "config.model.image_size, config.model.overrides = 32, {'width': 8}\n"
        "config.train.threads, config.log.progress, config.log.tensorboard = 1, 'none', False"
    )
    space: dict = {}
    exec(block.replace("config.train.steps = 20_000", small), space)
    assert space["model"].name == "sae-12" and space["run"].history()[-1]["step"] == 2
    said = (ROOT / "docs" / "training.md").read_text()
    written = {path.name for path in (tmp_path / "runs" / "mine").iterdir()} - {".lock"}
    assert written and all(f"`{name}" in said for name in written), written


def test_the_migration_page_runs():
    torch.manual_seed(0)
    space: dict = {}
    for block in blocks(ROOT / "docs" / "migration.md", "python"):
        exec(block, space)
    assert list(space["report"].replaced) == ["1"]
    torch.testing.assert_close(space["fused"], space["plain"], rtol=1e-5, atol=1e-5)
    assert torch.isfinite(space["regulariser"]) and space["score"] > 0.5 and space["dci"].disentanglement > 0.5


def test_the_migration_page_names_presets_that_exist():
    text = (ROOT / "docs" / "migration.md").read_text()
    named = set(re.findall(r"`((?:[a-z]+-)+(?:vae|mmd|i|ii|tcvae))`", text))
    assert {"beta-tcvae", "factor-vae"} <= named and named - {"-ii"} <= set(sf.models.list())


def test_the_citation_file_agrees_with_the_package():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["title"] == "strucfast" and citation["cff-version"] == "1.2.0" and citation["license"] == "MIT"
    authors = {author["name"] for author in citation["authors"]}
    assert all(f'name = "{name}"' in (ROOT / "pyproject.toml").read_text() for name in authors)
    assert {"message", "type"} <= set(citation)
