"""What launchers do before a kernel runs: errors, layouts, configurations. Launches are recorded only."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton", reason="the Triton kernels need triton; install it with pip install triton")

from strucfast.triton_kernels import _launch, _layout, _tuning
from strucfast.triton_kernels.aggregate import PADDING, _group_layout, aggregate_config
from strucfast.triton_kernels.group_norm_modulate import GroupNormConfig, group_norm_config
from strucfast.triton_kernels.modulate import ModulateConfig, backward_config, forward_config
from strucfast.triton_kernels.pairwise import PADDING as PAIRWISE_PADDING
from strucfast.triton_kernels.pairwise import pairwise_config

from strucfast import triton_kernels as kernels

CPU = torch.device("cpu")
compiled = pytest.mark.skipif(
    _launch.INTERPRETED,
    reason="TRITON_INTERPRET is set, and with it CPU tensors are allowed; unset it to run this test",
)


def tensors_of(launches):
    pointers = set()
    for launched in launches:
        for argument in launched["args"]:
            items = argument if isinstance(argument, tuple) else (argument,)
            pointers |= {item.data_ptr() for item in items if isinstance(item, torch.Tensor)}
    return pointers


def channels_last(x):
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


@pytest.mark.parametrize("shape", [(2, 4), (2, 4, 6), (2, 4, 3, 5), (2, 4, 2, 3, 2)])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("per_pixel", [False, True])
def test_native_layouts_are_not_copied(shape, last, per_pixel):
    def make(s):
        return channels_last(torch.ones(s)) if last and len(s) > 2 else torch.ones(s)

    x, grad = make(shape), make(shape)
    scale, shift = (make(shape if per_pixel else shape[:2]) for _ in range(2))
    weight, bias = torch.ones(4), torch.ones(4)
    with _launch.recording() as launches:
        y = kernels.modulate_forward(x, scale, shift)
    assert {t.data_ptr() for t in (x, scale, shift, y)} <= tensors_of(launches)
    with _launch.recording() as launches:
        dx, dscale, dshift = kernels.modulate_backward(grad, x, scale, per_pixel, 7)
    assert {t.data_ptr() for t in (grad, x, scale, dx, dscale, dshift)} <= tensors_of(launches)
    with _launch.recording() as launches:
        y, mean, rstd = kernels.group_norm_modulate_forward(x, 2, weight, bias, scale, shift, 1, 1e-5)
    assert {t.data_ptr() for t in (x, weight, bias, scale, shift, y, mean, rstd)} <= tensors_of(launches)
    with _launch.recording() as launches:
        results = kernels.group_norm_modulate_backward(grad, x, mean, rstd, 2, weight, bias, scale, shift, 1, 31)
    assert {t.data_ptr() for t in (grad, x, mean, rstd, weight, bias, scale, *results)} <= tensors_of(launches)
    assert y.stride() == dx.stride() == x.stride() == results[0].stride()


def test_other_strides_are_copied_once():
    x = torch.ones(2, 6, 4).transpose(1, 2)[:, :, ::2]
    with _launch.recording() as launches:
        y = kernels.modulate_forward(x, torch.ones(2, 4), torch.ones(2, 4))
    assert x.data_ptr() not in tensors_of(launches) and y.is_contiguous()


def test_str_tfm_takes_its_inputs_as_they_are():
    u, weights, biases = torch.ones(3, 2, 4), [torch.ones(2, 6, 4)], [torch.ones(2, 6)]
    with _launch.recording() as launches:
        scale, shift, saved = kernels.str_tfm_forward(u, weights, biases, 1, 0, True)
        assert {t.data_ptr() for t in (u, *weights, *biases, scale, shift)} <= tensors_of(launches)
        assert len(launches) == 1
        launches.clear()
        kernels.str_tfm_backward(scale, shift, u, weights, biases, scale, saved, 1, 0, 3)
        assert {t.data_ptr() for t in (u, *weights, scale, shift)} <= tensors_of(launches)
        assert len(launches) == 2


def test_launch_counts():
    """One launch forward, and backward one plus at most one for dweight and dbias, where no split is needed."""
    x, p, w = torch.ones(128, 64, 16, 16), torch.ones(128, 64), torch.ones(64)
    for value in (x, channels_last(x)):
        with _launch.recording() as launches:
            _, mean, rstd = kernels.group_norm_modulate_forward(value, 8, w, w, p, p, 1, 1e-5)
            assert len(launches) == 1
            kernels.group_norm_modulate_backward(value, value, mean, rstd, 8, w, w, p, p, 1, 31)
            assert len(launches) == 3


@compiled
def test_cpu_tensors_are_refused():
    x, p = torch.ones(2, 4, 3), torch.ones(2, 4)
    w, b = [torch.ones(2, 4, 4)], [torch.ones(2, 4)]
    calls = {
        "modulate": lambda: kernels.modulate_forward(x, p, p),
        "modulate_backward": lambda: kernels.modulate_backward(x, x, p, False, 7),
        "group_norm_modulate": lambda: kernels.group_norm_modulate_forward(x, 2, None, None, None, None, 1, 1e-5),
        "group_norm_modulate_backward": lambda: kernels.group_norm_modulate_backward(
            x, x, p, p, 2, None, None, None, None, 1, 31
        ),
        "str_tfm": lambda: kernels.str_tfm_forward(torch.ones(3, 2, 4), w, b, 1, 0, True),
        "str_tfm_backward": lambda: kernels.str_tfm_backward(p, p, torch.ones(3, 2, 4), w, b, p, p, 1, 0, 3),
        "aggregate_log_density": lambda: kernels.aggregate_forward(p, p, p, 2, 0, 0, ()),
        "aggregate_log_density_backward": lambda: kernels.aggregate_backward(
            p[:, 0], None, None, p, p, p, p[:, 0], p, p[:, :0], 2, 0, 0, (), 7
        ),
        "kl_terms": lambda: kernels.kl_terms_forward(p, p, p, 2, 0, 0, (), True),
        "kl_terms_backward": lambda: kernels.kl_terms_backward(
            *[p[0, 0]] * 5, p, p, p, p[:, 0], p, p[:, :0], 2, 0, 0, (), True, 7
        ),
        "mmd": lambda: kernels.mmd_forward(p, p, 0, (1.0,), True, 3),
        "mmd_dimwise": lambda: kernels.mmd_dimwise_forward(p, p, 0, (1.0,), True, 3),
        "mmd_backward": lambda: kernels.mmd_backward(p[0, 0], p, p, 3),
        "hsic": lambda: kernels.hsic_forward(p, p, 0, (1.0,), (1.0,), False),
        "hsic_backward": lambda: kernels.hsic_backward(
            p[0, 0], p, p, p[:, 0], p[:, 0], 0, (1.0,), (1.0,), False, 3
        ),
    }
    for name, call in calls.items():
        with pytest.raises(
            RuntimeError, match=rf"^{name}: Triton kernels need CUDA or ROCm tensors, got a tensor on cpu"
        ):
            call()


def test_mixed_devices_are_refused():
    with _launch.recording(), pytest.raises(ValueError, match="one device, got cpu and meta"):
        kernels.modulate_forward(torch.ones(2, 3, 4), torch.ones(2, 3), torch.ones(2, 3, device="meta"))


def test_too_many_programs_are_refused():
    with _launch.recording(), pytest.raises(ValueError, match=r"is over the limit of 2\*\*31 - 1"):
        _launch.launch(test_too_many_programs_are_refused, 2**31, CPU, num_warps=1)


def test_recording_does_not_nest():
    with _launch.recording(), pytest.raises(RuntimeError, match="recorded already"), _launch.recording():
        pass


def test_bare_name_is_refused():
    folder = Path(kernels.__file__).parent
    spec = importlib.util.spec_from_file_location("triton_kernels", folder / "__init__.py")
    with pytest.raises(ImportError, match=r"installed as strucfast.triton_kernels, not as 'triton_kernels'"):
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "triton_kernels" not in sys.modules or sys.modules["triton_kernels"] is not kernels


def test_imports_torch_and_triton_only():
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for path in Path(kernels.__file__).parent.glob("*.py"):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] in ("import", "from") and not words[1].startswith("."):
                assert words[1].split(".")[0] in allowed, f"{path.name}: {line}"


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("itemsize", [2, 4, 8])
@pytest.mark.parametrize(
    "shape", [(128, 64, 4096), (128, 64, 16), (1, 3, 1), (2, 1000, 7), (1, 2, 10**6), (4, 512, 65536)]
)
def test_configurations_are_sound(shape, itemsize, last):
    batch, channels, spatial = shape
    strides = (1, channels) if last else (spatial, 1)
    layout = _layout.Layout(batch, channels, spatial, *strides, last)
    for config in (forward_config(layout, itemsize, CPU), backward_config(layout, itemsize, True, CPU)):
        assert 1 <= config.block_c * config.block_s * itemsize <= 8192
        assert config.num_warps in (1, 2, 4) and config.splits >= 1
        for edge in (config.block_c, config.block_s):
            assert edge & (edge - 1) == 0
    for groups in {1, channels}:
        config = group_norm_config("group_norm_modulate_forward", layout, groups, itemsize, 16384, CPU)
        assert config.block_c % config.groups == 0 and config.num_warps in (1, 2, 4, 8, 16)
        assert config.block_c * config.block_s <= (16384 if config.resident else 4096)
        per_group = channels // groups
        if config.resident:
            assert config.block_c // config.groups >= per_group and config.block_s >= spatial and config.splits == 1


@pytest.mark.parametrize("itemsize", [4, 8])
@pytest.mark.parametrize("points,others,dims", [(1, 1, 1), (64, 64, 10), (2048, 2048, 10), (100_000, 17, 256)])
def test_configurations_over_pairs_are_sound(points, others, dims, itemsize):
    """A thread owns a point, padding covers whole tiles and chunks, no part is empty, few points are cut into parts."""
    configs = [
        aggregate_config("aggregate_forward", points, others, dims, itemsize, CPU),
        aggregate_config("aggregate_backward", points, others, dims, itemsize, CPU),
        pairwise_config("mmd", points, 1, dims, itemsize, CPU),
    ]
    for config, passed in zip(configs, (others, others, points)):
        assert config.block == 32 * config.num_warps <= PADDING == PAIRWISE_PADDING
        assert PADDING % config.block == 0 and PADDING % config.chunk == 0
        assert 1 <= config.splits <= max(1, -(-passed // config.chunk))
    if (points, others) == (2048, 2048):
        assert all(16 * config.splits >= 4 * 132 // 2 for config in configs[:2])


def test_groups_are_laid_out_once():
    """The order of the dims is kept on the device: a step copies nothing from the host."""
    first = _group_layout((1, 0, 1, 0), CPU)
    assert [t.tolist() for t in first] == [[1, 3, 0, 2], [0, 2, 4]]
    assert all(a is b for a, b in zip(first, _group_layout((1, 0, 1, 0), CPU)))


def test_launch_counts_over_pairs():
    """The other side's parameters, the samples, the pairs, the result: four forward; backward two for either side."""
    z = torch.ones(64, 3)
    with _launch.recording() as launches:
        outputs = kernels.aggregate_forward(z, z, z, 0, 64, 0, (0, 1, 1))
        assert len(launches) == 4
        launches.clear()
        kernels.aggregate_backward(*outputs, z, z, z, *outputs, 0, 64, 0, (0, 1, 1), 7)
        assert len(launches) == 6
        launches.clear()
        terms = kernels.kl_terms_forward(z, z, z, 0, 64, 0, (), True)
        assert len(launches) == 4 + 2
        launches.clear()
        kernels.kl_terms_backward(*terms[:5], z, z, z, *terms[5:], 0, 64, 0, (), True, 7)
        assert len(launches) == 6 + 2
        launches.clear()
        kernels.mmd_forward(z, z, 0, (1.0, 2.0), True, 3)
        kernels.hsic_forward(z, z, 1, (1.0,), (1.0,), True)
        assert len(launches) == 2


def test_few_groups_are_split_and_many_are_not():
    def config(batch, spatial):
        layout = _layout.Layout(batch, 64, spatial, spatial, 1, False)
        return group_norm_config("group_norm_modulate_forward", layout, 8, 4, 16384, CPU)

    assert config(128, 64).resident and config(128, 64).splits == 1
    assert not config(128, 4096).resident and config(128, 4096).splits == 1
    assert config(2, 16384).splits > 1


def test_tuned_table_overrides_the_heuristic(tmp_path):
    path = tmp_path / "device.json"
    path.write_text(json.dumps({"modulate_forward": {"64,16,False,4": {"block_c": 8, "num_warps": 2}}}))
    heuristic = ModulateConfig(16, 16)
    assert _tuning.override(path, "modulate_forward", (64, 16, False, 4), heuristic) == ModulateConfig(8, 16, 2)
    assert _tuning.override(path, "modulate_forward", (64, 17, False, 4), heuristic) is heuristic
    assert _tuning.override(tmp_path / "none.json", "modulate_forward", (64,), heuristic) is heuristic
    assert _tuning.table_path("NVIDIA H200").name == "nvidia_h200.json"
    wrong = tmp_path / "wrong.json"
    wrong.write_text(json.dumps({"x": {"1": {"block_q": 1}}}))
    with pytest.raises(ValueError, match=r"wrong.json: x has unknown fields \['block_q'\]"):
        _tuning.override(wrong, "x", (1,), GroupNormConfig(1, 1, 1, 1, True))
