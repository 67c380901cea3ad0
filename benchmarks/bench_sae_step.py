"""One SAE-12 training step (64x64x3, batch 128: forward, backward, Adam) against the same net in plain torch."""

import pytest
import torch

import strucfast as sf
from benchmarks import _correctness
from benchmarks.baselines.sae import PlainSAE

BATCH_SIZE = 128


def _step(loss, parameters, dtype):
    optimizer = torch.optim.Adam(parameters, lr=5e-4, fused=True)

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            total = loss()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_sae_step(compare, dtype):
    for op in ("modulate", "group_norm_modulate", "str_tfm"):
        _correctness.refuse_if_wrong(op)
    torch.manual_seed(0)
    torch.compiler.reset()
    model = sf.models.build("sae-12")
    x = torch.rand(BATCH_SIZE, *model.image_shape)
    x_last = x.contiguous(memory_format=torch.channels_last)
    plain = PlainSAE(model)
    last = PlainSAE(model).to(memory_format=torch.channels_last)
    inductor = PlainSAE(model).to(memory_format=torch.channels_last)
    compiled = torch.compile(inductor, dynamic=False)
    providers = {
        "strucfast": _step(lambda: model.loss(x_last).total, model.parameters(), dtype),
        "eager": _step(lambda: plain(x), plain.parameters(), dtype),
        "channels_last": _step(lambda: last(x_last), last.parameters(), dtype),
        "torch.compile": _step(lambda: compiled(x_last), inductor.parameters(), dtype),
    }
    case = f"SAE-12 64x64x3, N {BATCH_SIZE}"
    compare("sae_step", case, "step", dtype, "channels_last", providers, check=False, seconds=20.0)
