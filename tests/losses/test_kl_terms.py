"""kl_terms: golden numbers, the identities of the decomposition, priors, and two processes against one."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal

from strucfast import losses
from strucfast.distributions import LpNestedISA, priors

GOLDEN = json.loads((Path(__file__).parents[1] / "data/tc.json").read_text())["cases"]


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def batch(size, dims, seed=0, spread=0.5):
    generator = torch.Generator().manual_seed(seed)
    mean, logvar, noise = (torch.randn(size, dims, generator=generator, dtype=torch.float64) for _ in range(3))
    logvar = spread * logvar - 1
    return mean + torch.exp(0.5 * logvar) * noise, mean, logvar


def one_sample_kl(z, mean, logvar, prior=None):
    """The mean of log q(z|x) - log p(z), from torch's own densities."""
    posterior = Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(dim=1)
    density = Normal(0.0, 1.0).log_prob(z).sum(dim=1) if prior is None else prior.log_prob(z)
    return (posterior - density).mean()


@pytest.mark.parametrize("case", [pytest.param(c, id=c["name"]) for c in GOLDEN if c["kind"] == "square"])
def test_golden_values_and_gradients(case):
    inputs, expected = case["inputs"], case["expected"]
    leaves = [double(inputs[name]).requires_grad_() for name in ("z", "mu", "logvar")]
    terms = losses.kl_terms(
        *leaves, dataset_size=inputs["N"], estimator=inputs["weights"], groups=inputs["groups"] or None
    )
    names = ("mi", "tc", "dwkl", "tc_between_groups", "tc_within_groups")
    for name, value in zip(names, terms):
        torch.testing.assert_close(value.detach(), double(expected[name]), rtol=1e-11, atol=1e-11)
    loss = sum(inputs[weight] * term for weight, term in zip(("alpha", "beta", "gamma"), terms))
    torch.testing.assert_close(loss.detach(), double(expected["loss"]), rtol=1e-11, atol=1e-11)
    for name, grad in zip(("z", "mu", "logvar"), torch.autograd.grad(loss, leaves)):
        torch.testing.assert_close(grad, double(expected[f"grad_loss_{name}"]), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("estimator", ("mss", "mws", "naive"))
@pytest.mark.parametrize("groups", (None, [[0, 3], [1], [2, 4]]))
def test_the_terms_sum_to_the_one_sample_kl(estimator, groups):
    z, mean, logvar = batch(17, 5)
    terms = losses.kl_terms(z, mean, logvar, dataset_size=1000, estimator=estimator, groups=groups)
    torch.testing.assert_close(sum(terms[:3]), one_sample_kl(z, mean, logvar))
    torch.testing.assert_close(terms.between_groups + terms.within_groups, terms.total_correlation)
    if groups is None:
        assert terms.within_groups == 0
    else:
        assert terms.within_groups.abs() > 1e-3


def test_a_whole_batch_under_mss_is_exact():
    """B = N: the mixture over the whole training set, from torch's MixtureSameFamily."""
    z, mean, logvar = batch(13, 4)
    terms = losses.kl_terms(z, mean, logvar, dataset_size=13)
    components = Independent(Normal(mean, torch.exp(0.5 * logvar)), 1)
    mixture = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(torch.ones(13)), components)
    posterior = components.log_prob(z)
    torch.testing.assert_close(terms.index_code_mi, (posterior - mixture.log_prob(z)).mean())


def test_equal_posteriors_have_no_information_and_no_correlation():
    z, mean, logvar = batch(9, 4)
    mean, logvar = mean[:1].expand(9, 4), logvar[:1].expand(9, 4)
    for estimator, constant in (("mss", 0.0), ("naive", 0.0), ("mws", math.log(50))):
        terms = losses.kl_terms(z, mean, logvar, dataset_size=50, estimator=estimator)
        torch.testing.assert_close(terms.index_code_mi, double(constant), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(terms.total_correlation, double(3 * constant), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("estimator,limit", (("mss", 1000), ("naive", 12), ("mws", 12000)))
def test_information_saturates_at_the_log_of_the_own_weight(estimator, limit):
    z, mean, logvar = batch(12, 6)
    scattered = 100.0 * mean
    z, logvar = scattered + 1e-3 * (z - mean), torch.full_like(logvar, 2 * math.log(1e-3))
    mi = losses.kl_terms(z, scattered, logvar, dataset_size=1000, estimator=estimator).index_code_mi
    torch.testing.assert_close(mi, double(math.log(limit)), rtol=1e-9, atol=1e-9)


def test_mws_and_naive_have_the_same_gradients():
    grads = []
    for estimator in ("mws", "naive"):
        leaves = [t.requires_grad_() for t in batch(8, 3)]
        terms = losses.kl_terms(*leaves, dataset_size=999, estimator=estimator)
        grads.append(torch.autograd.grad(terms[0] + 6 * terms[1] + terms[2], leaves))
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_a_prior_enters_the_dimwise_kl_alone():
    z, mean, logvar = batch(11, 4)
    scale = double([0.5, 1.0, 2.0, 3.0])
    prior = Independent(Normal(torch.zeros_like(scale), scale), 1)
    groups = [[0, 2], [1, 3]]
    plain = losses.kl_terms(z, mean, logvar, dataset_size=100, groups=groups)
    terms = losses.kl_terms(z, mean, logvar, dataset_size=100, groups=groups, prior=prior)
    torch.testing.assert_close(sum(terms[:3]), one_sample_kl(z, mean, logvar, prior))
    for name in ("index_code_mi", "total_correlation", "between_groups", "within_groups"):
        torch.testing.assert_close(getattr(terms, name), getattr(plain, name))


def test_an_isa_prior_needs_groups_that_keep_its_subspaces_whole():
    z, mean, logvar = batch(11, 5)
    prior = LpNestedISA((2, 3), double(2.1), double([2.2, 1.7]))
    for groups in ([[0, 1], [2, 3, 4]], [[4, 3, 2, 1, 0]]):
        terms = losses.kl_terms(z, mean, logvar, dataset_size=100, groups=groups, prior=prior)
        torch.testing.assert_close(
            terms.index_code_mi + terms.between_groups + terms.within_groups + terms.dimwise_kl,
            one_sample_kl(z, mean, logvar, prior),
        )
    with pytest.raises(ValueError, match=r"groups must not split.*LpNestedISA.*\[2, 3, 4\]"):
        losses.kl_terms(z, mean, logvar, dataset_size=100, groups=[[0, 1], [2], [3, 4]], prior=prior)
    with pytest.raises(ValueError, match="groups must not split.*MultivariateNormal"):
        correlated = MultivariateNormal(torch.zeros(5), torch.eye(5))
        losses.kl_terms(z, mean, logvar, dataset_size=100, groups=[[0, 1], [2, 3, 4]], prior=correlated)


def test_half_inputs_are_computed_in_float32():
    z, mean, logvar = (t.bfloat16() for t in batch(6, 3))
    terms = losses.kl_terms(z, mean, logvar, dataset_size=10)
    expected = losses.kl_terms(z.float(), mean.float(), logvar.float(), dataset_size=10)
    for a, b in zip(terms, expected):
        assert a.dtype == torch.float32 and torch.equal(a, b)


def test_bad_input_is_named():
    z, mean, logvar = batch(6, 3)
    with pytest.raises(ValueError, match=r"same shape \(B, D\) with B >= 1.*\(5, 3\)"):
        losses.kl_terms(z[:5], mean, logvar, dataset_size=10)
    with pytest.raises(ValueError, match=r"B >= 1.*\(0, 3\)"):
        losses.kl_terms(z[:0], mean[:0], logvar[:0], dataset_size=10)
    with pytest.raises(ValueError, match="dataset_size must be at least"):
        losses.kl_terms(z, mean, logvar, dataset_size=5)
    with pytest.raises(ValueError, match="weights must be one of"):
        losses.kl_terms(z, mean, logvar, dataset_size=10, estimator="exact")
    with pytest.raises(ValueError, match=r"prior must have batch shape \(\) and event shape \(3,\)"):
        losses.kl_terms(z, mean, logvar, dataset_size=10, prior=Normal(torch.zeros(3), torch.ones(3)))


@pytest.mark.parametrize("groups", (None, [[0, 2], [1]]))
@pytest.mark.parametrize("with_prior", (False, True))
def test_gradients_of_every_order(groups, with_prior):
    prior = LpNestedISA((3,), double(2.1), double([1.7])) if with_prior else None
    if groups and with_prior:
        groups = [[1, 2, 0]]

    def terms(*leaves):
        return losses.kl_terms(*leaves, dataset_size=20, groups=groups, prior=prior)[: 5 if groups else 3]

    leaves = [t.requires_grad_() for t in batch(4, 3)]
    assert torch.autograd.gradcheck(terms, leaves)
    assert torch.autograd.gradgradcheck(terms, leaves)


def test_torch_func_and_compile_give_the_same():
    def loss(z, mean, logvar):
        terms = losses.kl_terms(z, mean, logvar, dataset_size=20, groups=[[0, 2], [1]])
        return sum(weight * term for weight, term in zip((1.0, 6.0, 2.0, 3.0, 4.0), terms))

    leaves = [t.requires_grad_() for t in batch(6, 3)]
    expected = torch.autograd.grad(loss(*leaves), leaves)
    plain = [t.detach() for t in leaves]
    for a, b in zip(torch.func.grad(loss, argnums=(0, 1, 2))(*plain), expected):
        torch.testing.assert_close(a, b)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    for a, b in zip(torch.autograd.grad(compiled(*leaves), leaves), expected):
        torch.testing.assert_close(a, b)


WORKER = """
import sys, torch
from torch import distributed
from strucfast.losses import kl_terms
from strucfast.training.distributed import leave

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if world > 1:
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world)
data = torch.load(f"{folder}/data.pt")
share = len(data["x"]) // world
x, noise = (data[name][rank * share : (rank + 1) * share] for name in ("x", "noise"))
layer = torch.nn.Linear(4, 6, dtype=torch.float64)
layer.load_state_dict(data["layer"])
mean, logvar = layer(x).chunk(2, dim=1)
z = mean + torch.exp(0.5 * logvar) * noise
terms = torch.stack(kl_terms(z, mean, logvar, dataset_size=100, groups=[[0, 2], [1]], gather=True))
(terms @ torch.tensor([1.0, 6.0, 2.0, 3.0, 4.0], dtype=torch.float64)).backward()
found = [terms.detach(), layer.weight.grad, layer.bias.grad]
for value in found:
    if world > 1:
        distributed.all_reduce(value)
        value /= world
if rank == 0:
    torch.save(found, f"{folder}/{world}.pt")
leave()
"""


def test_two_processes_with_half_the_batch_equal_one(tmp_path):
    torch.manual_seed(0)
    layer = torch.nn.Linear(4, 6, dtype=torch.float64)
    data = {"x": torch.randn(10, 4).double(), "noise": torch.randn(10, 3).double(), "layer": layer.state_dict()}
    torch.save(data, tmp_path / "data.pt")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, str(rank), str(world), str(tmp_path)],
            env=environment, stderr=subprocess.PIPE, text=True,
        )
        for world in (1, 2)
        for rank in range(world)
    ]  # fmt: skip
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    for one, two in zip(torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt")):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-12)


def test_a_prior_module_is_the_distribution_it_returns():
    z, mean, logvar = batch(8, 4)
    prior = priors.build("isa", dim=4, sizes=(2, 2)).double()
    arguments = {"dataset_size": 100, "groups": [[0, 1], [2, 3]]}
    assert losses.kl_terms(z, mean, logvar, prior=prior, **arguments) == losses.kl_terms(
        z, mean, logvar, prior=prior(), **arguments
    )


@pytest.mark.parametrize("wide", [0, 1, 2])
def test_one_float64_tensor_makes_every_term_float64(wide):
    tensors = [tensor.float() for tensor in batch(8, 4)]
    expected = losses.kl_terms(*(tensor.double() for tensor in tensors), dataset_size=100)
    tensors[wide] = tensors[wide].double()
    for found, value in zip(losses.kl_terms(*tensors, dataset_size=100), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=1e-12, atol=1e-12)


def test_integers_are_refused():
    z, mean, logvar = batch(8, 4)
    with pytest.raises(TypeError, match=r"z must be a floating-point tensor, got torch.int64"):
        losses.kl_terms(z.long(), mean, logvar, dataset_size=100)
