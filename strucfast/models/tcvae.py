"""beta-TCVAE: the KL term's parts weighted by themselves, the total correlation estimated from the minibatch."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..distributions.priors import StandardNormalPrior
from ..losses import LossTerms, beta_tcvae_terms
from ..nn._checks import one_of
from ..reference.aggregate import WEIGHTS
from .config import AEConfig, set_number
from .vae import VAE


@dataclass(frozen=True)
class TCVAEConfig(AEConfig):
    """A Gaussian encoder and the decomposed KL.

    Attributes:
        alpha, beta, gamma: weights of index-code mutual information, total correlation and dimension-wise KL.
        estimator: of the aggregate posterior: "mss" (exact stratified weights), "mws" or "naive" (1/B).
    """

    alpha: float = 1.0
    # The best by validation loss (SAE paper, appendix A.2.2).
    beta: float = 4.0
    gamma: float = 1.0
    estimator: str = "mss"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("alpha", "beta", "gamma"):
            set_number(self, name, minimum=0.0)
        one_of("estimator", self.estimator, WEIGHTS)


class TCVAE(VAE):
    """beta-TCVAE (Chen et al. 2018, "Isolating Sources of Disentanglement in VAEs", equation 4).

    ``reconstruction + alpha * MI + beta * TC + gamma * dimension-wise KL``; the dimension-wise KL is against the joint
    prior, so that priors that do not factorise do, too. "mss" and "mws" need the size of the training set, which
    :meth:`begin_training` learns.
    """

    config_type: ClassVar[type[AEConfig]] = TCVAEConfig

    def _objective(
        self, reconstruction: torch.Tensor, z: torch.Tensor, mean: torch.Tensor, logvar: torch.Tensor
    ) -> LossTerms:
        config = self.config
        weights = {"alpha": config.alpha, "beta": config.beta, "gamma": config.gamma}
        dataset_size = None
        if config.estimator != "naive" and len(set(weights.values())) > 1:
            dataset_size = known_dataset_size(self)
        return beta_tcvae_terms(
            reconstruction,
            z,
            mean,
            logvar,
            **weights,
            dataset_size=dataset_size,
            estimator=config.estimator,
            prior=None if isinstance(self.prior, StandardNormalPrior) else self.prior(),
            # Validation is not collective.
            gather=self.training,
        )


def known_dataset_size(model: VAE) -> int:
    """The size of the model's training set.

    Raises:
        ValueError: it is not known yet.
    """
    if model.dataset_size is None:
        raise ValueError(
            f"dataset_size of {model.name!r} must be known for the estimator {model.config.estimator!r}, got None: "
            'call begin_training first, set model.dataset_size, or use estimator="naive"'
        )
    return model.dataset_size
