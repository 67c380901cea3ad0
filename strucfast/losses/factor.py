"""Total correlation from a discriminator, as in FactorVAE (Kim & Mnih 2018, "Disentangling by Factorising")."""

import torch
import torch.nn.functional as F

from ._checks import loss_dtype, no_autocast, points


def permute_dims(z: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
    """Shuffle every latent dim over the batch by itself: samples of (nearly) prod_d q(z_d) from samples of q(z).

    Kim & Mnih 2018, algorithm 1. Gradient passes to the values that were moved.

    Args:
        generator: randomness, on the device of z.

    Shapes: z (N,D) -> (N,D).

    Raises:
        TypeError: z is not floating. ValueError: z is not (N,D) with N >= 1.
    """
    points("z", z)
    keys = torch.rand(z.shape, generator=generator, device=z.device)
    return z.gather(0, keys.argsort(dim=0))


def density_ratio_tc(logits: torch.Tensor) -> torch.Tensor:
    """Total correlation ``E_q(z) log[ D(z) / (1 - D(z)) ]`` from a discriminator's logits at z ~ q(z), in nats.

    Kim & Mnih 2018, equation 3. With D = softmax(logits)_0 the log-ratio is the difference of the two logits, so that
    nothing saturates. It is right as far as the discriminator is; it may be negative. Computed in float32 for half
    types.

    Shapes: logits (N,2): column 0 for "a sample of q(z)", column 1 for "permuted" -> scalar, mean over the batch.

    Raises:
        TypeError: logits are not floating. ValueError: they are not (N,2) with N >= 1.
    """
    points("logits", logits, 2)
    aggregate, permuted = logits.to(loss_dtype(logits)).unbind(dim=1)
    return (aggregate - permuted).mean()


def discriminator_loss(logits: torch.Tensor, permuted_logits: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the discriminator that tells z ~ q(z) from permuted z', in nats per sample; log 2 is guessing.

    ``-1/2 [ mean log D(z) + mean log(1 - D(z')) ]``, D = softmax(logits)_0 (Kim & Mnih 2018, algorithm 2). z and the
    z' that was permuted come from different images, so that the two classes are independent of each other.

    Shapes: logits (N,2) at z, permuted_logits (M,2) at permute_dims(z') -> scalar.

    Raises:
        TypeError: a tensor that is not floating. ValueError: not (N,2) with N >= 1.
    """
    points("logits", logits, 2)
    points("permuted_logits", permuted_logits, 2)
    dtype = loss_dtype(logits, permuted_logits)
    with no_autocast(logits):
        logits, permuted_logits = logits.to(dtype), permuted_logits.to(dtype)
        true = F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.int64))
        permuted = F.cross_entropy(permuted_logits, permuted_logits.new_ones(len(permuted_logits), dtype=torch.int64))
        return 0.5 * (true + permuted)
