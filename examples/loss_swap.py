"""The beta-TCVAE's loss in a plain training loop: written out, and as one call. Procedural dSprites, no download.

python examples/loss_swap.py [--quick]
"""

import argparse
import math
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import strucfast as sf

BETA, LATENT = 4.0, 6


def before(z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, dataset_size: int) -> torch.Tensor:
    """MI + BETA TC + dimension-wise KL with (B, B, D) tensors and stratified weights."""
    batch = len(z)
    own, other = 1 / dataset_size, (dataset_size - 1) / (dataset_size * (batch - 1))
    log_w = torch.full((batch, batch), other).fill_diagonal_(own).log()
    pairs = -0.5 * ((z[:, None] - mean) ** 2 / logvar.exp() + logvar + math.log(2 * math.pi))
    joint = torch.logsumexp(log_w + pairs.sum(2), dim=1)
    product = torch.logsumexp(log_w[:, :, None] + pairs, dim=1).sum(1)
    posterior = -0.5 * ((z - mean) ** 2 / logvar.exp() + logvar + math.log(2 * math.pi)).sum(1)
    prior = -0.5 * (z**2 + math.log(2 * math.pi)).sum(1)
    return ((posterior - joint) + BETA * (joint - product) + (product - prior)).mean()


def after(z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, dataset_size: int) -> torch.Tensor:
    """The same, without a (B, B, D) tensor."""
    kl = sf.losses.kl_terms(z, mean, logvar, dataset_size=dataset_size)
    return kl.index_code_mi + BETA * kl.total_correlation + kl.dimwise_kl


def train(regulariser, images: torch.Tensor, dataset_size: int, steps: int, batch: int) -> tuple[list[float], float]:
    """An ordinary loop; returns the losses and the seconds spent in the regulariser, forward and backward."""
    torch.manual_seed(0)
    pixels = images[0].numel()
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(pixels, 64), nn.ReLU(), nn.Linear(64, 2 * LATENT))
    decoder = nn.Sequential(nn.Linear(LATENT, 64), nn.ReLU(), nn.Linear(64, pixels))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3)
    losses, seconds = [], 0.0
    for _ in range(steps):
        x = images[torch.randint(len(images), (batch,))]
        mean, logvar = encoder(x).chunk(2, dim=1)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        reconstruction = F.binary_cross_entropy_with_logits(decoder(z), x.flatten(1), reduction="sum") / batch
        start = time.perf_counter()
        penalty = regulariser(z, mean, logvar, dataset_size)
        torch.autograd.grad(penalty, (z, mean, logvar), retain_graph=True)
        seconds += time.perf_counter() - start
        loss = reconstruction + penalty
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few steps, small batches")
    quick = parser.parse_args().quick
    steps, batch = (5, 32) if quick else (40, 512)
    dataset = sf.data.build("dsprites", image_size=32)
    rows = np.random.default_rng(0).integers(len(dataset), size=2048)
    images = torch.from_numpy(np.asarray(dataset.images(rows))).permute(0, 3, 1, 2).float() / 255
    print(f"{len(images)} of {len(dataset):,} dSprites images, {steps} steps of {batch}, beta {BETA:g}")
    results = {}
    for name, regulariser in (("before", before), ("after", after)):
        losses, seconds = results[name] = train(regulariser, images, len(dataset), steps, batch)
        print(
            f"{name:7} first loss {losses[0]:.3f}, last loss {losses[-1]:.3f},"
            f" {1e3 * seconds / steps:.2f} ms a step in the regulariser"
        )
    (wanted, slow), (found, fast) = results["before"], results["after"]
    worst = max(abs(a - b) / abs(b) for a, b in zip(found, wanted, strict=True))
    print(f"largest relative difference of a loss: {worst:.1e}; regulariser {slow / fast:.1f}x as fast")
    assert worst < 1e-2


if __name__ == "__main__":
    main()
