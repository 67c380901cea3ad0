"""Scalar functions inside kernels: activations with their slopes, and the scale maps (codes as in the op schemas)."""

import triton
import triton.language as tl

# log(e - 1): softplus of it is 1, so that a zero logit gives scale 1.
SOFTPLUS_SHIFT = tl.constexpr(0.541324854612918)


@triton.jit
def upcast(value):
    """Half types become float32; float32 and float64 stay."""
    if value.dtype == tl.float64:
        return value
    else:
        return value.to(tl.float32)


@triton.jit
def load(pointer, mask, EVICTION: tl.constexpr = ""):
    """Masked load in the compute type, 0 outside the mask; EVICTION is the hint to the L2 cache."""
    return upcast(tl.load(pointer, mask=mask, other=0.0, eviction_policy=EVICTION))


@triton.jit
def dot(a, b, accumulator):
    # ieee: full float32 products; the default of a float32 dot would be TF32 with 10 bits.
    return tl.dot(a, b, accumulator, input_precision="ieee", out_dtype=accumulator.dtype)


@triton.jit
def inverse_sqrt(value):
    """1 / sqrt(value), correctly rounded in both steps (the statistics are few, their error is everywhere)."""
    if value.dtype == tl.float64:
        return 1.0 / tl.sqrt(value)
    else:
        return tl.div_rn(1.0, tl.sqrt_rn(value))


@triton.jit
def expm1(x):
    """exp(x) - 1 for x <= 0 without cancellation (Kahan): the rounding of exp and of log cancel."""
    e = tl.exp(x)
    # log is undefined or meaningless where its quotient is not used; keep its argument harmless there.
    usable = (e != 1.0) & (e > 1e-30)
    safe = tl.where(usable, e, 0.5)
    quotient = (safe - 1.0) * (x / tl.log(safe))
    return tl.where(e == 1.0, x, tl.where(e > 1e-30, quotient, e - 1.0))


@triton.jit
def log1p_of_exp(x):
    """log(1 + exp(x)) for x <= 0, exact in the tail (Kahan's log1p)."""
    e = tl.exp(x)
    w = 1.0 + e
    safe = tl.where(w == 1.0, 2.0, w)
    return tl.where(w == 1.0, e, tl.log(safe) * (e / (safe - 1.0)))


@triton.jit
def activate(u, ACTIVATION: tl.constexpr):
    """Activation of ``u``: identity 0, mish 1, silu 2, relu 3, elu 4, tanh 5. NaN stays NaN; 0 goes to 0."""
    if ACTIVATION == 1:
        # Mish in one exponential; above 20 it is the identity to the last bit.
        e = tl.exp(tl.minimum(u, 20.0))
        n = e * (e + 2.0)
        return u * (n / (n + 2.0))
    elif ACTIVATION == 2:
        return u / (1.0 + tl.exp(-u))
    elif ACTIVATION == 3:
        # Not maximum(u, 0): that would turn NaN into 0.
        return tl.where(u <= 0.0, 0.0, u)
    elif ACTIVATION == 4:
        return tl.where(u > 0.0, u, expm1(tl.where(u > 0.0, 0.0, u)))
    elif ACTIVATION == 5:
        m = expm1(-2.0 * tl.abs(u))
        return tl.where(u < 0.0, m / (m + 2.0), -m / (m + 2.0))
    else:
        return u


@triton.jit
def activate_with_slope(u, ACTIVATION: tl.constexpr):
    """(activation, its derivative) at ``u``, sharing the exponential."""
    if ACTIVATION == 1:
        e = tl.exp(tl.minimum(u, 20.0))
        n = e * (e + 2.0)
        r = 1.0 / (n + 2.0)
        t = n * r
        # Above 20 the second term is 0 to the last bit; the clamped e would give u / e^2 instead.
        return u * t, t + tl.where(u > 20.0, 0.0, 4.0 * (e * r) * ((1.0 + e) * r) * u)
    elif ACTIVATION == 2:
        # Left of -80 value and slope are 0 to the last bit, and the clamp would leave u times a constant.
        e = tl.exp(tl.minimum(-u, 80.0))
        s = 1.0 / (1.0 + e)
        return tl.where(u < -80.0, 0.0, u * s), tl.where(u < -80.0, 0.0, s * (1.0 + u * (e * s)))
    elif ACTIVATION == 3:
        return tl.where(u <= 0.0, 0.0, u), tl.where(u <= 0.0, 0.0, 1.0).to(u.dtype)
    elif ACTIVATION == 4:
        left = tl.where(u > 0.0, 0.0, u)
        return tl.where(u > 0.0, u, expm1(left)), tl.where(u > 0.0, 1.0, tl.exp(left))
    elif ACTIVATION == 5:
        m = expm1(-2.0 * tl.abs(u))
        r = 1.0 / (m + 2.0)
        # 1 - tanh^2 = 4 e / (1 + e)^2 with e = m + 1 = exp(-2|u|): no cancellation for large |u|.
        return tl.where(u < 0.0, m * r, -m * r), 4.0 * tl.exp(-2.0 * tl.abs(u)) * r * r
    else:
        return u, tl.full(u.shape, 1.0, u.dtype)


@triton.jit
def map_scale(a, SCALE_MAP: tl.constexpr):
    """Scale of a logit: exp 0, exp_half 1, softplus_shift 2, sigmoid2 3, one_plus 4."""
    if SCALE_MAP == 0:
        return tl.exp(a)
    elif SCALE_MAP == 1:
        return tl.exp(0.5 * a)
    elif SCALE_MAP == 2:
        t = a + SOFTPLUS_SHIFT
        # Not maximum(t, 0): NaN must survive.
        return tl.where(t <= 0.0, 0.0, t) + log1p_of_exp(-tl.abs(t))
    elif SCALE_MAP == 3:
        return 2.0 / (1.0 + tl.exp(-a))
    else:
        return 1.0 + a


@triton.jit
def map_scale_slope(s, SCALE_MAP: tl.constexpr):
    """d scale / d logit from the scale itself."""
    if SCALE_MAP == 0:
        return s
    elif SCALE_MAP == 1:
        return 0.5 * s
    elif SCALE_MAP == 2:
        return -expm1(-s)
    elif SCALE_MAP == 3:
        return s * (1.0 - 0.5 * s)
    else:
        return tl.full(s.shape, 1.0, s.dtype)
