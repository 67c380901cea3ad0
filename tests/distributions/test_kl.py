"""Closed KL divergences against torch's own and against the mean log-ratio over exact samples."""

import pytest
import torch
from helpers.statistics import CLEARLY_WRONG, Z_THRESHOLD, z_score
from torch.distributions import Gamma, Independent, Laplace, Normal, Weibull, kl_divergence

from strucfast.distributions import (
    AnisotropicNormal,
    GeneralizedNormal,
    LpNested,
    LpNestedISA,
    ProductStudentT,
    SparseNormal,
)


def double(value):
    return torch.tensor(value, dtype=torch.float64)


SCALE = double([0.5, 1.0, 2.0])
ANISO = AnisotropicNormal(SCALE)
NORMAL = Independent(Normal(double([0.3, -1.0, 0.0]), double([0.7, 1.2, 1.9])), 1)
TREE = {"p": double(1.5), "children": [0, {"p": double(3.0), "children": [1, 2]}]}
OTHERS = {
    "isa": LpNestedISA((2, 1), double(2.1), double([1.5, 1.0]), 1.0),
    "tree": LpNested(TREE, 0.75),
    "tree, other radius": LpNested(TREE, radial=Gamma(double(4.0), double(2.0))),
    "student": ProductStudentT(double([5.0, 9.0, 3.5]), double([0.2, 0.0, -1.0]), 0.8),
    "gennorm": Independent(GeneralizedNormal(double([0.2, 0.0, -1.0]), 0.8, double([1.5, 1.0, 3.0])), 1),
}


def test_normals_against_torch():
    as_torch = Independent(Normal(torch.zeros(3).double(), SCALE), 1)
    torch.testing.assert_close(kl_divergence(NORMAL, ANISO), kl_divergence(NORMAL, as_torch))
    torch.testing.assert_close(kl_divergence(ANISO, NORMAL), kl_divergence(as_torch, NORMAL))
    wider = AnisotropicNormal(2 * SCALE)
    both = Independent(Normal(torch.zeros(3).double(), 2 * SCALE), 1)
    torch.testing.assert_close(kl_divergence(ANISO, wider), kl_divergence(as_torch, both))
    assert float(kl_divergence(ANISO, ANISO)) == 0
    # a batch of posteriors against one prior, with gradients to both
    mean, scale, prior = (torch.rand(s, dtype=torch.float64, requires_grad=True) for s in ((4, 3), (4, 3), (3,)))

    def kl(mean, scale, prior):
        return kl_divergence(Independent(Normal(mean, scale + 0.1), 1), AnisotropicNormal(prior + 0.1))

    assert kl(mean, scale, prior).shape == (4,) and torch.autograd.gradcheck(kl, (mean, scale, prior))


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("other", [ANISO, NORMAL], ids=["aniso", "normal"])
def test_against_samples(name, other):
    p = OTHERS[name]
    torch.manual_seed(0)
    samples = p.sample((40000,))
    ratio = p.log_prob(samples) - other.log_prob(samples)
    closed = kl_divergence(p, other)
    assert float(z_score(ratio, closed)) < Z_THRESHOLD
    assert float(z_score(ratio, closed * 1.2)) > CLEARLY_WRONG


def test_generalised_normal_against_a_normal():
    p, q = GeneralizedNormal(double(0.5), 1.3, 1.0), Normal(double(0.1), 0.8)
    torch.testing.assert_close(kl_divergence(p, q), kl_divergence(Laplace(double(0.5), 1.3), q))


def test_infinite_and_missing():
    heavy = ProductStudentT(double([[5.0, 2.0], [0.5, 5.0], [5.0, 5.0]]))
    normal = AnisotropicNormal(torch.ones(2).double())
    assert kl_divergence(heavy, normal).isinf().tolist() == [True, True, False]
    assert kl_divergence(heavy, Independent(Normal(torch.zeros(2), torch.ones(2)), 1)).isinf().sum() == 2
    with pytest.raises(NotImplementedError):
        kl_divergence(SparseNormal(0.5), Normal(0.0, 1.0))
    with pytest.raises(NotImplementedError, match="only Independent"):
        kl_divergence(ANISO, Independent(Gamma(torch.ones(3), 1.0), 1))
    with pytest.raises(NotImplementedError, match="entropy"):
        kl_divergence(LpNested(TREE, radial=Weibull(double(4.0), 1.0)), ANISO)
