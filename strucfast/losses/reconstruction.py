"""Reconstruction terms: negative log-likelihoods of the data, summed over the event and averaged over the batch.

All are in nats per sample with every constant of the density, computed in float32 for half types, also under autocast.
"""

import math

import torch
import torch.nn.functional as F

from ._checks import floating, loss_dtype, no_autocast


def bernoulli_reconstruction(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Binary cross entropy of ``target`` under Bernoulli ``logits``, in nats per sample.

    ``-1/N sum_n sum_i [ x log sigmoid(l) + (1 - x) log(1 - sigmoid(l)) ]`` (SAE paper, appendix A.2.2).
    Half types are computed in float32, also under autocast.

    Shapes: logits and target (N, ...) of the same shape -> scalar. Values of target are expected in [0, 1], unchecked.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes differ or the batch is empty.
    """
    logits, target = _pair("logits", logits, target)
    with no_autocast(logits):
        total = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    return total / logits.shape[0]


def gaussian_reconstruction(
    mean: torch.Tensor, target: torch.Tensor, scale: float | torch.Tensor = 1.0
) -> torch.Tensor:
    """Negative log-likelihood of ``target`` under N(mean, scale^2), in nats per sample.

    ``1/N sum_n sum_i [ (x - m)^2 / (2 s^2) + log s + log(2 pi) / 2 ]`` (Kingma & Welling 2014, appendix C.2). With a
    given scale of 1 its gradient is that of half the summed squared error.

    Shapes: mean and target (N, ...) of the same shape, scale a number > 0 or a tensor (with gradient, if wished) that
    broadcasts to them -> scalar. A scale tensor's values are expected to be > 0, unchecked.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes do not fit, an empty batch, a scale <= 0.
    """
    mean, target = _pair("mean", mean, target)
    constant = 0.5 * math.log(2 * math.pi) * _event(mean)
    with no_autocast(mean):
        log_scale = _log_scale(mean, scale)
        if isinstance(scale, torch.Tensor):
            squares = ((target - mean) / scale.to(mean.dtype)).square().sum()
        else:
            # Twice, as the square of a small or large scale leaves float32.
            squares = F.mse_loss(mean, target, reduction="sum") / scale / scale
        return (0.5 * squares + log_scale) / mean.shape[0] + constant


def laplace_reconstruction(mean: torch.Tensor, target: torch.Tensor, scale: float | torch.Tensor = 1.0) -> torch.Tensor:
    """Negative log-likelihood of ``target`` under Laplace(mean, scale), in nats per sample.

    ``1/N sum_n sum_i [ |x - m| / b + log(2 b) ]``: the absolute error with its constants.

    Shapes: mean and target (N, ...) of the same shape, scale a number > 0 or a tensor (with gradient, if wished) that
    broadcasts to them -> scalar. A scale tensor's values are expected to be > 0, unchecked.

    Raises:
        TypeError: a tensor that is not floating. ValueError: shapes do not fit, an empty batch, a scale <= 0.
    """
    mean, target = _pair("mean", mean, target)
    constant = math.log(2.0) * _event(mean)
    with no_autocast(mean):
        log_scale = _log_scale(mean, scale)
        if isinstance(scale, torch.Tensor):
            sizes = ((target - mean) / scale.to(mean.dtype)).abs().sum()
        else:
            sizes = F.l1_loss(mean, target, reduction="sum") / scale
        return (sizes + log_scale) / mean.shape[0] + constant


def cross_entropy_reconstruction(logits: torch.Tensor, target: torch.Tensor, *, dim: int = 1) -> torch.Tensor:
    """Negative log-likelihood of class labels under categorical ``logits``, in nats per sample.

    ``-1/N sum_n sum_i log softmax(l)_{x_i}``, for instance of the 256 levels of every pixel.

    Args:
        dim: where the classes are; not the batch's dim 0.

    Shapes: logits (N, ..., K, ...) with the K classes in ``dim``, target (N, ...) int64 without it -> scalar.

    Raises:
        TypeError: logits that are not floating, labels that are not int64. ValueError: shapes or ``dim`` do not fit, or
        the batch is empty.
    """
    floating("logits", logits)
    if not isinstance(target, torch.Tensor) or target.dtype != torch.int64:
        raise TypeError(f"target must be an int64 tensor, got {getattr(target, 'dtype', type(target).__name__)}")
    rank = logits.dim()
    classes = dim + rank if dim < 0 else dim
    if not 1 <= classes < rank:
        raise ValueError(f"dim must name one of the dims 1 to {rank - 1} of logits, got {dim}")
    expected = (*logits.shape[:classes], *logits.shape[classes + 1 :])
    if target.shape != expected:
        raise ValueError(f"target must have the shape of logits without dim {dim}, {expected}, got {_shape(target)}")
    _not_empty("logits", logits)
    with no_autocast(logits):
        log_probability = F.log_softmax(logits.to(loss_dtype(logits)), dim=classes)
        # Not F.cross_entropy: it passes over labels of -100 without a word.
        return -log_probability.gather(classes, target.unsqueeze(classes)).sum() / logits.shape[0]


def _pair(name: str, prediction: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target in the type of the loss, if they fit each other."""
    floating(name, prediction)
    floating("target", target)
    if prediction.shape != target.shape:
        raise ValueError(f"target must have the shape of {name}, {_shape(prediction)}, got {_shape(target)}")
    _not_empty(name, prediction)
    dtype = loss_dtype(prediction, target)
    return prediction.to(dtype), target.to(dtype)


def _not_empty(name: str, tensor: torch.Tensor) -> None:
    if tensor.dim() == 0 or tensor.shape[0] == 0:
        raise ValueError(f"{name} must have at least one sample, got shape {_shape(tensor)}")


def _log_scale(mean: torch.Tensor, scale: float | torch.Tensor) -> torch.Tensor | float:
    """log scale summed over all elements of ``mean``, for a scale that fits them."""
    if not isinstance(scale, torch.Tensor):
        if isinstance(scale, bool) or not isinstance(scale, (int, float)):
            raise TypeError(f"scale must be a number or a tensor, got {type(scale).__name__}")
        if not 0.0 < scale < math.inf:
            raise ValueError(f"scale must be finite and > 0, got {scale}")
        return mean.numel() * math.log(scale)
    scale = floating("scale", scale).to(mean.dtype)
    try:
        fits = torch.broadcast_shapes(scale.shape, mean.shape) == mean.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(f"scale must broadcast to the shape of mean, {_shape(mean)}, got {_shape(scale)}")
    return scale.log().expand_as(mean).sum()


def _event(tensor: torch.Tensor) -> int:
    """Number of values in one sample."""
    return math.prod(tensor.shape[1:])


def _shape(tensor: torch.Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)
