"""pythae's own losses on tensors: methods of its models, called as they are, with a reconstruction of one number.

Needs pythae; ask :func:`benchmarks._peers.find` for "pythae.models" first.
"""

from collections.abc import Callable

import torch


def beta_tcvae(latent_dim: int, *, beta: float = 1.0, use_mss: bool = True) -> Callable[..., torch.Tensor]:
    """(z, mean, logvar, dataset_size) -> MI + beta TC + dimension-wise KL of its BetaTCVAE, a scalar in nats.

    Its stratified weights put 1/N into the first column instead of on the diagonal, so that only the values under
    ``use_mss=False`` (minibatch weighted sampling) are those of strucfast's estimator of that name.
    """
    from pythae.models import BetaTCVAE, BetaTCVAEConfig

    config = BetaTCVAEConfig(input_dim=(1,), latent_dim=latent_dim, beta=beta, use_mss=use_mss)
    model, pixel = BetaTCVAE(config), torch.zeros(1, 1)

    def loss(z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor, dataset_size: int) -> torch.Tensor:
        return model.loss_function(pixel, pixel, mean, logvar, z, dataset_size)[2]

    return loss


def wae_mmd(latent_dim: int, *, kernel: str = "imq") -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """(z, prior_z) -> the MMD of its WAE_MMD with kernel bandwidth 1, a scalar.

    The formula of ``sf.ops.mmd``: "imq" with the constants of ``sf.losses.wae_bandwidths(latent_dim)``, "rbf" with
    bandwidth ``latent_dim ** 0.5``.
    """
    from pythae.models import WAE_MMD, WAE_MMD_Config

    config = WAE_MMD_Config(input_dim=(1,), latent_dim=latent_dim, kernel_choice=kernel, kernel_bandwidth=1.0)
    model = WAE_MMD(config)

    def loss(z: torch.Tensor, prior_z: torch.Tensor) -> torch.Tensor:
        # Its reconstruction has a row per sample; one pixel each costs next to nothing.
        pixel = z.new_zeros(len(z), 1)
        return model.loss_function(pixel, pixel, z, prior_z)[2]

    return loss
