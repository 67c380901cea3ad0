"""Models whose objective sits on the hourglass VAE: losses written out in float64, gradients, options, bad input."""

import math

import pytest
import torch
from torch.distributions import Normal

import strucfast as sf

TINY = {"image_size": 8, "width": 8, "blocks": 2, "latent_dim": 5, "num_groups": 4}
SMALL = {"discriminator_width": 16, "discriminator_layers": 2}
N, B, D = 60, 8, 5
MODELS = {
    "annealed-vae": {"beta": 3.0, "beta_start": 1.0, "anneal_steps": 100},
    "capacity-vae": {"capacity_steps": 100},
    "beta-tcvae": {"alpha": 0.5, "gamma": 2.0},
    "factor-vae": SMALL,
    "dip-vae-i": {},
    "dip-vae-ii": {},
    "wae-mmd": {},
    "info-vae": {"alpha": 0.25, "lambda_mmd": 20.0},
    "hfvae": {"groups": [[0, 3], [1, 2, 4]], "lambda_mi": 0.5},
    "hsic-vae": {"groups": [[0, 3], [1, 2]]},
}
NAMES = list(MODELS)


def _build(name, seed=0, **overrides):
    torch.manual_seed(seed)
    model = sf.models.build(name, **{**TINY, **MODELS[name], **overrides})
    model.begin_training(None, range(N))
    # Posteriors that differ from each other and from the prior.
    with torch.no_grad():
        model.encoder.head[-1].weight *= 3
    return model


def _images(count=B, seed=1):
    return torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def _seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def _standard_kl(mean, logvar):
    return 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=1).mean()


def _aggregate(z, mean, logvar):
    """Function of a list of dims: (B,) log q(z_dims) under the exact stratified weights; and log q(z|x)."""
    density = Normal(mean, torch.exp(0.5 * logvar)).log_prob(z.unsqueeze(1)).exp()
    weight = torch.full((B, B), (N - 1) / (N * (B - 1)), dtype=torch.float64).fill_diagonal_(1 / N)
    own = density.prod(dim=2).diagonal().log()
    return lambda dims: (weight * density[:, :, list(dims)].prod(dim=2)).sum(dim=1).log(), own


def _imq_mmd(x, y, c):
    total = 0.0
    for a, b, sign in ((x, x, 1), (y, y, 1), (x, y, -2)):
        gram = c / (c + (a.unsqueeze(1) - b.unsqueeze(0)).square().sum(dim=2))
        if sign == 1:
            total += (gram.sum() - gram.diagonal().sum()) / (B * (B - 1))
        else:
            total += sign * gram.mean()
    return total


def _hsic(x, y):
    """tr(K H L H) / B^2, kernels of width sqrt(dims)."""
    k, m = (torch.exp(-torch.cdist(a, a).square() / (2 * a.shape[1])) for a in (x, y))
    h = torch.eye(B, dtype=torch.float64) - 1 / B
    return torch.trace(k @ h @ m @ h) / B**2


def _covariance_penalties(mean, logvar):
    covariance = torch.cov(mean.T, correction=0) + (0 if logvar is None else torch.diag(logvar.exp().mean(dim=0)))
    variances = covariance.diagonal()
    return {
        "covariance_off_diagonal": covariance.square().sum() - variances.square().sum(),
        "covariance_diagonal": (variances - 1).square().sum(),
    }


def _discriminator_logits(model, z):
    layers = model.discriminator.layers
    for number, layer in enumerate(layers):
        z = z @ layer.weight.T + layer.bias
        z = torch.where(z > 0, z, 0.2 * z) if number < len(layers) - 1 else z
    return z


def _expected(name, model, x):
    """Terms and their weights of the training objective at step 0, from the formulas of the papers."""
    generator, config = _seeded(), model.config
    if name == "wae-mmd":
        z = model.encode(x).mean
    else:
        mean, logvar = model.posterior(x)
        z = mean + torch.exp(0.5 * logvar) * torch.randn(B, D, generator=generator, dtype=torch.float64)
        kl = _standard_kl(mean, logvar)
    probability = model.decode(z)
    nll = -(x * probability.log() + (1 - x) * torch.log1p(-probability)).sum() / B
    terms, weights = {"reconstruction": nll}, {"reconstruction": 1.0}
    if name not in ("wae-mmd", "beta-tcvae"):
        terms["kl"], weights["kl"] = kl, 1.0
    if name in ("wae-mmd", "info-vae"):
        terms["mmd"] = _imq_mmd(z, torch.randn(B, D, generator=generator, dtype=torch.float64), float(D))
        weights |= {"mmd": 10.0} if name == "wae-mmd" else {"kl": 0.75, "mmd": 0.25 + 20 - 1}
    elif name in ("beta-tcvae", "hfvae"):
        log_q, own = _aggregate(z, mean, logvar)
        joint, marginal = log_q(range(D)), sum(log_q([dim]) for dim in range(D))
        terms["index_code_mi"] = (own - joint).mean()
        terms["dimwise_kl"] = (marginal - Normal(0.0, 1.0).log_prob(z).sum(dim=1)).mean()
        if name == "beta-tcvae":
            terms["total_correlation"] = (joint - marginal).mean()
            weights |= {"index_code_mi": 0.5, "total_correlation": 4.0, "dimwise_kl": 2.0}
        else:
            grouped = log_q([0, 3]) + log_q([1, 2, 4])
            terms |= {"between_groups": (joint - grouped).mean(), "within_groups": (grouped - marginal).mean()}
            weights |= {"index_code_mi": -0.5, "dimwise_kl": 0.0, "between_groups": 3.0, "within_groups": 2.0}
    elif name == "factor-vae":
        share = torch.softmax(_discriminator_logits(model, z), dim=1)
        terms["total_correlation"] = (share[:, 0] / share[:, 1]).log().mean()
        weights["total_correlation"] = 40.0
    elif name in ("dip-vae-i", "dip-vae-ii"):
        terms |= _covariance_penalties(mean, logvar if name == "dip-vae-ii" else None)
        weights |= {"covariance_off_diagonal": 10.0, "covariance_diagonal": 100.0 if name == "dip-vae-i" else 10.0}
    elif name == "hsic-vae":
        terms["hsic"], weights["hsic"] = _hsic(z[:, [0, 3]], z[:, [1, 2]]), 1000.0
    elif name == "annealed-vae":
        weights["kl"] = config.beta_start
    elif name == "capacity-vae":
        # At step 0 the capacity is 0, so that |KL - C| is the KL.
        terms["capacity"] = torch.zeros(())
        weights |= {"kl": 1000.0, "capacity": 0.0}
    return terms, weights


@pytest.mark.parametrize("name", NAMES)
def test_loss_matches_an_independent_float64_computation(name):
    model, x = _build(name).double(), _images().double()
    found = model.loss(x, generator=_seeded())
    terms, weights = _expected(name, model, x)
    total = sum(weights[key] * terms[key] for key in terms)
    assert {key: value.item() for key, value in found.terms.items()} == pytest.approx(
        {key: value.item() for key, value in terms.items()}, rel=1e-9, abs=1e-12
    )
    assert found.total.item() == pytest.approx(total.item(), rel=1e-9)
    own, theirs = (
        torch.autograd.grad(t, model.encoder.head[-1].weight, retain_graph=True) for t in (found.total, total)
    )
    torch.testing.assert_close(own[0], theirs[0], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_objective_trains_encoder_and_decoder(name):
    # Rates that fit this tiny net: a loss that its optimizer lowers.
    options = {"beta_start": 0.5} if name == "annealed-vae" else {"gamma": 5.0} if name == "capacity-vae" else {}
    model, x = _build(name, **options), _images(16)
    optimizers = model.optimizers()
    losses = []
    for step in range(25):
        for index, optimizer in enumerate(optimizers):
            optimizer.zero_grad()
            terms = model.loss(x, generator=_seeded(0), optimizer_index=index)
            terms.total.backward()
            if index == 0:
                losses.append(terms.total.item())
                if step == 0:
                    for part in (model.encoder, model.decoder):
                        for key, parameter in part.named_parameters():
                            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
            optimizer.step()
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name, tmp_path):
    model = _build(name)
    model.save_pretrained(tmp_path)
    loaded = sf.models.load(tmp_path)
    assert type(loaded) is type(model) and loaded.config == model.config
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value), key
    loaded.dataset_size = N
    x = _images()
    assert loaded.loss(x, generator=_seeded()).total.item() == model.loss(x, generator=_seeded()).total.item()


@pytest.mark.parametrize("name", NAMES)
def test_prior_and_hybrid_sampling(name):
    model = _build(name)
    assert model.has_prior and sorted(dim for group in model.latent_groups for dim in group) == list(range(D))
    z = sf.samplers.PriorSampler(model).sample(4000, _seeded())
    assert z.shape == (4000, D) and z.mean(dim=0).abs().max() < 0.1 and (z.std(dim=0) - 1).abs().max() < 0.1
    assert torch.equal(z, model.sample_prior(4000, _seeded())) and model.decode(z[:2]).shape == (2, 3, 8, 8)
    codes = model.encode(_images()).mean.detach()
    assert sf.samplers.HybridSampler(codes, model.latent_groups).sample(3).shape == (3, D)


@pytest.mark.parametrize("name", NAMES)
def test_autocast_keeps_the_loss_in_float32(name):
    model, x = _build(name), _images()
    for index in range(len(model.optimizers())):
        exact = model.loss(x, generator=_seeded(), optimizer_index=index)
        with torch.autocast("cpu", torch.bfloat16):
            terms = model.loss(x, generator=_seeded(), optimizer_index=index)
        assert terms.total.dtype == torch.float32 and terms.total.item() == pytest.approx(exact.total.item(), rel=2e-2)
        assert all(value.dtype == torch.float32 for value in terms.terms.values())
        terms.total.backward()


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_follows_the_generator(name):
    model, x = _build(name), _images()
    first, again, other = (model.loss(x, generator=_seeded(seed)).total.item() for seed in (0, 0, 1))
    assert first == again != other
    with pytest.raises(ValueError, match="optimizer_index must be 0"):
        model.loss(x, optimizer_index=2)


@pytest.mark.parametrize("name", ["beta-tcvae", "factor-vae", "wae-mmd", "hfvae", "capacity-vae"])
def test_traces_as_one_graph(name):
    model, x = _build(name), _images()
    for index in range(len(model.optimizers())):
        torch._dynamo.reset()
        with sf.use_backend("reference"):
            compiled = torch.compile(
                lambda x, index=index: model.loss(x, optimizer_index=index).total, fullgraph=True, backend="aot_eager"
            )
            torch.manual_seed(0)
            found = compiled(x)
            torch.manual_seed(0)
            expected = model.loss(x, optimizer_index=index).total
        assert found.item() == pytest.approx(expected.item(), rel=1e-5)
        found.backward()


def test_latent_groups_are_the_objectives():
    assert _build("hfvae").latent_groups == [[0, 3], [1, 2, 4]]
    assert _build("hsic-vae").latent_groups == [[0, 3], [1, 2], [4]]
    assert _build("hfvae", groups=None).latent_groups == [[0, 1], [2, 3], [4]]
    assert _build("hsic-vae", groups=None).latent_groups == [[0, 1], [2, 3, 4]]


def test_schedules_follow_the_training_step_and_end_in_evaluation():
    annealed, capacity, x = _build("annealed-vae").double(), _build("capacity-vae").double(), _images().double()
    for step, beta, nats in ((0.0, 1.0, 0.0), (50.0, 2.0, 12.5), (500.0, 3.0, 25.0)):
        for model in (annealed, capacity):
            model.training_step.fill_(step)
        loss = annealed.loss(x, generator=_seeded())
        weight = (loss.total - loss.terms["reconstruction"]) / loss.terms["kl"]
        assert weight.item() == pytest.approx(beta, rel=1e-6)
        loss = capacity.loss(x, generator=_seeded())
        assert loss.terms["capacity"].item() == pytest.approx(nats)
        expected = loss.terms["reconstruction"] + 1000 * (loss.terms["kl"] - nats).abs()
        assert loss.total.item() == pytest.approx(expected.item(), rel=1e-6)
    for model in (annealed, capacity):
        model.training_step.fill_(0.0)
        model.eval()
    loss = annealed.loss(x, generator=_seeded())
    assert ((loss.total - loss.terms["reconstruction"]) / loss.terms["kl"]).item() == pytest.approx(3.0)
    assert capacity.loss(x, generator=_seeded()).terms["capacity"].item() == 25.0


class TestTCVAE:
    def test_estimators_differ_by_the_constants_alone(self):
        x, size = _images().double(), math.log(N)
        mss, mws, naive = (_build("beta-tcvae", estimator=e).double() for e in ("mss", "mws", "naive"))
        terms = {model.config.estimator: model.loss(x, generator=_seeded()).terms for model in (mss, mws, naive)}
        for key, constant in (
            ("index_code_mi", size),
            ("total_correlation", (D - 1) * size),
            ("dimwise_kl", -D * size),
        ):
            assert terms["mws"][key].item() == pytest.approx(terms["naive"][key].item() + constant, rel=1e-9), key
        assert terms["mss"]["total_correlation"].item() != terms["naive"]["total_correlation"].item()

    @pytest.mark.parametrize("name", ["beta-tcvae", "hfvae"])
    def test_dataset_size_must_be_known(self, name):
        model, x = _build(name), _images()
        model.dataset_size = None
        message = f"dataset_size of '{name}' must be known for the estimator 'mss', got None: call begin_training"
        with pytest.raises(ValueError, match=message):
            model.loss(x)
        free = _build(name, estimator="naive")
        free.dataset_size = None
        assert torch.isfinite(free.loss(x).total)

    def test_equal_weights_need_no_dataset_size(self):
        model, x = _build("beta-tcvae", alpha=4.0, gamma=4.0).double(), _images().double()
        whole = model.loss(x, generator=_seeded())
        model.dataset_size = None
        assert set(whole.terms) == {"reconstruction", "kl"}
        assert model.loss(x, generator=_seeded()).total.item() == whole.total.item()

    def test_one_image_is_refused_under_mss(self):
        with pytest.raises(ValueError, match="mss"):
            _build("beta-tcvae").loss(_images(1))


class TestFactorVAE:
    def _gradients(self, model, x, index):
        model.zero_grad(set_to_none=True)
        model.loss(x, generator=_seeded(), optimizer_index=index).total.backward()
        return {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}

    def test_each_loss_reaches_its_own_parameters_alone(self):
        model, x = _build("factor-vae"), _images()
        first, second = model.optimizers()
        names = {parameter: name for name, parameter in model.named_parameters()}
        for index, optimizer in enumerate((first, second)):
            owned = {names[p] for group in optimizer.param_groups for p in group["params"]}
            assert self._gradients(model, x, index) == owned
            assert all(name.startswith("discriminator.") == bool(index) for name in owned)

    def test_a_step_of_one_optimizer_moves_nothing_of_the_other(self):
        model, x = _build("factor-vae"), _images()
        for index, optimizer in enumerate(model.optimizers()):
            before = {name: p.detach().clone() for name, p in model.named_parameters()}
            optimizer.zero_grad()
            model.loss(x, generator=_seeded(), optimizer_index=index).total.backward()
            optimizer.step()
            moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
            assert moved == {name for name in before if name.startswith("discriminator.") == bool(index)}

    def test_the_optimizers_have_the_papers_rates(self):
        class Config:
            learning_rate, betas, weight_decay = 1e-3, (0.8, 0.99), 0.0

        first, second = _build("factor-vae").optimizers(Config())
        assert (first.defaults["lr"], first.defaults["betas"]) == (1e-3, (0.8, 0.99))
        assert (second.defaults["lr"], second.defaults["betas"]) == (1e-4, (0.5, 0.9))
        shapes = [tuple(layer.weight.shape) for layer in sf.models.Discriminator(10).layers]
        assert shapes == [(1000, 10), *[(1000, 1000)] * 5, (2, 1000)]

    def test_the_discriminator_sees_two_disjoint_halves(self):
        model, x = _build("factor-vae").double(), _images().double()
        found = model.loss(x, generator=_seeded(), optimizer_index=1)
        generator = _seeded()
        with torch.no_grad():
            mean, logvar = model.posterior(x)
            z = mean + torch.exp(0.5 * logvar) * torch.randn(B, D, generator=generator, dtype=torch.float64)
            order = torch.rand(B // 2, D, generator=generator).argsort(dim=0)
            permuted = torch.stack([z[B // 2 :, dim][order[:, dim]] for dim in range(D)], dim=1)
            true = torch.softmax(_discriminator_logits(model, z[: B // 2]), dim=1)[:, 0]
            false = torch.softmax(_discriminator_logits(model, permuted), dim=1)[:, 0]
        expected = -(true.log().sum() + (1 - false).log().sum()) / B
        assert found.total.item() == pytest.approx(expected.item(), rel=1e-10)
        assert found.terms.keys() == {"discriminator"}

    def test_the_discriminator_learns_dependence(self):
        model = _build("factor-vae", latent_dim=2, discriminator_width=32, discriminator_learning_rate=1e-2)
        generator = _seeded()

        def posterior(x):
            first = torch.randn(len(x), 1, generator=generator)
            mean = torch.cat([first, 0.9 * first + 0.43 * torch.randn(len(x), 1, generator=generator)], dim=1)
            return mean, torch.full_like(mean, -20.0)

        model.posterior = posterior
        _, optimizer = model.optimizers()
        losses = []
        for _ in range(150):
            optimizer.zero_grad()
            loss = model.loss(_images(256), generator=generator, optimizer_index=1).total
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[0] == pytest.approx(math.log(2), abs=0.05) and sum(losses[-10:]) / 10 < 0.6
        with torch.no_grad():
            found = model.loss(_images(2048), generator=generator).terms["total_correlation"].item()
        # -1/2 log(1 - rho^2) at rho = .902
        assert found == pytest.approx(0.84, abs=0.3)

    @pytest.mark.parametrize("count", [1, 2, 3, 7])
    def test_odd_and_tiny_batches(self, count):
        model, x = _build("factor-vae"), _images(count)
        assert torch.isfinite(model.loss(x).total)
        with pytest.raises(ValueError, match=f"x must hold an even number of images >= 4 .*, got {count}"):
            model.loss(x, optimizer_index=1)


@pytest.mark.parametrize("name", ["wae-mmd", "info-vae"])
def test_kernels_of_the_mmd(name):
    x = _images().double()
    bandwidths = sf.losses.wae_bandwidths(D)
    default, several, rbf = (
        _build(name, **options).double() for options in ({}, {"bandwidth": bandwidths}, {"kernel": "rbf"})
    )
    assert default.config.bandwidths == (5.0,) and rbf.config.bandwidths == (math.sqrt(5),)
    generator = _seeded()
    if name == "wae-mmd":
        z = default.encode(x).mean
    else:
        mean, logvar = default.posterior(x)
        z = mean + torch.exp(0.5 * logvar) * torch.randn(B, D, generator=generator, dtype=torch.float64)
    y = torch.randn(B, D, generator=generator, dtype=torch.float64)
    expected = sum(_imq_mmd(z, y, c) for c in bandwidths).item()
    assert several.loss(x, generator=_seeded()).terms["mmd"].item() == pytest.approx(expected, rel=1e-9)
    gram = [torch.exp(-torch.cdist(a, b).square() / 10) for a, b in ((z, z), (y, y), (z, y))]
    within = [(k.sum() - B) / (B * (B - 1)) for k in gram[:2]]
    expected = (within[0] + within[1] - 2 * gram[2].mean()).item()
    assert rbf.loss(x, generator=_seeded()).terms["mmd"].item() == pytest.approx(expected, rel=1e-9)
    with pytest.raises(ValueError, match="at least"):
        default.loss(x[:1])


@pytest.mark.parametrize(
    ("name", "overrides", "message"),
    [
        ("beta-tcvae", {"alpha": -1.0}, "alpha must be finite and >= 0, got -1.0"),
        ("beta-tcvae", {"beta": float("inf")}, "beta must be finite"),
        ("beta-tcvae", {"estimator": "exact"}, "estimator must be one of mss, mws, naive, got 'exact'"),
        ("factor-vae", {"gamma": -1.0}, "gamma must be finite and >= 0"),
        ("factor-vae", {"discriminator_layers": 0}, "discriminator_layers must be >= 1, got 0"),
        ("factor-vae", {"discriminator_learning_rate": 0.0}, "discriminator_learning_rate must be finite and > 0"),
        ("dip-vae-i", {"variant": "iii"}, "variant must be one of i, ii, got 'iii'"),
        ("dip-vae-ii", {"lambda_od": float("nan")}, "lambda_od must be finite and >= 0, got nan"),
        ("wae-mmd", {"mmd_weight": -10.0}, "mmd_weight must be finite and >= 0"),
        ("wae-mmd", {"bandwidth": []}, r"bandwidth must hold finite numbers > 0, got \(\)"),
        ("wae-mmd", {"bandwidth": [1.0, 0.0]}, "bandwidth must hold finite numbers > 0"),
        ("info-vae", {"kernel": "laplace"}, "kernel must be one of rbf, imq, got 'laplace'"),
        ("info-vae", {"alpha": 1.5}, "alpha must be <= 1, else the KL is rewarded, got 1.5"),
        ("info-vae", {"alpha": 0.0, "lambda_mmd": 0.5}, "lambda_mmd must be >= 1 - alpha = 1, got 0.5"),
        ("hfvae", {"groups": [[0, 1], [1, 2, 3, 4]]}, "groups must not overlap, got latent dim 1 twice"),
        ("hfvae", {"groups": [[0, 1], [3, 4]]}, "groups must leave no latent dim out, got none with 2"),
        ("hfvae", {"groups": [[0, 1, 2, 3, 4], []]}, r"groups\[1\] must hold at least one latent dim"),
        ("hfvae", {"groups": [[0, 1, 2, 3, 4, 5]]}, r"groups\[0\] must hold latent dims from 0 to 4, got 5"),
        ("hsic-vae", {"groups": [[0, 1]]}, "groups must be at least two, got 1"),
        ("hsic-vae", {"groups": None, "latent_dim": 1}, "latent_dim must be >= 2 to hold two groups, got 1"),
        ("hsic-vae", {"bandwidth": 0.0}, "bandwidth must be finite and > 0, got 0"),
        ("annealed-vae", {"anneal_steps": 0}, "anneal_steps must be >= 1, got 0"),
        ("annealed-vae", {"beta_start": -0.5}, "beta_start must be finite and >= 0"),
        ("capacity-vae", {"capacity_end": -1.0}, "capacity_end must be finite and >= 0"),
        ("capacity-vae", {"beta": 1.0}, "'beta' is no field of CapacityVAEConfig"),
    ],
)
def test_bad_options(name, overrides, message):
    with pytest.raises(ValueError, match=message):
        sf.models.build(name, **{**TINY, **overrides})


def test_bad_types():
    with pytest.raises(TypeError, match="groups must be a list of lists of ints"):
        sf.models.build("hfvae", **TINY, groups=3)
    with pytest.raises(TypeError, match=r"groups\[0\]\[1\] must be int, got 1.5"):
        sf.models.build("hfvae", **TINY, groups=[[0, 1.5]])
