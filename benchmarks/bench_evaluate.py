"""`evaluate` of an encoder on Shapes3D, 10,000 + 5,000 images, against plain layers and the metrics as others do.

One pass of encoding, then the metrics. The others' MIG and explicitness are disentanglement_lib's formulations. DCI
takes scikit-learn 150 s, so by default the comparison leaves it out and is on the demo's encoder (32 px);
STRUCFAST_FULL=1 adds DCI on both sides, and the SAE-12 at 64 px. The seconds of each of our metrics are printed and
kept in the row.
"""

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import _models, _timing
from benchmarks.baselines import boosting, explicitness, mig
from strucfast.data import Shapes3D
from strucfast.metrics import evaluate
from strucfast.training.batches import to_float

TRAIN, TEST = 10_000, 5_000
DEMO = ("sae-6", {"image_size": 32, "width": 32, "blocks": 6})
CASES = [(*DEMO, ("mig", "explicitness"))]
if _timing.full():
    CASES += [(*DEMO, ("mig", "explicitness", "dci")), ("sae-12", {}, ("mig", "explicitness", "dci"))]


@pytest.mark.parametrize(("name", "overrides", "metrics"), CASES)
def test_evaluate(compare, name, overrides, metrics):
    nets = _models.nets(name, **overrides)
    size = nets["strucfast"].module.image_shape[1]
    dataset = Shapes3D(image_size=size)
    rows = np.sort(np.random.default_rng(0).choice(len(dataset), TRAIN + TEST, replace=False))
    encode = _encoder(nets["strucfast"])
    # Renderer, pools of memory and compiled kernels are in place for all of them.
    evaluate(encode, dataset, metrics, num_train=200, num_test=100)
    once, found = {}, {}
    for provider, net in nets.items():
        began = time.perf_counter()
        if provider == "strucfast":
            found[provider] = evaluate(encode, dataset, metrics, num_train=TRAIN, num_test=TEST, indices=rows)
        else:
            found[provider] = _plain(_encoder(net), dataset, metrics, rows)
        once[provider] = (time.perf_counter() - began) * 1e3
    for provider in ("eager", "channels_last"):
        assert found[provider].mig == pytest.approx(found["strucfast"]["mig"].score, abs=0.02)
    _report(compare, f"{name} {size}x{size}x3: {', '.join(metrics)}", once, found["strucfast"])


def test_every_metric(compare):
    """The seconds of each metric that runs where none is named."""
    name, overrides = DEMO
    net = _models.nets(name, **overrides)["strucfast"]
    dataset = Shapes3D(image_size=32)
    evaluate(_encoder(net), dataset, num_train=200, num_test=100)
    began = time.perf_counter()
    found = evaluate(_encoder(net), dataset, num_train=TRAIN, num_test=TEST)
    once = {"strucfast": (time.perf_counter() - began) * 1e3}
    _report(compare, f"{name} 32x32x3: {len(found)} metrics", once, found)


def _report(compare, case, once, found):
    seconds = found.seconds
    print("\n" + "\n".join(f"{metric:<28} {value:8.3f} s" for metric, value in seconds.items()))
    case = f"{case}, {TRAIN} + {TEST} images"
    extra = {"strucfast": {"seconds": {metric: round(value, 4) for metric, value in seconds.items()}}}
    ops = ("group_norm_modulate", "evaluate")
    compare("evaluate", case, "forward", torch.float32, "channels_last", {}, check=ops, once=once, extra=extra)


def _encoder(net):
    def encode(images):
        x = to_float(images).contiguous(memory_format=net.layout)
        with torch.no_grad():
            return net.encode(x)

    return encode


def _plain(encode, dataset, metrics, rows, batch=256):
    """What `evaluate` does, by the plain formulations of the metrics."""
    codes = np.concatenate([encode(dataset.images(rows[i : i + batch])).numpy() for i in range(0, len(rows), batch)])
    factors = dataset.factors(rows)
    order = np.random.default_rng(1).permutation(len(rows))
    train, test = order[:TRAIN], order[TRAIN:]
    found = SimpleNamespace(mig=mig.mig(codes[train], factors[train]))
    if "explicitness" in metrics:
        explicitness.explicitness(codes[train], factors[train], codes[test], factors[test])
    if "dci" in metrics:
        found.dci = boosting.dci(codes[train], factors[train], codes[test], factors[test])
    return found
