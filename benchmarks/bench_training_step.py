"""One training step (forward, backward, Adam) of whole models at the SAE paper's size against the same nets in torch.

64x64x3, batch 128, 12 + 12 blocks of 64 channels; bfloat16 (by autocast) and float32, alike on every side.
STRUCFAST_FULL=1 adds what takes long: float32 (a minute) and torch.compile, whose graphs take one core 80 to 105 s a
net.
"""

import pytest
import torch

from benchmarks import _models, _timing

BATCH = 128


def _cases():
    for dtype in (torch.bfloat16, torch.float32) if _timing.full() else (torch.bfloat16,):
        for name in _models.NAMES:
            compiled = _timing.full()
            marks = [pytest.mark.compiles] if compiled else []
            yield pytest.param(name, dtype, compiled, id=f"{name}-{str(dtype).removeprefix('torch.')}", marks=marks)


@pytest.mark.parametrize(("name", "dtype", "compiled"), list(_cases()))
def test_training_step(compare, name, dtype, compiled):
    nets = _models.nets(name, compiled=compiled)
    _models.check_losses(nets, dtype)
    providers = {provider: net.training_step(BATCH, dtype) for provider, net in nets.items()}
    case = _models.case(nets["strucfast"], name, BATCH)
    compare("training_step", case, "step", dtype, "channels_last", providers, check=_models.OPS[name])
