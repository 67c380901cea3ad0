"""VAEs with an Lp-nested prior of independent subspaces: ISA-VAE and ISA-TCVAE."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..distributions.priors import LpNestedISAPrior
from ..losses import LossTerms, beta_tcvae_terms, elbo_terms, sample_kl
from ..nn._checks import one_of, widths
from ..reference.aggregate import WEIGHTS
from .config import AEConfig, VAEConfig, set_number
from .tcvae import known_dataset_size
from .vae import VAE


@dataclass(frozen=True)
class ISAConfig(VAEConfig):
    """A prior of independent subspaces; the defaults are the ISA-VAE paper's for dSprites (appendix A.3).

    Attributes:
        sizes: sizes of the K subspaces, which sum to latent_dim.
        p0: exponent of the root, never learnt.
        p: exponents of the subspaces, a number or K of them (1.9 in the paper's 3D Faces experiment). None: 2.2, or
            2.0 with learn_p, where the paper starts to learn (appendix A.2).
        scale: s_k in units of z^p0, a number or K of them; None: variance 1 in every dim at the initial exponents.
            The authors' code has 1, the standard normal is p0 = p = scale = 2.
        learn_p: learn one exponent for each subspace.
    """

    latent_dim: int = 20
    sizes: tuple[int, ...] = (4, 4, 4, 4, 4)
    p0: float = 2.1
    p: float | tuple[float, ...] | None = None
    scale: float | tuple[float, ...] | None = None
    learn_p: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "sizes", widths("sizes", self.sizes))
        if sum(self.sizes) != self.latent_dim:
            expected = f"sizes must sum to latent_dim = {self.latent_dim}"
            raise ValueError(f"{expected}, got {self.sizes}, which sum to {sum(self.sizes)}")
        set_number(self, "p0", above=0.0)
        if self.p is None:
            object.__setattr__(self, "p", 2.0 if self.learn_p else 2.2)


@dataclass(frozen=True)
class ISATCConfig(ISAConfig):
    """``beta`` weights the total correlation alone; ``estimator`` of the aggregate posterior: mss, mws or naive."""

    beta: float = 3.0
    estimator: str = "mss"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("estimator", self.estimator, WEIGHTS)


class ISAVAE(VAE):
    """ISA-VAE (Stühmer, Turner, Nowozin 2020, "Independent Subspace Analysis for Unsupervised Learning of Disentangled
    Representations"): the VAE with an Lp-nested prior, which rotations of the latent space change, unlike the normal.

    The KL is estimated from the one sample of the reconstruction, ``log q(z|x) - log p(z)`` (equations 9 to 11 give
    log p); ``beta`` weights it. With ``learn_p`` the loss has the term "mean_exponent", the mean of the p_k.
    Each subspace is one latent variable of :attr:`latent_groups`.
    """

    config_type: ClassVar[type[AEConfig]] = ISAConfig

    def _make_prior(self) -> LpNestedISAPrior:
        config = self.config
        return LpNestedISAPrior(config.sizes, config.p0, config.p, config.scale, config.learn_p)

    @property
    def latent_groups(self) -> list[list[int]]:
        return consecutive_groups(self.config.sizes)

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        terms = elbo_terms(reconstruction, sample_kl(z, mean, logvar, self.prior()), self.config.beta)
        return self._with_exponents(terms)

    def _with_exponents(self, terms: LossTerms) -> LossTerms:
        if not self.config.learn_p:
            return terms
        return LossTerms(terms.total, {**terms.terms, "mean_exponent": self.prior.exponents().detach().mean()})

    def extra_repr(self) -> str:
        exponents = self.prior.exponents()
        shown = "meta" if exponents.is_meta else ", ".join(f"{p:.4g}" for p in exponents.tolist())
        return f"{super().extra_repr()}, p0={self.config.p0:g}, exponents=[{shown}]"


class ISATCVAE(ISAVAE):
    """ISA-TCVAE: the ISA prior in the beta-TCVAE's objective (ISA-VAE paper, section 4; Chen et al. 2018).

    ``reconstruction + I(n; z) + beta TC + mean[ sum_d log q(z_d) - log p(z) ]``: beta weights the total correlation
    alone, and the dimension-wise term is taken against the joint prior, because the coordinates of a subspace are
    dependent. log q comes from the minibatch; "mss" and "mws" need the size of the training set, which
    :meth:`begin_training` learns, and "mss" two images a batch. beta = 1 is the ISA-VAE.
    """

    config_type: ClassVar[type[AEConfig]] = ISATCConfig

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        config = self.config
        counted = config.estimator != "naive" and config.beta != 1.0
        terms = beta_tcvae_terms(
            reconstruction,
            z,
            mean,
            logvar,
            beta=config.beta,
            dataset_size=known_dataset_size(self) if counted else None,
            estimator=config.estimator,
            prior=self.prior(),
            gather=self.training,
        )
        return self._with_exponents(terms)


def consecutive_groups(sizes: Sequence[int]) -> list[list[int]]:
    """Runs of dims of the given sizes: (2, 1) gives [[0, 1], [2]]."""
    ends = itertools.accumulate(sizes)
    return [list(range(end - size, end)) for size, end in zip(sizes, ends)]
