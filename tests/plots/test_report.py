"""The HTML report as text: well-formed, escaped, self-contained, complete, written atomically."""

import base64
import hashlib
import io
import os
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch

from strucfast.plots import write_report
from strucfast.plots._html import duration, linear_ticks, log_ticks, number, short, thin

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Checks that tags nest and collects tags, attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"<{tag}> repeats an attribute: {names}"
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data):
        if "script" not in self.open and "style" not in self.open:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def every(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture
def write(tmp_path, model, dataset, codes, mig, history):
    def write(name="report.html", **changes):
        options = {
            "title": "Squares",
            "model": model,
            "dataset": dataset,
            "test_indices": np.arange(64),
            "history": history,
            "config": {"model": {"name": "square", "sizes": [1, 2]}, "seed": 3},
            "metrics": {"mig": mig},
            "codes": codes,
            "timings": {"training": 174.3, "mig": 0.021},
        }
        return write_report(tmp_path / name, **{**options, **changes})

    return write


def read(path) -> Page:
    return Page(path.read_text(encoding="utf-8"))


def decoded(attributes: dict) -> np.ndarray:
    data = base64.b64decode(attributes["src"].removeprefix("data:image/png;base64,"), validate=True)
    return np.rint(matplotlib.image.imread(io.BytesIO(data), format="png") * 255).astype(np.uint8)


def test_the_page_is_complete_and_well_formed(write):
    page = read(write())
    sections = [attributes["id"] for attributes in page.every("section")]
    assert sections == [
        "curves",
        "reconstructions",
        "samples",
        "traversals",
        "information",
        "scores",
        "timings",
        "config",
        "versions",
    ]
    assert [attributes["href"] for attributes in page.every("a")] == [f"#{name}" for name in sections]
    for words in (
        "PSNR",
        "0.825",
        "Parameters",
        "images/s",
        "2 min 54 s",
        "500 steps",
        "background red",
        "model",
        "[1, 2]",
    ):
        assert words in page.text, words


def test_the_headline_psnr_is_that_of_the_pictures(write, model, dataset):
    page = read(write())
    with torch.no_grad():
        images = torch.from_numpy(dataset.images(np.arange(64))).permute(0, 3, 1, 2) / 255
        errors = (model.decode(model.encode(images).mean) - images).square().mean((1, 2, 3))
    assert f"{-10 * errors.log10().mean():.1f} dB mean of 64 held-out images" in page.text
    assert "31.4 dB mean of 10,000 held-out images" in read(write(psnr=(31.42, 10_000))).text


def test_pictures_are_the_originals_and_the_models_output(write, dataset):
    page = read(write(num_images=5))
    originals = [decoded(tag) for tag in page.every("img") if tag["alt"] == "original"]
    known = dataset.images(np.arange(64))
    assert len(originals) == 5 + 1
    assert all((known == image).all((1, 2, 3)).any() for image in originals)
    sweep = [decoded(tag) for tag in page.every("img") if tag["alt"].startswith("latent 2 at ")]
    reds = [int(frame[0, 0, 0]) for frame in sweep]
    assert len(sweep) == 9 and reds == sorted(reds) and reds[-1] - reds[0] > 100


def test_nothing_is_loaded_from_outside(write):
    path = write()
    page = read(path)
    for tag, attributes in page.tags:
        for name in ("src", "href", "action", "srcset", "data"):
            assert attributes.get(name, "data:").startswith(("data:", "#")), (tag, name)
    text = path.read_text()
    assert not re.search(
        r"https?:|@import|@font-face|url\((?!\")", re.sub(r"<script>.*?</script>", "", text, flags=re.S)
    )
    script = re.search(r"<script>(.*?)</script>", text, re.S).group(1)
    assert "http" not in script
    policy = page.every("meta")[1]["content"]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "default-src 'none'" in policy and f"script-src 'sha256-{digest}'" in policy


def test_every_user_string_is_escaped(write, dataset, mig, history):
    evil = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    dataset.name = evil
    dataset.factor_names = (evil, evil, evil)
    records = [*history, {"step": 600, "split": evil, "loss": 2.0, evil: 1.0}]
    path = write(
        title=evil,
        config={evil: {evil: evil}},
        metrics={"mig": mig, evil: 0.5},
        timings={evil: evil, "x": 2},
        history=records,
    )
    page = read(path)
    assert len(page.every("script")) == 1
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.every("img"))
    assert not any(name.startswith("on") for _, attributes in page.tags for name in attributes)
    assert page.text.count("alert(1)") >= 8
    assert "<title>&lt;/script&gt;" in path.read_text()


def test_own_images_without_factors(write, dataset):
    dataset.factor_names = ()
    page = read(write(metrics={}))
    assert "without known factors of variation" in page.text and "needs known factors" in page.text
    assert "scores" not in [attributes["id"] for attributes in page.every("section")]


def test_the_least_it_needs(write):
    page = read(write(history=(), config=None, metrics=None, codes=None, timings=None))
    assert "no history" in page.text and "stored codes" in page.text
    assert "Training time" not in page.text


def test_a_grey_data_set(tmp_path, dataset, codes):
    conftest = type(dataset)
    grey = conftest(size=16, channels=1)
    model = type(grey.model)(4, 16, 1).eval()
    page = read(
        write_report(
            tmp_path / "grey.html", title="grey", model=model, dataset=grey, test_indices=range(8), codes=codes
        )
    )
    assert all(decoded(tag).ndim == 2 for tag in page.every("img"))
    assert "16 × 16 × 1 pixels" in page.text


def test_many_latents_are_limited_with_a_note(tmp_path, dataset, model):
    wide = type(model)(latent_dim=40).eval()
    codes = torch.rand(20, 40) * 0.5 + 0.2
    rng = np.random.default_rng(0)
    mig = SimpleNamespace(
        score=0.1, per_factor=np.full(3, 0.1), mutual_information=rng.random((40, 3)), factor_entropy=np.full(3, 1.5)
    )
    path = write_report(
        tmp_path / "wide.html",
        title="wide",
        model=wide,
        dataset=dataset,
        test_indices=range(8),
        codes=codes,
        metrics={"mig": mig},
        max_latents=6,
    )
    page = read(path)
    sweeps = [tag for tag in page.every("div") if tag.get("class") == "sweep"]
    assert len(sweeps) == 6 and "Showing 6 of 40 latent variables" in page.text
    assert {"latent 0", "latent 1", "latent 2"} <= {tag["aria-label"] for tag in page.every("input")}
    assert "Showing the 6 of 40" in page.text
    # no factor loses its best latent
    assert sum("best" in tag.get("class", "").split() for tag in page.every("td")) == 3


def test_numbers_not_finite_become_dashes(write, mig):
    mig.per_factor = np.array([np.nan, 0.5, 0.5])
    mig.score = np.nan
    page = read(write(metrics={"mig": mig, "other": np.inf}))
    assert not re.search(r"\b(nan|inf)\b", page.text, re.IGNORECASE)
    assert "MIG – 4 latents" in page.text


def test_a_factor_with_one_value_has_no_best_latent(write, mig):
    mig.mutual_information[:, 1] = 0
    mig.factor_entropy[1] = 0
    mig.per_factor = np.array([0.8, np.nan, 0.9])
    page = read(write(metrics={"mig": mig}))
    assert "row – – – – 0 " in page.text


def test_the_same_seed_shows_the_same_pictures(write):
    pages = [read(write(f"{place}.html", seed=seed)) for place, seed in enumerate((0, 0, 1))]
    sources = [[tag["src"] for tag in page.every("img")] for page in pages]
    assert sources[0] == sources[1] != sources[2]


@pytest.mark.parametrize("name", ["file/report.html", "folder"])
def test_an_unwritable_path_is_a_clear_error(write, tmp_path, name):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="path: cannot write the report to .*" + name):
        write(name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder"]


def test_a_failure_keeps_the_old_report_and_leaves_nothing_behind(write, tmp_path, monkeypatch):
    path = write()
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        write(title="second")
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"test_indices": []}, "test_indices: expected"),
        ({"codes": torch.zeros(3, 5)}, r"codes: expected shape \(N, 4\)"),
        ({"codes": torch.full((3, 4), torch.nan)}, "codes: expected finite"),
        ({"max_latents": 0}, "max_latents: expected"),
        ({"num_images": 0}, "num_images: expected"),
    ],
)
def test_bad_arguments_are_named(write, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        write(**changes)
    assert list(tmp_path.iterdir()) == []


def test_numbers_for_people():
    assert [number(value) for value in (None, float("nan"), 3, 1073551, 0.53712, 12.345, 1234.5, 3.2e-5, -0.25)] == [
        "–",
        "–",
        "3",
        "1,073,551",
        "0.537",
        "12.3",
        "1,234",
        "3.2e-05",
        "-0.250",
    ]
    assert [duration(value) for value in (0.0213, 4.24, 59.97, 174.3, 3599.7, 11100)] == [
        "21 ms",
        "4.2 s",
        "1 min 00 s",
        "2 min 54 s",
        "1 h 00 min",
        "3 h 05 min",
    ]
    assert [short(value) for value in (0, 0.25, 1000, 12000, 1.5e6, -2000)] == ["0", "0.25", "1k", "12k", "1.5M", "-2k"]


def test_ticks_are_round_and_inside():
    assert linear_ticks(1852.0, 2203.0) == [1900, 2000, 2100, 2200]
    np.testing.assert_allclose(linear_ticks(-0.1, 0.31), [-0.1, 0, 0.1, 0.2, 0.3], atol=1e-12)
    assert log_ticks(0.9, 1500.0) == [1, 10, 100, 1000]
    assert log_ticks(1.5, 30.0) == [2, 5, 10, 20]
    for low, high in ((1e-9, 1e9), (3.1, 3.11), (0.99, 10.1)):
        assert 1 <= len(log_ticks(low, high)) <= 8


def test_thinning_keeps_means():
    xs, ys = thin(range(1000), np.arange(1000) % 2, most=100)
    assert len(xs) == 100 and (ys == 0.5).all() and xs[0] == 4.5
    xs, ys = thin([1, 2], [3, 4])
    assert xs.tolist() == [1, 2] and ys.tolist() == [3, 4]
