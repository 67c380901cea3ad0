"""One training step: loss, gradients, optimizers, averaged weights; eager, compiled or as one CUDA graph."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from .batches import step_seed, to_float
from .checkpoint import Checkpoint, CheckpointError, copy_into
from .config import OptimConfig, TrainConfig
from .distributed import World


class NonFinite(FloatingPointError):
    """A loss term or a parameter that is NaN or infinite; the message names the step and which."""


def learning_rate_factor(optim: OptimConfig, steps: int, step: int, time_used: float = 0.0) -> float:
    """What the learning rate is multiplied by in update ``step`` (from 0) of ``steps``.

    ``time_used`` is the part of the time limit that is over; it counts with ``anneal_by="time"`` only.
    """
    warmup = min(1.0, (step + 1) / optim.warmup_steps) if optim.warmup_steps else 1.0
    progress = min(max((step - optim.warmup_steps) / max(steps - optim.warmup_steps, 1), 0.0), 1.0)
    if optim.anneal_by == "time":
        progress = min(max(progress, time_used), 1.0)
    floor = optim.final_fraction
    if optim.schedule == "cosine":
        return warmup * (floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2)
    if optim.schedule == "linear":
        return warmup * (1 - (1 - floor) * progress)
    return warmup


class Engine:
    """Model, optimizers and averaged weights, and the step that moves them.

    Args:
        model: a strucfast.models.Autoencoder, or anything with its ``loss`` and ``optimizers``.
        config: sections optim and train are used.
        device: where to train.
        world: the processes that train together, none for this one alone; gradients are averaged over them.
    """

    def __init__(self, model: nn.Module, config: TrainConfig, device: torch.device, world: World | None = None) -> None:
        self.config, self.device = config, device
        self.world = world = world or World()
        self.layout = torch.channels_last if config.train.channels_last else torch.contiguous_format
        self.model = model.to(device=device).to(memory_format=self.layout)
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizers: list[torch.optim.Optimizer] = list(model.optimizers(config.optim))
        self._base_rates = [[float(group["lr"]) for group in o.param_groups] for o in self.optimizers]
        self._loss = torch.compile(model.loss) if config.train.compile else model.loss
        world.broadcast_([*model.parameters(), *model.buffers()])
        self.averaged = [p.detach().clone() for p in self.parameters] if config.optim.ema else []
        # a tensor, so that a captured graph sees its changes
        self._average_weight = torch.zeros((), device=device)
        self._model_step: Tensor | None = getattr(model, "training_step", None)
        self.term_names: list[str] = []
        self._graph: Any = None
        if config.train.cuda_graph:
            self._make_capturable()

    def step(self, images: Tensor, step: int, rate_factor: float = 1.0) -> Tensor:
        """Update ``step`` (from 0) on ``images`` (N, H, W, C); see :func:`to_float` for what they may be.

        Returns:
            (T,) float32 on the device: the terms named by ``term_names``, "loss" first. Nothing waits for the GPU.
        """
        # the noise of a step depends on its number alone: resuming needs no generator's state
        seed = step_seed(self.config.train.seed, step, self.world.rank)
        torch.manual_seed(seed)
        for optimizer, rates in zip(self.optimizers, self._base_rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if isinstance(group["lr"], Tensor):
                    group["lr"].fill_(rate * rate_factor)
                else:
                    group["lr"] = rate * rate_factor
        if self.averaged:
            # a short memory at first, so that the start is forgotten
            self._average_weight.fill_(1 - min(self.config.optim.ema, (1 + step) / (10 + step)))
        if self._model_step is not None:
            self._model_step.fill_(step)
        if not self.config.train.cuda_graph:
            return self._compute(images)
        if self._graph is None:
            self._capture(images)
            torch.manual_seed(seed)
        self._static_images.copy_(images)
        self._graph.replay()
        return self._static_terms.clone()

    def evaluate(self, images: Tensor) -> dict[str, float]:
        """The loss and its terms on ``images`` (N, H, W, C) with the present weights, no gradients."""
        with torch.no_grad(), self._autocast():
            loss = self.model.loss(self._input(images))
        return {"loss": float(loss.total), **{name: float(value) for name, value in loss.terms.items()}}

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model is in eval mode and has the averaged weights, where there are any."""
        training = self.model.training
        self.model.eval()
        raw = [p.detach().clone() for p in self.parameters] if self.averaged else []
        # copied, not swapped: a captured graph and the optimizers hold the parameters' memory
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.averaged):
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, raw):
                    parameter.copy_(value)
            self.model.train(training)

    def check_parameters(self, step: int) -> None:
        """Raise NonFinite if a parameter is NaN or infinite after ``step`` updates."""
        sums = torch.stack([p.detach().float().sum() for p in self.parameters])
        if bool(torch.isfinite(sums).all()):
            return
        for parameter in self.parameters:
            if not bool(torch.isfinite(parameter).all()):
                raise NonFinite(f"step {step}: parameter {self.names[parameter]} is not finite")

    def checkpoint(self) -> Checkpoint:
        """All tensors of this engine, by name."""
        model = dict(self.model.state_dict())
        state: dict[str, Tensor] = {}
        for parameter, average in zip(self.parameters, self.averaged):
            name = self.names[parameter]
            state[f"weights.{name}"] = model[name]
            model[name] = average
        for number, optimizer in enumerate(self.optimizers):
            for parameter, values in optimizer.state.items():
                for key, value in values.items():
                    # a plain number is kept as a float64 scalar
                    tensor = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
                    state[f"optimizer.{number}.{self.names[parameter]}.{key}"] = tensor
        return Checkpoint(model, state)

    def restore(self, checkpoint: Checkpoint, folder: Any) -> None:
        """Take over all tensors of ``checkpoint``, read from ``folder`` (for messages).

        Raises:
            CheckpointError: a tensor is missing or of another shape; names the file and the field.
        """
        model_file, state_file = f"{folder}/model.safetensors", f"{folder}/state.safetensors"
        copy_into(dict(self.model.state_dict()), checkpoint.model, model_file)
        for parameter, average in zip(self.parameters, self.averaged):
            name = self.names[parameter]
            average.copy_(checkpoint.model[name])
            copy_into({f"weights.{name}": parameter}, checkpoint.state, state_file)
        parameters = {name: parameter for parameter, name in self.names.items()}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        for field, value in checkpoint.state.items():
            if not field.startswith("optimizer."):
                continue
            number, rest = field.removeprefix("optimizer.").split(".", 1)
            name, key = rest.rsplit(".", 1)
            if name not in parameters or int(number) >= len(self.optimizers):
                raise CheckpointError(f"{state_file}: field {field!r} belongs to no parameter of this model")
            self._restore_moment(self.optimizers[int(number)], parameters[name], key, value, f"{state_file}: {field!r}")

    def _restore_moment(
        self, optimizer: torch.optim.Optimizer, parameter: nn.Parameter, key: str, value: Tensor, where: str
    ) -> None:
        group = next((g for g in optimizer.param_groups if any(p is parameter for p in g["params"])), None)
        if group is None:
            raise CheckpointError(f"{where}: the optimizer has no such parameter")
        if value.ndim == 0:
            on_device = group.get("capturable") or group.get("fused")
            restored = value.clone().to(parameter.device if on_device else "cpu")
            optimizer.state[parameter][key] = restored.item() if value.dtype == torch.float64 else restored
            return
        if value.shape != parameter.shape:
            raise CheckpointError(f"{where}: expected shape {tuple(parameter.shape)}, got {tuple(value.shape)}")
        # laid out in memory as the parameter, as the optimizer itself would have made it
        optimizer.state[parameter][key] = torch.empty_like(parameter, requires_grad=False).copy_(value)

    def _autocast(self) -> contextlib.AbstractContextManager:
        if self.config.train.precision == "float32":
            return contextlib.nullcontext()
        # each weight is cast once a step anyway, and a cached cast must not outlive a captured graph
        return torch.autocast(self.device.type, torch.bfloat16, cache_enabled=False)

    def _input(self, images: Tensor) -> Tensor:
        x = to_float(images).to(self.device)
        return x.contiguous(memory_format=self.layout)

    def _compute(self, images: Tensor) -> Tensor:
        x = self._input(images)
        clip = self.config.optim.grad_clip
        terms: dict[str, Tensor] = {}
        for number, optimizer in enumerate(self.optimizers):
            prefix = f"optimizer_{number}." if number else ""
            for parameter in self.parameters:
                parameter.grad = None
            with self._autocast():
                loss = self._loss(x, optimizer_index=number)
            own = [p for group in optimizer.param_groups for p in group["params"]]
            # the other players' gradients would be computed for nothing
            loss.total.backward(inputs=own if len(self.optimizers) > 1 else None)
            mine = [p for p in own if p.grad is not None]
            self.world.mean_([p.grad for p in mine])
            terms[f"{prefix}loss"] = loss.total
            terms.update({f"{prefix}{name}": value for name, value in loss.terms.items()})
            if clip:
                terms[f"{prefix}grad_norm"] = nn.utils.clip_grad_norm_(mine, clip)
            optimizer.step()
        if self.averaged:
            with torch.no_grad():
                change = torch._foreach_sub(self.parameters, self.averaged)
                torch._foreach_mul_(change, self._average_weight)
                torch._foreach_add_(self.averaged, change)
        self.term_names = list(terms)
        return torch.stack([value.detach().float().reshape(()) for value in terms.values()])

    def _make_capturable(self) -> None:
        if self.device.type != "cuda":
            raise ValueError(f"train.cuda_graph: expected a CUDA device, got {self.device}")
        if self.world.size > 1:
            raise ValueError(f"train.cuda_graph: expected one process, got {self.world.size}")
        for optimizer in self.optimizers:
            if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
                raise ValueError(f"train.cuda_graph: expected Adam or AdamW, got {type(optimizer).__name__}")
            for group in optimizer.param_groups:
                group["capturable"] = True
                group["lr"] = torch.tensor(float(group["lr"]), device=self.device)

    def _capture(self, images: Tensor) -> None:
        if images.dtype != torch.uint8:
            raise TypeError(f"images: expected uint8 with train.cuda_graph, got {images.dtype}")
        self._static_images = images.clone()
        moments = [{p: {k: v.clone() for k, v in s.items()} for p, s in o.state.items()} for o in self.optimizers]
        touched = [*self.parameters, *self.averaged, *self.model.buffers()]
        originals = [t.detach().clone() for t in touched]
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self._compute(self._static_images)
        torch.cuda.current_stream().wait_stream(side)
        # the rehearsals must leave no trace; in place, because the graph will hold this memory
        with torch.no_grad():
            for tensor, value in zip(touched, originals, strict=True):
                tensor.copy_(value)
            for optimizer, before in zip(self.optimizers, moments, strict=True):
                for parameter, values in optimizer.state.items():
                    for key, value in values.items():
                        # Adam starts from zeros
                        value.copy_(before[parameter][key]) if parameter in before else value.zero_()
        for parameter in self.parameters:
            parameter.grad = None
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            self._static_terms = self._compute(self._static_images)
