"""GroupNorm, activation and affine in one pass: ``scale * act(weight * xhat + bias) + shift``, forward and backward."""

from dataclasses import dataclass

import torch

from ._group_norm_backward import (
    _group_norm_backward_kernel,
    _group_norm_backward_resident_kernel,
    _group_norm_sums_kernel,
)
from ._group_norm_forward import (
    _group_norm_forward_kernel,
    _group_norm_forward_resident_kernel,
    _group_norm_statistics_kernel,
)
from ._launch import check_device, launch, processors, register_limit
from ._layout import Layout, ceil_div, check_dtype, compute_dtype, in_layout, is_per_pixel, native, next_power_of_two
from ._reduce import column_sums
from ._tuning import tuned


@dataclass(frozen=True, slots=True)
class GroupNormConfig:
    """Tile of one program and how the work is cut.

    resident: the tile holds ``groups`` whole groups over all positions and x is read once, into registers.
    Otherwise a program walks its groups tile by tile, twice; with splits > 1 several programs share a group's
    positions, and a first kernel leaves partial statistics (or sums) for the second. The first walk prefetches
    stages - 1 tiles into shared memory.
    """

    groups: int
    block_c: int
    block_s: int
    num_warps: int
    resident: bool
    splits: int = 1
    stages: int = 3
    max_registers: int = 255


def group_norm_config(
    operation: str, layout: Layout, num_groups: int, itemsize: int, resident_limit: int, device: torch.device
) -> GroupNormConfig:
    """Resident tiles up to ``resident_limit`` elements, looping tiles beyond, split where programs are few."""
    per_group = layout.channels // num_groups
    lanes, positions = next_power_of_two(per_group), next_power_of_two(layout.spatial)
    # float64 takes twice the registers for its values and more for its exponentials: a quarter of the elements.
    wide = 4 if itemsize == 8 else 1
    resident = lanes * positions <= resident_limit // wide
    tile = resident_limit // wide if resident else 4096 // wide
    groups = 1
    if layout.channels_last:
        # A row of a channels-last tile should fill a 32-byte sector, and resident tiles whole cache lines.
        row_bytes = 128 if resident else 32
        while (
            2 * groups <= num_groups
            and groups * lanes * itemsize < row_bytes
            and 2 * groups * lanes * (positions if resident else 1) <= (2048 // wide if resident else 256)
        ):
            groups *= 2
    if resident:
        block_c, block_s, splits = groups * lanes, positions, 1
    else:
        if layout.channels_last:
            block_c = min(groups * lanes, 256)
            block_s = min(positions, tile // block_c)
        else:
            # All channels of a group side by side: a long walk over positions, which the prefetch needs.
            block_c = min(lanes, tile // 128)
            block_s = min(positions, tile // block_c)
        programs = layout.batch * ceil_div(num_groups, groups)
        splits = 1
        if programs < processors(device):
            splits = min(ceil_div(2 * processors(device), programs), ceil_div(layout.spatial, block_s), 64)
    # Sixteen elements a thread, in a looping tile (which also carries its accumulators) eight.
    num_warps = min(max(block_c * block_s // (512 if resident else 256) * min(wide, 2), 1), 16)
    # Prefetching copies 16 bytes at a time; rows of another length would be copied element by element.
    row = layout.channels if layout.channels_last else layout.spatial
    # Half types have half the bytes in a tile, so one more of them is under way.
    stages = 1 if row * itemsize % 16 else 3 if itemsize > 2 else 4
    # Two programs of sixteen warps per processor, where the forward fits: one loads while the other reduces.
    two_programs = operation.endswith("forward") and num_warps == 16 and itemsize < 8 and stages > 1
    max_registers = 64 if two_programs else 255
    config = GroupNormConfig(groups, block_c, block_s, num_warps, resident, splits, stages, max_registers)
    key = (layout.batch, layout.channels, layout.spatial, num_groups, layout.channels_last, itemsize)
    return tuned(operation, key, config, device)


@dataclass(frozen=True, slots=True)
class _Plan:
    """Numbers that a launch derives from layout and configuration."""

    layout: Layout
    config: GroupNormConfig
    group_tiles: int
    channel_tiles: int
    chunk: int
    splits: int

    @property
    def programs(self) -> int:
        return self.layout.batch * self.group_tiles * self.splits

    def constants(self, num_groups: int) -> dict[str, int]:
        constants = {
            "CG": self.layout.channels // num_groups,
            "GP": self.config.groups,
            "BLOCK_C": self.config.block_c,
            "BLOCK_S": self.config.block_s,
            "num_warps": self.config.num_warps,
            "max_registers": min(self.config.max_registers, register_limit(self.config.num_warps)),
        }
        if not self.config.resident:
            constants["STAGES"] = self.config.stages
        return constants


def _plan(layout: Layout, num_groups: int, config: GroupNormConfig) -> _Plan:
    per_group = layout.channels // num_groups
    lanes = config.block_c // config.groups
    if config.resident and (lanes < per_group or config.block_s < layout.spatial or config.splits != 1):
        raise ValueError(f"a resident tile must hold whole groups of {per_group} x {layout.spatial}, got {config}")
    if config.groups > 1 and lanes < per_group:
        raise ValueError(f"a tile of {config.groups} groups must hold whole groups of {per_group}, got {config}")
    chunk = ceil_div(ceil_div(layout.spatial, config.block_s), config.splits) * config.block_s
    return _Plan(
        layout,
        config,
        ceil_div(num_groups, config.groups),
        ceil_div(per_group, lanes),
        chunk,
        ceil_div(layout.spatial, chunk),
    )


def _as_rows(layout: Layout) -> Layout:
    """Without positions the contiguous layout is the channels-last one: channels are adjacent."""
    if layout.spatial == 1:
        return Layout(layout.batch, layout.channels, 1, 1, layout.channels, True)
    return layout


def _check_groups(name: str, x: torch.Tensor, num_groups: int) -> None:
    if num_groups < 1 or x.shape[1] % num_groups:
        raise ValueError(f"{name}: num_groups must divide the {x.shape[1]} channels of x, got {num_groups}")


def group_norm_modulate_forward(
    x: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    activation: int,
    eps: float,
    *,
    config: GroupNormConfig | None = None,
    statistics: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(y, mean, rstd): y in x's dtype and layout, the statistics ``(N, num_groups)`` in the compute type.

    Args:
        x: ``(N, C, *S)``, float32, float64, bfloat16 or float16.
        weight, bias: ``(C,)`` or None.
        scale, shift: ``(N, C)``, x's shape, or None.
        activation: code of the activation (see ``_math.activate``).
        config: launch configuration; a heuristic one by default.
        statistics: ``(2, N, num_groups)`` to be filled with mean and rstd, the mean then being relative to its group's
            first element.
    """
    name = "group_norm_modulate"
    device = check_device(name, x, weight, bias, scale, shift)
    check_dtype(name, x, weight=weight, bias=bias, scale=scale, shift=shift)
    _check_groups(name, x, num_groups)
    x, layout = native(x)
    y = torch.empty_like(x)
    compute = compute_dtype(x.dtype)
    relative = statistics is not None
    if relative:
        mean, rstd = statistics.unbind(0)
    else:
        mean, rstd = (x.new_empty((layout.batch, num_groups), dtype=compute) for _ in range(2))
    if x.numel() == 0:
        return y, mean.zero_(), rstd.zero_()
    scale_map = scale is not None and is_per_pixel(scale, x)
    shift_map = shift is not None and is_per_pixel(shift, x)
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    scale = in_layout(scale, layout) if scale_map else None if scale is None else scale.contiguous()
    shift = in_layout(shift, layout) if shift_map else None if shift is None else shift.contiguous()
    problem = _as_rows(layout)
    config = config or group_norm_config(
        "group_norm_modulate_forward", problem, num_groups, x.element_size(), 16384, device
    )
    plan = _plan(problem, num_groups, config)
    constants = plan.constants(num_groups)
    strides = (problem.spatial, problem.channel_stride, problem.spatial_stride)
    flags = {
        "EPS": float(eps),
        "RELATIVE": relative,
        "ACTIVATION": activation,
        "SCALE_PER_PIXEL": scale_map,
        "SHIFT_PER_PIXEL": shift_map,
    }
    tensors = (x, weight, bias, scale, shift, y, mean, rstd)
    if config.resident:
        launch(
            _group_norm_forward_resident_kernel, plan.programs, device,
            *tensors, num_groups, plan.group_tiles, *strides, **flags, **constants,
        )  # fmt: skip
        return y, mean, rstd
    walk = (num_groups, plan.group_tiles, *strides, plan.channel_tiles, plan.chunk, plan.splits)
    partial_mean = partial_square = None
    if plan.splits > 1:
        partial_mean = x.new_empty((layout.batch, num_groups, plan.splits), dtype=compute)
        partial_square = torch.empty_like(partial_mean)
        launch(
            _group_norm_statistics_kernel, plan.programs, device,
            x, partial_mean, partial_square, *walk, **constants,
        )  # fmt: skip
    launch(
        _group_norm_forward_kernel, plan.programs, device,
        *tensors, partial_mean, partial_square, *walk, **flags, **constants,
        BLOCK_SPLITS=next_power_of_two(plan.splits),
    )  # fmt: skip
    return y, mean, rstd


def group_norm_modulate_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    mean: torch.Tensor,
    rstd: torch.Tensor,
    num_groups: int,
    weight: torch.Tensor | None,
    bias: torch.Tensor | None,
    scale: torch.Tensor | None,
    shift: torch.Tensor | None,
    activation: int,
    mask: int,
    *,
    config: GroupNormConfig | None = None,
    relative: bool = False,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients (dx, dweight, dbias, dscale, dshift) of :func:`group_norm_modulate_forward`.

    Args:
        grad: gradient of y, x's shape and dtype.
        mean, rstd: the statistics that the forward returned.
        mask: bit i asks for output i; the others, and those of an absent parameter, are empty tensors of size (0,).
        config: launch configuration; a heuristic one by default.
        relative: whether the mean is relative to its group's first element.
    """
    name = "group_norm_modulate_backward"
    device = check_device(name, grad, x, mean, rstd, weight, bias, scale, shift)
    check_dtype(name, x, weight=weight, bias=bias, scale=scale, shift=shift)
    _check_groups(name, x, num_groups)
    x, layout = native(x)
    grad = in_layout(grad, layout)
    compute = compute_dtype(x.dtype)
    parameters = []
    for tensor in (weight, bias, scale, shift):
        is_map = tensor is not None and tensor.dim() > 1 and is_per_pixel(tensor, x)
        parameters.append(tensor if tensor is None else in_layout(tensor, layout) if is_map else tensor.contiguous())
    weight, bias, scale, shift = parameters
    dx = torch.empty_like(x) if mask & 1 else x.new_empty(0)
    wanted = [tensor is not None and bool(mask >> (bit + 1) & 1) for bit, tensor in enumerate(parameters)]
    gradients = [torch.empty_like(p) if want else x.new_empty(0) for p, want in zip(parameters, wanted)]
    dweight, dbias, dscale, dshift = gradients
    if x.numel() == 0:
        return dx, dweight.zero_(), dbias.zero_(), dscale.zero_(), dshift.zero_()
    if not (mask & 1 or any(wanted)):
        return dx, dweight, dbias, dscale, dshift
    scale_map = scale is not None and is_per_pixel(scale, x)
    shift_map = shift is not None and is_per_pixel(shift, x)
    problem = _as_rows(layout)
    config = config or group_norm_config(name, problem, num_groups, x.element_size(), 8192, device)
    plan = _plan(problem, num_groups, config)
    rows = layout.batch * layout.channels
    # Sums of du * xhat and du per (part, sample, channel): dweight and dbias after a sum over parts and samples.
    split_dx = bool(mask & 1) and plan.splits > 1
    dweight_rows = x.new_empty((plan.splits, rows), dtype=compute) if wanted[0] or split_dx else None
    dbias_rows = x.new_empty((plan.splits, rows), dtype=compute) if wanted[1] or split_dx else None
    dscale_rows, dshift_rows = (dscale if wanted[2] else None), (dshift if wanted[3] else None)
    if plan.splits > 1:
        if wanted[2] and not scale_map:
            dscale_rows = x.new_empty((plan.splits, rows), dtype=compute)
        if wanted[3] and not shift_map:
            dshift_rows = x.new_empty((plan.splits, rows), dtype=compute)
    inputs = (grad, x, mean, rstd, weight, bias, scale)
    sums = (dweight_rows, dbias_rows, dscale_rows, dshift_rows)
    strides = (num_groups, plan.group_tiles, problem.spatial, problem.channel_stride, problem.spatial_stride)
    flags = {
        "RELATIVE": relative,
        "ACTIVATION": activation,
        "SCALE_PER_PIXEL": scale_map,
        "SHIFT_PER_PIXEL": shift_map,
    }
    constants = plan.constants(num_groups)
    dx_target = dx if mask & 1 else None
    if config.resident:
        launch(
            _group_norm_backward_resident_kernel, plan.programs, device,
            *inputs, dx_target, *sums, *strides, **flags, **constants,
        )  # fmt: skip
    else:
        walk = (*strides, plan.channel_tiles, plan.chunk, plan.splits, rows)
        partial = plan.splits > 1 or dx_target is None
        if partial:
            launch(_group_norm_sums_kernel, plan.programs, device, *inputs, *sums, *walk, **flags, **constants)
        if dx_target is not None:
            launch(
                _group_norm_backward_kernel, plan.programs, device,
                *inputs, dx_target, *sums, *walk, **flags, **constants,
                PARTIAL=partial, BLOCK_SPLITS=next_power_of_two(plan.splits),
            )  # fmt: skip
    column_sums(
        dweight_rows if wanted[0] else None,
        dweight,
        dbias_rows if wanted[1] else None,
        dbias,
        plan.splits * layout.batch,
        layout.channels,
    )
    if plan.splits > 1:
        column_sums(
            dscale_rows if wanted[2] and not scale_map else None,
            dscale,
            dshift_rows if wanted[3] and not shift_map else None,
            dshift,
            plan.splits,
            rows,
        )
    return dx, dweight, dbias, dscale, dshift
