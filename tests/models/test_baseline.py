"""The plain torch net that benchmarks compare against computes what the model computes."""

import pytest
import torch

import strucfast as sf
from benchmarks.baselines.sae import PlainSAE


def test_same_loss_and_gradients():
    torch.manual_seed(0)
    model = sf.models.build("sae-3", image_size=16, width=8, blocks=4, latent_dim=6, hidden=(8, 8)).double()
    plain = PlainSAE(model).double()
    x = torch.rand(4, 3, 16, 16, dtype=torch.float64)
    # The baseline takes its loss in float32, as such code does.
    ours, theirs = model.loss(x).total, plain(x)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    ours.backward()
    theirs.backward()
    assert sum(p.numel() for p in plain.parameters()) == sum(p.numel() for p in model.parameters())
    torch.testing.assert_close(model.decoder.base.grad, plain.base.grad, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model.encoder.head[0].weight.grad, plain.head.weight.grad, rtol=1e-5, atol=1e-6)
    for number, mlp in enumerate(plain.mlps):
        found = model.decoder.transforms.weights[0].grad[number]
        torch.testing.assert_close(found, mlp[0].weight.grad, rtol=1e-5, atol=1e-6)
