"""Ahead-of-time compilation without a GPU: record what launchers would start, compile it, read its resources.

``CASES`` is the registry: calls of the launchers on meta tensors whose launches together cover every kernel, layout and
dtype. Recording the launches themselves keeps the compiled signatures and specialisations those of a real run.
"""

import argparse
import itertools
import json
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as triton_compile

from . import _reduce, adain, aggregate, group_norm_modulate, kl_terms, lp_nested, modulate, pairwise, str_tfm
from ._launch import recording

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}

# Bytes of shared memory (LDS) that one program may have.
SHARED_LIMITS = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}

_TYPE_NAMES = {
    torch.float32: "fp32",
    torch.float64: "fp64",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.int32: "i32",
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One kernel as one launch would compile it."""

    name: str
    kernel: Any
    signature: dict[str, Any]
    constexprs: dict[tuple[int, ...], Any]
    attributes: dict[tuple[int, ...], list[list[Any]]]
    options: dict[str, Any]
    float64: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """Equal for launches that compile to the same code."""
        return (
            self.kernel.__name__,
            repr(self.signature),
            repr(sorted(self.constexprs.items())),
            repr(sorted(self.attributes.items())),
            repr(self.options),
        )


def _describe(value: Any, path: tuple[int, ...], constexprs: dict, attributes: dict) -> Any:
    """Signature entry of a run-time argument, with Triton's specialisation on None, 1 and multiples of 16."""
    if isinstance(value, tuple):
        return tuple(_describe(item, (*path, index), constexprs, attributes) for index, item in enumerate(value))
    if value is None or (isinstance(value, int) and value == 1):
        constexprs[path] = value
        return "constexpr"
    if isinstance(value, torch.Tensor):
        # The allocator aligns every tensor that is not a view.
        attributes[path] = [["tt.divisibility", 16]]
        return "*" + _TYPE_NAMES[value.dtype]
    if value % 16 == 0:
        attributes[path] = [["tt.divisibility", 16]]
    return "i32" if value < 2**31 else "i64"


def variant(name: str, launched: dict[str, Any]) -> Variant:
    """What a recorded launch compiles."""
    kernel, args, constants = launched["kernel"], launched["args"], launched["constants"]
    signature: dict[str, Any] = {}
    constexprs: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[Any]]] = {}
    for index, argument in enumerate(kernel.arg_names):
        if index < len(args):
            signature[argument] = _describe(args[index], (index,), constexprs, attributes)
        else:
            signature[argument] = "constexpr"
            constexprs[(index,)] = constants[argument]
    return Variant(
        name,
        kernel,
        signature,
        constexprs,
        attributes,
        launched["options"],
        # What decides a digit of every result may be float64 over data of any type; such a kernel says so.
        "fp64" in repr(signature) or "_float64_" in kernel.__name__,
    )


def _meta(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool = False) -> torch.Tensor:
    if channels_last:
        return torch.empty((shape[0], *shape[2:], shape[1]), dtype=dtype, device="meta").movedim(-1, 1)
    return torch.empty(shape, dtype=dtype, device="meta")


def _modulate_case(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, per_pixel: bool) -> None:
    x = _meta(shape, dtype, channels_last)
    parameter = _meta(shape, dtype, channels_last) if per_pixel else _meta(shape[:2], dtype)
    modulate.modulate_forward(x, parameter, parameter)
    modulate.modulate_backward(x, x, parameter, per_pixel, 7)


def _group_norm_case(
    shape: tuple[int, ...],
    num_groups: int,
    dtype: torch.dtype,
    channels_last: bool,
    activation: int,
    per_pixel: bool = False,
    bare: bool = False,
    mask: int = 31,
) -> None:
    x = _meta(shape, dtype, channels_last)
    weight = None if bare else _meta(shape[1:2], dtype)
    scale = None if bare else _meta(shape, dtype, channels_last) if per_pixel else _meta(shape[:2], dtype)
    _, mean, rstd = group_norm_modulate.group_norm_modulate_forward(
        x, num_groups, weight, weight, scale, scale, activation, 1e-5
    )
    group_norm_modulate.group_norm_modulate_backward(
        x, x, mean, rstd, num_groups, weight, weight, scale, scale, activation, mask
    )


def _adain_case(shape: tuple[int, ...], dtype: torch.dtype, channels_last: bool, per_pixel: bool = False) -> None:
    x = _meta(shape, dtype, channels_last)
    parameter = _meta(shape, dtype, channels_last) if per_pixel else _meta(shape[:2], dtype)
    _, statistics = adain.adain_forward(x, parameter, parameter, 1e-5)
    adain.adain_backward(x, x, statistics, parameter, per_pixel, 7)


def _str_tfm_case(
    samples: int, variables: int, widths: tuple[int, ...], dtype: torch.dtype, activation: int, scale_map: int
) -> None:
    u = _meta((samples, variables, widths[0]), dtype)
    weights = [_meta((variables, out, inputs), dtype) for inputs, out in itertools.pairwise(widths)]
    biases = [_meta((variables, out), dtype) for out in widths[1:]]
    scale, shift, saved = str_tfm.str_tfm_forward(u, weights, biases, activation, scale_map, True)
    str_tfm.str_tfm_backward(scale, shift, u, weights, biases, scale, saved, activation, scale_map, 3)


def _aggregate_case(
    samples: int,
    posteriors: int,
    dims: int,
    dtype: torch.dtype,
    weights: int,
    groups: tuple[int, ...] = (),
    absent: tuple[int, ...] = (),
    mask: int = 7,
) -> None:
    z, mean = _meta((samples, dims), dtype), _meta((posteriors, dims), dtype)
    rest = (weights, 737280, 0, groups)
    outputs = aggregate.aggregate_forward(z, mean, mean, *rest)
    grads = [None if i in absent else torch.empty_like(out) for i, out in enumerate(outputs)]
    aggregate.aggregate_backward(*grads, z, mean, mean, *outputs, *rest, mask)


def _kl_terms_case(
    samples: int,
    dims: int,
    dtype: torch.dtype,
    groups: tuple[int, ...] = (),
    standard_normal: bool = True,
    absent: tuple[int, ...] = (),
    mask: int = 7,
) -> None:
    z = _meta((samples, dims), dtype)
    rest = (0, 737280, 0, groups, standard_normal)
    outputs = kl_terms.kl_terms_forward(z, z, z, *rest)
    grads = [None if i in absent else torch.empty_like(out) for i, out in enumerate(outputs[:5])]
    kl_terms.kl_terms_backward(*grads, z, z, z, *outputs[5:], *rest, mask)


def _lp_nested_case(
    rows: int, sizes: tuple[int, ...], dtype: torch.dtype, mask: int, shared_scale: bool = True
) -> None:
    z, root, p = _meta((rows, sum(sizes)), dtype), _meta((), dtype), _meta((len(sizes),), dtype)
    parameters = (sizes, root, p, root if shared_scale else p)
    log_prob = lp_nested.lp_nested_log_prob_forward(z, *parameters)
    lp_nested.lp_nested_log_prob_backward(log_prob, z, *parameters, mask)


def _mmd_case(points: tuple[int, int], dims: int, dtype: torch.dtype, kernel: int, save: int, dimwise: bool) -> None:
    forward = pairwise.mmd_dimwise_forward if dimwise else pairwise.mmd_forward
    bandwidth = (0.2, 0.4, 1.0, 2.0, 4.0, 10.0) if dimwise else (2.0,)
    forward(*(_meta((n, dims), dtype) for n in points), kernel, bandwidth, True, save)


def _hsic_case(points: int, dims: tuple[int, int], dtype: torch.dtype, kernel: int, mask: int) -> None:
    x, y = (_meta((points, d), dtype) for d in dims)
    options = (kernel, (1.0, 2.0), (1.0,), False)
    value, *centres = pairwise.hsic_forward(x, y, *options)
    pairwise.hsic_backward(value, x, y, *centres, *options, mask)


def _cases() -> Iterator[tuple[str, Callable[[], None]]]:
    names = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16", torch.float64: "f64"}
    for (dtype, short), last in itertools.product(names.items(), (False, True)):
        suffix = f"{'last' if last else 'first'}-{short}"
        yield f"modulate-64-{suffix}", partial(_modulate_case, (128, 64, 64, 64), dtype, last, False)
        yield f"modulate-4-{suffix}", partial(_modulate_case, (128, 64, 4, 4), dtype, last, False)
        yield f"modulate-map-{suffix}", partial(_modulate_case, (128, 64, 64, 64), dtype, last, True)
        yield f"gn-64-{suffix}", partial(_group_norm_case, (128, 64, 64, 64), 8, dtype, last, 1)
        yield f"gn-32-{suffix}", partial(_group_norm_case, (128, 64, 32, 32), 8, dtype, last, 1)
        yield f"gn-4-{suffix}", partial(_group_norm_case, (128, 64, 4, 4), 8, dtype, last, 1)
        yield f"gn-split-{suffix}", partial(_group_norm_case, (4, 64, 128, 128), 8, dtype, last, 1)
    for (dtype, short), last in itertools.product(names.items(), (False, True)):
        suffix = f"{'last' if last else 'first'}-{short}"
        yield f"adain-64-{suffix}", partial(_adain_case, (128, 64, 64, 64), dtype, last)
        yield f"adain-8-{suffix}", partial(_adain_case, (128, 64, 8, 8), dtype, last)
        yield f"adain-map-{suffix}", partial(_adain_case, (128, 64, 64, 64), dtype, last, per_pixel=True)
        yield f"adain-split-{suffix}", partial(_adain_case, (2, 16, 256, 256), dtype, last)
    # What the loops above leave out: odd sizes, splits, maps, absent parameters, every activation.
    f32 = torch.float32
    for last in (False, True):
        suffix = f"{'last' if last else 'first'}-f32"
        yield f"modulate-odd-{suffix}", partial(_modulate_case, (3, 5, 7, 11), f32, last, False)
        yield f"modulate-few-{suffix}", partial(_modulate_case, (2, 3, 512, 512), f32, last, False)
        yield f"gn-odd-{suffix}", partial(_group_norm_case, (3, 15, 7, 11), 3, f32, last, 1)
        yield f"gn-odd-large-{suffix}", partial(_group_norm_case, (3, 15, 67, 71), 3, f32, last, 1)
        yield f"gn-one-group-{suffix}", partial(_group_norm_case, (64, 512, 16, 16), 1, f32, last, 1)
        yield f"gn-map-{suffix}", partial(_group_norm_case, (128, 64, 64, 64), 8, f32, last, 1, per_pixel=True)
        yield f"gn-map-small-{suffix}", partial(_group_norm_case, (128, 64, 8, 8), 8, f32, last, 1, per_pixel=True)
        yield f"gn-bare-{suffix}", partial(_group_norm_case, (128, 64, 64, 64), 8, f32, last, 0, bare=True)
        yield f"gn-sums-only-{suffix}", partial(_group_norm_case, (128, 64, 64, 64), 8, f32, last, 1, mask=30)
        for code in range(6):
            yield f"gn-act{code}-{suffix}", partial(_group_norm_case, (128, 64, 16, 16), 8, f32, last, code)
            yield f"gn-act{code}-large-{suffix}", partial(_group_norm_case, (128, 64, 64, 64), 8, f32, last, code)
    for dtype, short in ((f32, "f32"), (torch.float64, "f64")):
        yield f"mlp-1-{short}", partial(_str_tfm_case, 128, 12, (1, 128), dtype, 1, 0)
        yield f"mlp-64-{short}", partial(_str_tfm_case, 128, 12, (1, 64, 64, 64, 128), dtype, 1, 0)
        yield f"mlp-256-{short}", partial(_str_tfm_case, 4096, 16, (12, 64, 128, 256, 512), dtype, 1, 0)
        yield f"mlp-odd-{short}", partial(_str_tfm_case, 33, 3, (5, 17, 31, 6), dtype, 2, 1)
        for code in range(5):
            yield f"mlp-act{code + 1}-{short}", partial(_str_tfm_case, 128, 12, (1, 64, 128), dtype, code + 1, code)
    for dtype, short in ((f32, "f32"), (torch.float64, "f64")):
        yield f"tc-2048-{short}", partial(_aggregate_case, 2048, 2048, 10, dtype, 0)
        yield f"tc-groups-{short}", partial(_aggregate_case, 512, 512, 20, dtype, 0, (0,) * 4 + (1,) * 16)
        yield f"tc-naive-{short}", partial(_aggregate_case, 4096, 512, 50, dtype, 2)
    # Small batches have small tiles; the loss of beta-TCVAE asks for what it needs.
    yield "tc-64-f32", partial(_aggregate_case, 64, 64, 10, f32, 0)
    yield "tc-3-f32", partial(_aggregate_case, 3, 5, 1, f32, 1)
    yield "tc-joint-f32", partial(_aggregate_case, 512, 512, 10, f32, 2, absent=(1,), mask=1)
    yield "tc-marginal-f32", partial(_aggregate_case, 512, 512, 10, f32, 0, absent=(0,), mask=6)
    for dtype, short in ((f32, "f32"), (torch.float64, "f64")):
        yield f"kl-128-{short}", partial(_kl_terms_case, 128, 10, dtype)
        yield f"kl-groups-{short}", partial(_kl_terms_case, 512, 20, dtype, (0,) * 4 + (1,) * 16, False)
    # Without groups the fourth and fifth term are seldom asked for.
    yield "kl-beta-tcvae-f32", partial(_kl_terms_case, 512, 10, f32, absent=(3, 4))
    yield "kl-mean-only-f32", partial(_kl_terms_case, 512, 10, f32, absent=(1, 2, 3, 4), mask=2)
    for dtype, short in ((f32, "f32"), (torch.float64, "f64")):
        yield f"lp-5x4-{short}", partial(_lp_nested_case, 1 << 20, (4,) * 5, dtype, 15)
        yield f"lp-5x2-{short}", partial(_lp_nested_case, 4096, (2,) * 5, dtype, 15, shared_scale=False)
        yield f"lp-ragged-{short}", partial(_lp_nested_case, 65536, (3, 1, 7, 8, 64, 1000), dtype, 15)
        yield f"lp-runs-{short}", partial(_lp_nested_case, 2048, (1, 2) * 10, dtype, 15)
        yield f"lp-values-only-{short}", partial(_lp_nested_case, 2048, (4,) * 5, dtype, 1)
        yield f"lp-parameters-only-{short}", partial(_lp_nested_case, 2048, (4,) * 5, dtype, 14)
    for dtype, short in ((f32, "f32"), (torch.float64, "f64")):
        yield f"mmd-1024-{short}", partial(_mmd_case, (1024, 1024), 10, dtype, 0, 1, False)
        yield f"mmd-imq-{short}", partial(_mmd_case, (33, 150), 64, dtype, 1, 0, False)
        yield f"mmd-dimwise-{short}", partial(_mmd_case, (512, 512), 50, dtype, 1, 3, True)
        yield f"hsic-1024-{short}", partial(_hsic_case, 1024, (10, 2), dtype, 0, 3)
        yield f"hsic-imq-{short}", partial(_hsic_case, 45, (1, 20), dtype, 1, 2)


CASES: dict[str, Callable[[], None]] = dict(_cases())


def variants() -> list[Variant]:
    """The distinct compilations that the cases lead to."""
    found: dict[tuple[Any, ...], Variant] = {}
    for name, case in CASES.items():
        with recording() as launches:
            case()
        for launched in launches:
            candidate = variant(name, launched)
            found.setdefault(candidate.key, candidate)
    return list(found.values())


def kernels() -> set[str]:
    """Names of all kernels of the package: jit functions called ``*_kernel``."""
    names = set()
    for module in (_reduce, modulate, group_norm_modulate, str_tfm, aggregate, kl_terms, lp_nested, pairwise):
        names |= {name for name, value in vars(module).items() if _is_kernel(name, value)}
    return names


def _is_kernel(name: str, value: Any) -> bool:
    return name.endswith("_kernel") and isinstance(value, triton.JITFunction)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one compiled kernel uses; spill_bytes counts stack and local memory (scratch on AMD)."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    float64_instructions: int
    vector_accesses: int


def _cubin_resources(cubin: bytes) -> tuple[int, int]:
    """(registers, stack bytes) from the ELF attributes that ptxas writes (.nv.info: REGCOUNT, FRAME_SIZE, ...)."""
    if cubin[:4] != b"\x7fELF":
        raise ValueError("not an ELF file")
    (table,) = struct.unpack_from("<Q", cubin, 40)
    entry_size, entries, names_index = struct.unpack_from("<HHH", cubin, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", cubin, table + index * entry_size) for index in range(entries)]
    names = sections[names_index][4]
    registers, stack = None, None
    for section in sections:
        start = names + section[0]
        name = cubin[start : cubin.index(b"\0", start)].decode()
        if name.startswith(".nv.local.") and section[5] > 0:
            stack = max(stack or 0, section[5])
        if name != ".nv.info":
            continue
        position, end = section[4], section[4] + section[5]
        while position + 4 <= end:
            form, attribute, size = struct.unpack_from("<BBH", cubin, position)
            position += 4
            if form != 4:
                # Other forms carry their value in the size field.
                continue
            if attribute == 0x2F:
                registers = max(registers or 0, struct.unpack_from("<II", cubin, position)[1])
            if attribute in (0x11, 0x12):
                stack = max(stack or 0, struct.unpack_from("<II", cubin, position)[1])
            position += size
    if registers is None or stack is None:
        raise ValueError("the cubin has no register count or frame size: its format changed")
    return registers, stack


def _amd_number(assembly: str, key: str) -> int:
    found = re.search(rf"\.{key}:\s+(\d+)", assembly)
    if found is None:
        raise ValueError(f"the AMD assembly has no .{key}: its format changed")
    return int(found.group(1))


def compile_for(candidate: Variant, target: str) -> Resources:
    """Compile for a target of ``TARGETS`` and read the resources back."""
    source = ASTSource(candidate.kernel, candidate.signature, candidate.constexprs, candidate.attributes)
    options = dict(candidate.options)
    if TARGETS[target].backend != "cuda":
        options.pop("maxnreg", None)
    compiled = triton_compile(source, target=TARGETS[target], options=options)
    shared = compiled.metadata.shared
    if "cubin" in compiled.asm:
        registers, stack = _cubin_resources(compiled.asm["cubin"])
        code = compiled.asm["ptx"]
        return Resources(
            registers,
            stack,
            shared,
            len(re.findall(r"\.f64\b", code)),
            len(re.findall(r"(?:ld|st)\.global\S*\.v[24]", code)),
        )
    code = compiled.asm["amdgcn"]
    # Scalar registers spill into lanes of vector registers, not into memory: only what reaches scratch counts.
    return Resources(
        _amd_number(code, "vgpr_count"),
        _amd_number(code, "private_segment_fixed_size") + 4 * _amd_number(code, "vgpr_spill_count"),
        shared,
        len(re.findall(r"_f64\b", code)),
        len(re.findall(r"(?:global|buffer)_(?:load|store)_dwordx[24]", code)),
    )


def violations(candidate: Variant, target: str, resources: Resources) -> list[str]:
    """What a shipped kernel must not do: spill, use .f64 instructions without float64 data, ask for too much memory."""
    found = []
    if resources.spill_bytes:
        found.append(f"{resources.spill_bytes} bytes of stack or spills")
    if resources.float64_instructions and not candidate.float64:
        found.append(f"{resources.float64_instructions} .f64 instructions without float64 data")
    if resources.shared_bytes > SHARED_LIMITS[target]:
        found.append(f"{resources.shared_bytes} bytes of shared memory, the limit is {SHARED_LIMITS[target]}")
    return found


def representatives(candidates: list[Variant]) -> list[Variant]:
    """One variant per kernel, op and set of argument types, the layouts taking turns: a quick look at everything."""
    chosen: dict[tuple[str, str, str], list[Variant]] = {}
    for candidate in candidates:
        types = ",".join(sorted(set(re.findall(r"\*(\w+)", repr(candidate.signature)))))
        # adain runs group_norm_modulate's kernels; its half types are left to the full list.
        op = candidate.name.partition("-")[0]
        if op != "adain" or "16" not in types:
            chosen.setdefault((candidate.kernel.__name__, op, types), []).append(candidate)
    picked = []
    for index, group in enumerate(chosen.values()):
        layout = ("-first-", "-last-")[index % 2]
        picked.append(next((candidate for candidate in group if layout in candidate.name), group[0]))
    return picked


def main() -> None:
    """Compile the registry for one target; print one JSON object per kernel."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("--full", action="store_true", help="every variant instead of one per kernel and dtype")
    arguments = parser.parse_args()
    everything = variants()
    for candidate in everything if arguments.full else representatives(everything):
        resources = compile_for(candidate, arguments.target)
        row = {
            "name": candidate.name,
            "kernel": candidate.kernel.__name__,
            "num_warps": candidate.options["num_warps"],
            **asdict(resources),
            "violations": violations(candidate, arguments.target, resources),
        }
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
