import math

import pytest
import torch
from torch import nn

from strucfast import models
from strucfast.losses import LossTerms
from strucfast.training import CheckpointError
from strucfast.training.config import OptimConfig
from strucfast.training.engine import Engine, NonFinite, learning_rate_factor

CPU = torch.device("cpu")
OPTIONS = {"width": 8, "blocks": 3, "hidden": [8], "latent_dim": 4}


def build(seed=0, name="sae-2"):
    torch.manual_seed(seed)
    options = {k: v for k, v in OPTIONS.items() if name.startswith("sae") or k != "hidden"}
    return models.build(name, image_size=32, **options)


def images(n=6, seed=0):
    return torch.randint(0, 256, (n, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_step_is_adams_step(tiny):
    ours, plain = build(), build()
    engine = Engine(ours, tiny(), CPU)
    adam = torch.optim.Adam(plain.parameters(), lr=2e-3)
    x = images().permute(0, 3, 1, 2).float() / 255
    for step in range(6):
        terms = engine.step(images(), step)
        loss = plain.loss(x)
        adam.zero_grad()
        loss.total.backward()
        adam.step()
        assert engine.term_names[:2] == ["loss", "reconstruction"]
        # the losses, not the weights: Adam makes full steps of the rounding noise of a bias that GroupNorm cancels
        torch.testing.assert_close(terms[0], loss.total.detach(), rtol=1e-5, atol=0)


def test_learning_rate_reaches_the_optimizer(tiny):
    engine = Engine(build(), tiny(), CPU)
    before = [p.detach().clone() for p in engine.parameters]
    engine.step(images(), 0, rate_factor=0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, engine.parameters))
    engine.step(images(), 1, rate_factor=0.5)
    assert engine.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-3)


def test_gradient_clipping(tiny):
    engine = Engine(build(), tiny(optim__grad_clip=0.5), CPU)
    terms = dict(zip(["loss", "reconstruction", "grad_norm"], engine.step(images(), 0).tolist()))
    assert engine.term_names == list(terms)
    # the norm before clipping is what is logged
    assert terms["grad_norm"] > 0.5
    norm = torch.linalg.vector_norm(torch.cat([p.grad.flatten() for p in engine.parameters]))
    assert norm.item() == pytest.approx(0.5, rel=1e-4)


def test_averaged_weights(tiny):
    engine = Engine(build(), tiny(optim__ema=0.9), CPU)
    mean = [p.detach().clone() for p in engine.parameters]
    for step in range(4):
        engine.step(images(seed=step), step)
        decay = min(0.9, (1 + step) / (10 + step))
        mean = [decay * m + (1 - decay) * p.detach() for m, p in zip(mean, engine.parameters)]
    raw = [p.detach().clone() for p in engine.parameters]
    with engine.averaged_weights():
        assert not engine.model.training
        for parameter, expected in zip(engine.parameters, mean):
            torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
    assert engine.model.training
    assert all(torch.equal(a, b) for a, b in zip(raw, engine.parameters))


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_restoring_continues_bit_for_bit(tiny, ema):
    config = tiny(optim__ema=ema)
    one = Engine(build(name="vae"), config, CPU)
    for step in range(3):
        one.step(images(seed=step), step)
    saved = one.checkpoint()
    saved.model = {k: v.clone(memory_format=torch.contiguous_format) for k, v in saved.model.items()}
    saved.state = {k: v.clone(memory_format=torch.contiguous_format) for k, v in saved.state.items()}
    other = Engine(build(seed=1, name="vae"), config, CPU)
    other.restore(saved, "here")
    for step in range(3, 6):
        assert torch.equal(one.step(images(seed=step), step), other.step(images(seed=step), step))
    for a, b in zip([*one.parameters, *one.averaged], [*other.parameters, *other.averaged], strict=True):
        assert torch.equal(a, b)


def test_checkpoint_of_another_model_is_refused(tiny):
    one = Engine(build(), tiny(), CPU)
    one.step(images(), 0)
    saved = one.checkpoint()
    wrong = dict(saved.model)
    name = next(iter(wrong))
    wrong[name] = wrong[name].flatten()
    saved.model = wrong
    with pytest.raises(CheckpointError, match=rf"here/model\.safetensors: field '{name}': expected float32"):
        one.restore(saved, "here")
    saved.model = one.checkpoint().model
    saved.state["optimizer.0.nothing.exp_avg"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"here/state\.safetensors: field 'optimizer\.0\.nothing\.exp_avg'"):
        one.restore(saved, "here")


def test_noise_depends_on_the_step_alone(tiny):
    engine = Engine(build(name="vae"), tiny(), CPU)
    before = [p.detach().clone() for p in engine.parameters]

    def loss(step):
        with torch.no_grad():
            for parameter, value in zip(engine.parameters, before):
                parameter.copy_(value)
        return engine.step(images(), step, rate_factor=0.0)[0].item()

    first = loss(3)
    torch.randn(5)
    assert loss(3) == first
    assert loss(4) != first


def test_bfloat16_steps_learn_and_keep_float32_parameters(tiny):
    engine = Engine(build(), tiny(train__precision="bf16"), CPU)
    losses = [engine.step(images(), step)[0].item() for step in range(10)]
    assert losses[-1] < losses[0]
    assert all(p.dtype == torch.float32 for p in engine.parameters)


class TwoPlayers(nn.Module):
    """Two optimizers: each may move its own parameter only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.ones(())), nn.Parameter(torch.ones(()))

    def loss(self, x, *, generator=None, optimizer_index=0):
        total = (self.a * self.b - 2) ** 2 if optimizer_index == 0 else (self.a + self.b - 5) ** 2
        return LossTerms(total, {"part": total.detach()})

    def optimizers(self, config):
        return [torch.optim.SGD([p], lr=0.1) for p in (self.a, self.b)]


def test_several_optimizers(tiny):
    engine = Engine(TwoPlayers(), tiny(), CPU)
    terms = engine.step(images(), 0)
    assert engine.term_names == ["loss", "part", "optimizer_1.loss", "optimizer_1.part"]
    # by hand: d/da (ab-2)^2 = -2, then d/db (a+b-5)^2 at a=1.2
    assert engine.model.a.item() == pytest.approx(1.2)
    assert engine.model.b.item() == pytest.approx(1 - 0.1 * 2 * (1.2 + 1 - 5))
    assert terms.tolist() == pytest.approx([1.0, 1.0, 2.8**2, 2.8**2], rel=1e-6)


class Adversaries(nn.Module):
    """Each loss has a gradient for both parameters; each optimizer may use that of its own only."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor([1.0, 0.5])), nn.Parameter(torch.tensor([0.3, 2.0]))

    def total(self, number):
        return ((self.a * self.b - 2) ** 2).sum() if number == 0 else ((self.a + 3 * self.b) ** 2).sum()

    def loss(self, x, *, generator=None, optimizer_index=0):
        total = self.total(optimizer_index)
        return LossTerms(total, {"part": total.detach()})

    def optimizers(self, config):
        return [
            torch.optim.Adam([self.a], lr=0.1, betas=config.betas, fused=True),
            torch.optim.Adam([self.b], lr=0.02, betas=(0.5, 0.9), fused=True),
        ]


def test_several_adams_step_as_if_each_were_alone(tiny):
    engine = Engine(Adversaries(), tiny(optim__grad_clip=1.5, optim__ema=0.9), CPU)
    plain = Adversaries()
    adams = [torch.optim.Adam([plain.a], lr=0.1), torch.optim.Adam([plain.b], lr=0.02, betas=(0.5, 0.9))]
    for step in range(5):
        values = engine.step(images(), step, 0.5).tolist()
        terms = dict(zip(engine.term_names, values))
        for number, (adam, parameter) in enumerate(zip(adams, (plain.a, plain.b))):
            adam.param_groups[0]["lr"] = (0.1, 0.02)[number] / 2
            (parameter.grad,) = torch.autograd.grad(plain.total(number), [parameter])
            norm = nn.utils.clip_grad_norm_([parameter], 1.5)
            assert terms["optimizer_1.grad_norm" if number else "grad_norm"] == pytest.approx(norm.item(), rel=1e-5)
            adam.step()
    torch.testing.assert_close(engine.model.a, plain.a)
    torch.testing.assert_close(engine.model.b, plain.b)
    # no optimizer has moments of a parameter that is not its own
    assert [[engine.names[p] for p in o.state] for o in engine.optimizers] == [["a"], ["b"]]
    saved = engine.checkpoint()
    moments = {name for name in saved.state if name.endswith("exp_avg")}
    assert moments == {"optimizer.0.a.exp_avg", "optimizer.1.b.exp_avg"}
    resumed = Engine(Adversaries(), tiny(optim__grad_clip=1.5, optim__ema=0.9), CPU)
    resumed.restore(saved, "here")
    for step in range(5, 8):
        assert torch.equal(engine.step(images(), step), resumed.step(images(), step))
    assert all(torch.equal(a, b) for a, b in zip(engine.averaged, resumed.averaged))


def test_an_adversarial_model_resumes_bit_for_bit_and_validates_its_first_loss(tiny):
    def factor_vae(seed):
        torch.manual_seed(seed)
        options = {"width": 8, "blocks": 3, "latent_dim": 4, "discriminator_width": 8, "discriminator_layers": 2}
        return Engine(models.build("factor-vae", image_size=32, **options), tiny(optim__ema=0.9), CPU)

    one, other = factor_vae(0), factor_vae(1)
    for step in range(3):
        one.step(images(seed=step), step)
    assert one.term_names[-2:] == ["optimizer_1.loss", "optimizer_1.discriminator"]
    own = {p for o in one.optimizers for p in o.state}
    assert own == set(one.parameters)
    other.restore(one.checkpoint(), "here")
    for step in range(3, 6):
        assert torch.equal(one.step(images(seed=step), step), other.step(images(seed=step), step))
    # an odd number of images is enough to validate
    assert set(one.evaluate(images(3))) == {"loss", "reconstruction", "kl", "total_correlation"}


def test_broken_parameter_is_named(tiny):
    engine = Engine(build(), tiny(), CPU)
    engine.check_parameters(5)
    name, parameter = list(engine.model.named_parameters())[3]
    with torch.no_grad():
        parameter.view(-1)[0] = math.nan
    with pytest.raises(NonFinite, match=f"step 5: parameter {name} is not finite"):
        engine.check_parameters(5)


def test_bad_batches(tiny):
    engine = Engine(build(), tiny(), CPU)
    with pytest.raises(ValueError, match="empty batch"):
        engine.step(images(0), 0)
    with pytest.raises(TypeError, match=r"got torch\.int32"):
        engine.step(images().int(), 0)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        engine.step(images().float(), 0)


def test_cuda_graph_needs_cuda(tiny):
    with pytest.raises(ValueError, match=r"train\.cuda_graph: expected a CUDA device, got cpu"):
        Engine(build(), tiny(train__cuda_graph=True), CPU)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device: run `make gpu`")
@pytest.mark.parametrize("name", ["sae-2", "vae", "factor-vae"])
def test_cuda_graph_agrees_with_eager(tiny, name):
    device = torch.device("cuda")
    options = {"optim__ema": 0.9, "optim__grad_clip": 100.0, "train__device": "cuda"}
    eager = Engine(build(name=name), tiny(**options), device)
    graph = Engine(build(name=name), tiny(**options, train__cuda_graph=True), device)
    for step in range(5):
        batch = images(seed=step).to(device)
        a = eager.step(batch, step, 1 / (1 + step))
        b = graph.step(batch, step, 1 / (1 + step))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-2)
    # the captured graph goes on from a checkpoint
    saved = graph.checkpoint()
    resumed = Engine(build(seed=1, name=name), tiny(**options, train__cuda_graph=True), device)
    resumed.restore(saved, "here")
    batch = images(seed=9).to(device)
    torch.testing.assert_close(graph.step(batch, 5), resumed.step(batch, 5), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [1, 1, 1, 1, 1]),
        ({"warmup_steps": 4}, [0.25, 0.5, 0.75, 1, 1]),
        ({"schedule": "linear"}, [1, 0.9, 0.8, 0.7, 0.6]),
        ({"schedule": "linear", "final_fraction": 0.5}, [1, 0.95, 0.9, 0.85, 0.8]),
        ({"schedule": "cosine"}, [(1 + math.cos(math.pi * k / 10)) / 2 for k in range(5)]),
        ({"schedule": "linear", "warmup_steps": 2}, [0.5, 1, 1, 0.875, 0.75]),
    ],
)
def test_schedules(options, expected):
    optim = OptimConfig(**options)
    assert [learning_rate_factor(optim, 10, step) for step in range(5)] == pytest.approx(expected)


def test_schedule_by_time_takes_whichever_is_further_on():
    optim = OptimConfig(schedule="linear", anneal_by="time")
    assert learning_rate_factor(optim, 100, 10, time_used=0.75) == pytest.approx(0.25)
    assert learning_rate_factor(optim, 100, 90, time_used=0.75) == pytest.approx(0.1)
    assert learning_rate_factor(optim, 100, 90, time_used=1.2) == pytest.approx(0.0)
    by_steps = OptimConfig(schedule="linear")
    assert learning_rate_factor(by_steps, 100, 10, time_used=0.75) == pytest.approx(0.9)
