"""Memory layouts that the kernels read natively: contiguous (N,C,*S) and channels-last dense (N,*S,C)."""

import torch


def is_channels_last(x: torch.Tensor) -> bool:
    """Whether ``x`` (rank 3 to 5) is dense with the channel innermost, and is not contiguous as well."""
    return x.dim() >= 3 and not x.is_contiguous() and x.movedim(1, -1).is_contiguous()


def empty_as(x: torch.Tensor) -> torch.Tensor:
    """What a kernel allocates for an output beside ``x``: its layout if it is a native one, else contiguous."""
    if is_channels_last(x):
        return x.new_empty([x.shape[0], *x.shape[2:], x.shape[1]]).movedim(-1, 1)
    return x.new_empty(x.shape)
