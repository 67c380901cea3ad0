"""The report opened from disk in a real headless browser: pictures, script, layout, console, screenshots."""

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

from strucfast.plots import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)

pytestmark = pytest.mark.skipif(
    BROWSER is None,
    reason="no Chromium found: as root run `apt-get update && apt-get install -y --no-install-recommends chromium`, "
    "or set CHROMIUM to the path of a Chromium or Chrome",
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
)

PROBE = """<script>
var errors = [];
window.addEventListener("error", function (event) { errors.push(String(event.message)); });
window.addEventListener("load", function () { setTimeout(function () {
  var row = document.querySelector(".sweep"), slider = row.querySelector("input");
  var frames = row.querySelectorAll(".frames img"), player = row.querySelector(".player img");
  var shown = [0, 8].map(function (value) {
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    return [player.src === frames[value].src, row.querySelector("output").textContent, frames[value].className];
  });
  var plot = document.querySelector(".plot"), box = plot.getBoundingClientRect();
  plot.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 9}));
  var facts = {
    readout: plot.querySelector(".readout").innerText,
    images: Array.from(document.images, function (image) { return [image.naturalWidth, image.clientWidth]; }),
    text: document.body.innerText, errors: errors, shown: shown,
    requests: performance.getEntriesByType("resource").map(function (entry) { return entry.name; })
      .filter(function (name) { return !name.startsWith("data:"); }),
    width: [document.documentElement.scrollWidth, window.innerWidth],
    plots: Array.from(document.querySelectorAll(".plot svg"), function (plot) { return plot.clientHeight; })
  };
  var store = document.createElement("pre");
  store.id = "probe";
  store.textContent = JSON.stringify(facts);
  document.body.appendChild(store);
}, 0); });
</script>"""


def browse(page: Path, profile: Path, *options: str) -> tuple[str, str]:
    """Runs the browser on a file with a fresh profile; (stdout, stderr). Killed with its children when it hangs."""
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", "--virtual-time-budget=5000", *options, page.as_uri()]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, errors="replace"
    )
    try:
        out, err = process.communicate(timeout=90)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, err[-2000:]
    return out, err


@pytest.fixture
def report(tmp_path, model, dataset, codes, mig, history):
    return write_report(
        tmp_path / "report.html",
        title="Squares & <b>more</b>",
        model=model,
        dataset=dataset,
        test_indices=range(64),
        history=history,
        config={"train": {"steps": 500}},
        metrics={"mig": mig},
        codes=codes,
        timings={"training": 25.0},
    )


def facts(report, tmp_path, *options):
    # the probe is a second script, which the page's own policy would refuse: this copy goes without it
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    copy = tmp_path / "probed.html"
    copy.write_text(text.replace("<script>", PROBE + "<script>", 1))
    dom, _ = browse(copy, tmp_path / "profile", "--dump-dom", *options)
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found, dom[-2000:]
    return json.loads(found.group(1).replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_every_picture_decodes_and_the_sliders_flip_frames(report, tmp_path):
    seen = facts(report, tmp_path, "--window-size=1200,900")
    assert len(seen["images"]) == 2 * (24 + 8) + 36 + 4 * 9 + 4
    assert all(natural == 32 and shown >= 24 for natural, shown in seen["images"])
    assert seen["errors"] == [] and seen["requests"] == []
    first, last = seen["shown"]
    assert first[0] and last[0] and float(first[1]) < float(last[1])
    # half way between steps 10 and 500
    assert re.fullmatch(r"train  1\.[23]\d  at 2[56]0\nvalidation  1\.2\d  at 300", seen["readout"]), seen["readout"]
    assert first[2].endswith("now") and last[2].endswith("now")
    assert len(seen["plots"]) == 4 and min(seen["plots"]) > 150
    for words in (
        "Squares & <b>more</b>",
        "Loss curves",
        "Hybrid samples",
        "Latent traversals",
        "Mutual information gap",
    ):
        assert words in seen["text"], words


def test_it_fits_a_phone_without_scrolling_sideways(report, tmp_path):
    # headless windows have a least width of 500 pixels, so the phone is a frame inside one
    frame = tmp_path / "phone.html"
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", report.read_text())
    (tmp_path / "inner.html").write_text(
        text.replace(
            "</body>",
            "<script>parent.postMessage([document.documentElement.scrollWidth, innerWidth], '*')</script></body>",
        )
    )
    frame.write_text(
        '<iframe src="inner.html" width="360" height="700"></iframe>'
        "<script>addEventListener('message', function (event) { document.title = 'widths ' + event.data.join(' '); });"
        "</script>"
    )
    dom, _ = browse(frame, tmp_path / "profile", "--dump-dom", "--window-size=800,900")
    scroll, inner = map(int, re.search(r"<title>widths (\d+) (\d+)</title>", dom).groups())
    assert inner == 360 and scroll <= inner


def shot(report, tmp_path, name, *options, height=2600):
    target = tmp_path / f"{name}.png"
    _, err = browse(
        report,
        tmp_path / f"profile-{name}",
        f"--screenshot={target}",
        f"--window-size=1100,{height}",
        "--enable-logging=stderr",
        *options,
    )
    console = [line for line in err.splitlines() if "CONSOLE" in line]
    return matplotlib.image.imread(target)[..., :3], console


def test_the_untouched_file_shows_in_light_and_dark_without_console_errors(report, tmp_path):
    light, console = shot(report, tmp_path, "light")
    assert console == []
    dark, console = shot(report, tmp_path, "dark", "--force-dark-mode")
    assert console == []
    for picture in (light, dark):
        assert picture.shape[:2] == (2600, 1100)
        # text, curves and pictures leave many colours and ink in every band of the page
        colours = np.rint(picture * 255).astype(np.uint32) @ np.array([65536, 256, 1], np.uint32)
        assert len(np.unique(colours)) > 200
        assert all(band.std() > 0.02 for band in np.array_split(picture, 6))
    # the model's red pictures are on the page
    assert ((light[..., 0] > 0.5) & (light[..., 1] < 0.1) & (light[..., 2] < 0.1)).mean() > 0.01
    assert np.median(light) > 0.9 and np.median(dark) < 0.2


def test_without_javascript_the_pictures_and_curves_are_still_there(report, tmp_path):
    # in this copy the page's own policy refuses its script
    copy = tmp_path / "plain.html"
    copy.write_text(re.sub(r"script-src 'sha256-[^']*'", "script-src 'none'", report.read_text()))
    plain, console = shot(copy, tmp_path, "plain", height=4000)
    assert len(console) == 1 and "Content Security Policy" in console[0]
    scripted, _ = shot(report, tmp_path, "scripted", height=4000)
    # only the players and sliders of the traversals differ, and those lie below the first 2000 rows
    assert np.array_equal(plain[:2000], scripted[:2000])
    assert not np.array_equal(plain, scripted)
    assert all(band.std() > 0.02 for band in np.array_split(plain, 6))


@pytest.mark.parametrize("name", ["sae-2", "vae"])
def test_a_real_model_on_real_data_shows(tmp_path, name):
    from strucfast import data, metrics, models
    from strucfast.plots.samples import encode_images

    torch.manual_seed(0)
    dataset = data.Shapes3D(image_size=32)
    model = models.build(name, image_size=32, width=8, blocks=3, latent_dim=4)
    indices = data.split(dataset)[2][::400]
    codes = encode_images(model, dataset.images(indices))
    mig = metrics.mig(codes, dataset.factors(indices), factor_names=dataset.factor_names)
    path = write_report(
        tmp_path / "report.html",
        title=name,
        model=model,
        dataset=dataset,
        test_indices=indices,
        history=[{"step": 1, "split": "train", "loss": 2.0}],
        metrics={"mig": mig},
        codes=codes,
    )
    seen = facts(path, tmp_path, "--window-size=1200,900")
    assert all(natural == 32 for natural, _ in seen["images"]) and seen["errors"] == [] and seen["requests"] == []
    for words in (f"{mig.score:.3f}", "floor hue", "object hue", "orientation", f"{len(indices)} held-out images"):
        assert words in seen["text"], words
