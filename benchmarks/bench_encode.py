"""Images to codes: the encoders of SAE-12 and the beta-TCVAE at the SAE paper's size, without gradients.

64x64x3, bfloat16 (by autocast) and float32, alike on every side, batch 128 and 512. By default bfloat16, and 512 for
SAE-12 only; STRUCFAST_FULL=1 adds the rest and torch.compile, which takes 20 s an encoder.
"""

import pytest
import torch

from benchmarks import _models, _timing

SHORT = (("sae-12", 128, torch.bfloat16), ("sae-12", 512, torch.bfloat16), ("beta-tcvae", 128, torch.bfloat16))


def _cases():
    for name in ("sae-12", "beta-tcvae"):
        for dtype in (torch.bfloat16, torch.float32):
            for batch in (128, 512):
                if _timing.full() or (name, batch, dtype) in SHORT:
                    marks = [pytest.mark.compiles] if _timing.full() else []
                    kind = str(dtype).removeprefix("torch.")
                    yield pytest.param(name, batch, dtype, id=f"{name}-{batch}-{kind}", marks=marks)


@pytest.mark.parametrize(("name", "batch", "dtype"), list(_cases()))
def test_encode(compare, name, batch, dtype):
    nets = _models.nets(name, compiled=_timing.full())
    _models.check_codes(nets, dtype)
    providers = {provider: net.encoding(batch, dtype) for provider, net in nets.items()}
    case = _models.case(nets["strucfast"], name, batch)
    stats = compare("encode", case, "forward", dtype, "channels_last", providers, check=_models.OPS[name], seconds=1.0)
    rates = ", ".join(f"{provider} {batch / found.median_ms * 1e3:,.0f}" for provider, found in stats.items())
    print(f"\n{case}, {str(dtype).removeprefix('torch.')}, images/s: {rates}")
