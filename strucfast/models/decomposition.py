"""VAEs whose prior carries the structure: the objective L_{alpha,beta} of the decomposition paper."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch

from ..distributions import priors
from ..losses import (
    LossTerms,
    aggregate_divergence,
    bernoulli_reconstruction,
    decomposition_terms,
    elbo_terms,
    prior_kl,
)
from ..losses.divergences import DIVERGENCES
from ..nn._checks import one_of
from .config import AEConfig, VAEConfig, set_number
from .isa_vae import consecutive_groups
from .vae import VAE

# Images whose principal components initialise the prior: the largest of them are known to a few percent.
_PCA_IMAGES = 1024


@dataclass(frozen=True)
class DecompositionConfig(VAEConfig):
    """A prior, and the weights and the kind of the divergences towards it.

    Attributes:
        alpha: weight of the divergence between aggregate posterior and prior; at 0 it is not computed.
        divergence: "kl_pq" (the paper's clustering), "mmd_dimwise" (its sparsity), "mmd", "kl_qp" or "none".
        prior: normal, anisotropic, student-t, mixture, sparse or isa.
        prior_options: arguments of that prior's class in ``strucfast.distributions.priors``. Empty: its defaults,
            except that the standard deviations of "anisotropic" are learnt.
        pca: start the standard deviations of "anisotropic" from the principal components of the training images. None:
            unless prior_options gives ``std``.
    """

    latent_dim: int = 10
    alpha: float = 0.0
    divergence: str = "kl_pq"
    prior: str = "anisotropic"
    prior_options: dict[str, Any] = field(default_factory=dict)
    pca: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        set_number(self, "alpha", minimum=0.0)
        one_of("divergence", self.divergence, (*DIVERGENCES, "none"))
        one_of("prior", self.prior, tuple(priors.PRIORS))
        anisotropic = self.prior == "anisotropic"
        if anisotropic and not self.prior_options:
            object.__setattr__(self, "prior_options", {"learn": True})
        if self.alpha and self.divergence == "none":
            raise ValueError(f"divergence must not be 'none' with alpha = {self.alpha:g}")
        if self.pca and not anisotropic:
            raise ValueError(f"pca must be off with prior = {self.prior!r}: it sets the scales of 'anisotropic'")
        if self.pca is None:
            object.__setattr__(self, "pca", anisotropic and "std" not in self.prior_options)


class DecompositionVAE(VAE):
    """VAE with a structured prior (Mathieu, Rainforth, Siddharth, Teh 2019, "Disentangling Disentanglement in
    Variational Autoencoders", equation 7).

    ``-L_{alpha,beta} = reconstruction + beta KL(q(z|x) || p(z)) + alpha D(q(z), p(z))``: beta sets the overlap of the
    posteriors, alpha how closely their mixture follows the prior. The KL is in closed form where there is one (normal
    and anisotropic), else estimated from the sample of the reconstruction. D is estimated on the batch, with as many
    draws from the prior. A learnt prior gets gradients from both; a mixture from the KL alone, its draws have none.
    """

    config_type: ClassVar[type[AEConfig]] = DecompositionConfig

    def _make_prior(self) -> priors.Prior:
        config = self.config
        return priors.build(config.prior, config.latent_dim, **config.prior_options)

    @property
    def latent_groups(self) -> list[list[int]]:
        if isinstance(self.prior, priors.LpNestedISAPrior):
            return consecutive_groups(self.prior.sizes)
        return super().latent_groups

    def begin_training(self, dataset: Any, indices: Any, *, resumed: bool = False) -> None:
        super().begin_training(dataset, indices, resumed=resumed)
        if self.config.pca and not resumed:
            # The same images for every seed of the run: the prior belongs to the data.
            order = torch.randperm(len(indices), generator=torch.Generator().manual_seed(0))[:_PCA_IMAGES]
            images = dataset.images(np.sort(np.asarray(indices)[order.numpy()]))
            self.prior.initialise_from(torch.from_numpy(images))

    def loss(self, x: torch.Tensor, *, generator: torch.Generator | None = None, optimizer_index: int = 0) -> LossTerms:
        """The objective with one reparametrised sample per image and, if alpha > 0, one draw from the prior each.

        Terms: "reconstruction", "kl" and, if alpha > 0, "divergence".
        """
        self._check_optimizer_index(optimizer_index)
        x = self._images(x)
        mean, logvar = self.posterior(x)
        z = self._reparametrise(mean, logvar, generator)
        reconstruction = bernoulli_reconstruction(self.decode_logits(z), x)
        config, prior = self.config, self.prior()
        kl = prior_kl(z, mean, logvar, prior)
        if not config.alpha:
            return elbo_terms(reconstruction, kl, config.beta)
        prior_z = self._draw(prior, len(x), generator) if config.divergence != "kl_qp" else None
        divergence = aggregate_divergence(config.divergence, z, mean, logvar, prior_z, prior)
        return decomposition_terms(reconstruction, kl, divergence, alpha=config.alpha, beta=config.beta)

    def _draw(self, prior: torch.distributions.Distribution, n: int, generator: torch.Generator | None) -> torch.Tensor:
        """Draws (n,D) from the prior, with gradient where it learns and its draws have one."""
        learns = any(parameter.requires_grad for parameter in self.prior.parameters())
        if learns and prior.has_rsample:
            return prior.rsample(torch.Size((n,)), generator=generator)
        return self.prior.sample(n, generator)
