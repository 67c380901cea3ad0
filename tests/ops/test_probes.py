"""Dispatch asks torch two private questions; when torch moves them, this must fail loudly."""

import subprocess
import sys

import torch
from torch.autograd import forward_ad

from strucfast.ops._probes import constant_under_compile, transform_active


def test_quiet_outside():
    assert transform_active() is False


def test_seen_inside_each_transform():
    seen = []

    def record(x):
        seen.append(transform_active())
        return x * x

    x = torch.ones(2)
    torch.func.vmap(record)(x)
    torch.func.grad(record)(x[0])
    torch.func.jvp(record, (x,), (x,))
    with forward_ad.dual_level():
        record(x)
    assert seen == [True] * 4
    assert transform_active() is False


def test_constant_is_what_torch_marks():
    def function():
        return 1

    official = dict(vars(torch.compiler.assume_constant_result(lambda: 1)))
    assert vars(constant_under_compile(function)) == official


def test_import_does_not_load_dynamo():
    script = "import sys, strucfast; assert 'torch._dynamo' not in sys.modules"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
