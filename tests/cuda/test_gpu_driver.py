"""benchmarks/gpu.py as far as a machine without a GPU can tell."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import _results, _timing, gpu, gpu_losses
from strucfast.metrics import _device, _histogram

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("part", gpu.PARTS)
def test_without_a_gpu_every_part_says_so(part):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here: `make gpu` runs the parts")
    result = subprocess.run([sys.executable, "benchmarks/gpu.py", part], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "no GPU run" in result.stderr and "Traceback" not in result.stderr


def test_the_makefile_calls_every_part():
    makefile = (ROOT / "Makefile").read_text()
    for part in gpu.PARTS:
        assert f"gpu-{part}" in makefile


def test_bytes_count_each_tensor_once():
    case = gpu.Case("modulate", 4, torch.float32, "contiguous")
    pixels = 128 * 64 * 16
    assert case.bytes("forward") == 4 * (2 * pixels + 2 * 128 * 64)
    assert case.bytes("backward") == 4 * (3 * pixels + 3 * 128 * 64)
    norm = gpu.Case("group_norm_modulate", 4, torch.bfloat16, "channels_last")
    assert norm.bytes("forward") == 2 * (2 * pixels + 2 * 128 * 64 + 2 * 64) + 4 * 2 * 128 * 8


def test_all_sizes_dtypes_and_layouts_are_measured():
    found = {(c.op, c.size, c.dtype, c.layout) for c in gpu.cases()}
    assert len(found) == 3 * 5 * 2 * 2


@pytest.mark.parametrize("name", gpu.HISTOGRAMS)
def test_the_eager_counts_that_histograms_are_compared_with(name):
    codes, factors = (t[:5000] for t in gpu.histogram_case(name, "cpu"))
    expected = _histogram.joint_counts(codes.numpy(), factors.numpy(), gpu.BINS)
    # Rounded as the GPU gets them.
    edges = torch.from_numpy(_device.rounded_up(_histogram.bin_edges(codes.numpy(), gpu.BINS)))
    found = gpu.eager_counts(codes, factors, edges, torch.from_numpy(expected.starts))
    assert torch.equal(found, torch.from_numpy(expected.counts))


def test_a_failing_piece_does_not_stop_the_others(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    seen = []

    def bad():
        raise ValueError("broken on purpose")

    code = gpu.run_all([("a", bad), ("b", lambda: seen.append("b"))], gpu.Clock(60))
    assert code == 1 and seen == ["b"]
    assert "FAILED a" in capsys.readouterr().out
    assert gpu.run_all([("b", lambda: seen.append("b"))], gpu.Clock(60)) == 0
    # Nothing measured at all is no success.
    assert gpu.run_all([("late", lambda: seen.append("late"))], gpu.Clock(0)) == 1 and "late" not in seen


def test_results_of_earlier_parts_are_kept(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setenv("COMMIT", "abc123")
    monkeypatch.setattr(_results, "device_name", lambda device="cpu": "Some Card")
    stats = _timing.Stats(2.0, 1.5, 2.5)
    case = gpu.Case("modulate", 8, torch.float32, "contiguous")
    gpu.save([], copy_gb_per_s=4000.0)
    gpu.save([gpu.row(case, "forward", "cuda kernel", stats, share_of_copy=0.8)])
    gpu.save([gpu.row(case, "backward", "cuda kernel", stats, share_of_copy=0.7)], gpu_tests={"passed": 3})
    gpu.save([gpu.row(case, "backward", "cuda kernel", stats, share_of_copy=0.9)])
    (path,) = tmp_path.iterdir()
    result = json.loads(path.read_text())
    assert path.name == "some-card.json"
    assert result["meta"]["copy_gb_per_s"] == 4000.0 and result["meta"]["gpu_tests"] == {"passed": 3}
    assert result["meta"]["commit"] == "abc123" and result["meta"]["torch"] == torch.__version__
    assert [(r["direction"], r["share_of_copy"]) for r in result["results"]] == [("forward", 0.8), ("backward", 0.9)]


def test_triton_kernels_import_from_a_checkout():
    code = (
        "import sys\n"
        "installed = lambda f: 'editable' in getattr(f, '__module__', str(f)).lower()\n"
        "sys.meta_path[:] = [f for f in sys.meta_path if not installed(f)]\n"
        "from benchmarks import _in_tree\nimport strucfast.triton_kernels as t\nprint(t.__name__, t.__file__)"
    )
    pytest.importorskip("triton", reason="triton is not installed; pip install triton")
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("strucfast.triton_kernels") and "triton_kernels/__init__.py" in result.stdout


SMALL = [
    lambda: gpu_losses.aggregate(16, 3, "cpu"),
    lambda: gpu_losses.kl_terms(16, 3, "cpu"),
    lambda: gpu_losses.lp_nested(8, "cpu"),
    lambda: gpu_losses.mmd(8, 3, "cpu"),
    lambda: gpu_losses.mmd_dimwise(8, 3, "cpu"),
    lambda: gpu_losses.hsic(8, 3, "cpu"),
]


@pytest.mark.parametrize("maker", SMALL)
def test_losses_are_checked_and_timed(monkeypatch, maker):
    monkeypatch.setattr(_timing.compare, "__kwdefaults__", {**_timing.compare.__kwdefaults__, "rounds": 3})
    case = maker()
    rows = gpu_losses.measure(case, "cpu", exps_per_s=1e12, compiled=False)
    assert [(r["direction"], r["provider"]) for r in rows] == [
        (d, p) for d in ("forward", "both") for p in ("strucfast", "eager")
    ]
    for row in rows:
        assert set(_results.KEY) <= set(row) and row["median_ms"] > 0
        if row["provider"] == "strucfast" and case.exps_forward:
            passes = 1 if row["direction"] == "forward" else 2
            expected = passes * case.exps_forward / (row["median_ms"] * 1e-3) / 1e12
            assert row["share_of_exp"] == pytest.approx(expected, rel=1e-2, abs=1e-4)


def test_losses_that_differ_from_eager_get_no_figures():
    good = gpu_losses.lp_nested(8, "cpu")
    wrong = dataclasses.replace(good, ours=lambda: good.ours() * 1.1)
    with pytest.raises(RuntimeError, match="no figures for lp_nested_log_prob 8 x"):
        gpu_losses.measure(wrong, "cpu", compiled=False)


def test_every_loss_has_a_gpu_case():
    names = {name.split()[0] for name, _ in gpu_losses.cases()}
    assert names == {"kl_terms", "aggregate", "lp_nested", "mmd", "mmd_dimwise", "hsic"}
