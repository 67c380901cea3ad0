"""Statistics of samples, in units whose threshold does not depend on the sample size.

All draws are seeded. THRESHOLD is what a correct sampler exceeds once in 3e4 (KS) or 1.5e4 (z score) seeds; a wrong one
grows with the root of the sample size and must exceed CLEARLY_WRONG where a test shows it.
"""

import torch

KS_THRESHOLD, Z_THRESHOLD = 2.3, 4.0
CLEARLY_WRONG = 8.0


def ks(samples: torch.Tensor, cdf) -> float:
    """sqrt(N) times the Kolmogorov-Smirnov distance of samples (N,) from a distribution function of a numpy array."""
    points = samples.detach().double().sort().values
    n = points.numel()
    expected = torch.as_tensor(cdf(points.numpy()), dtype=torch.float64)
    rank = torch.arange(n, dtype=torch.float64)
    above, below = (rank + 1) / n - expected, expected - rank / n
    return float(torch.maximum(above, below).max() * n**0.5)


def z_score(samples: torch.Tensor, mean: torch.Tensor | float = 0.0, slack: float = 0.0) -> torch.Tensor:
    """Standard errors between the mean of samples (N, ...) and what it should be, beyond a slack relative to that."""
    mean = torch.as_tensor(mean, dtype=samples.dtype)
    error = samples.std(dim=0) / samples.shape[0] ** 0.5
    return ((samples.mean(dim=0) - mean).abs() - slack * mean.abs()).clamp(min=0) / error


def rank_correlation(x: torch.Tensor, y: torch.Tensor) -> float:
    """sqrt(N) times Spearman's correlation of x and y (N,): a z score under independence."""
    ranks = [t.argsort().argsort().double() - (t.numel() - 1) / 2 for t in (x, y)]
    return float((ranks[0] @ ranks[1]) / (ranks[0].norm() * ranks[1].norm()) * x.numel() ** 0.5)
