"""The 3D Shapes scene in numpy: what ``csrc/cpu/render_shapes3d_geometry.cpp`` computes, for machines without it.

Same numbers, same formulas, same order; tests compare the pixels. A camera circles around an object that stands on
the floor at the origin; two walls meet in a corner behind it; a disc-shaped light far away gives Lambert shading and a
soft shadow.
"""

import functools

import numpy as np

_CAMERA_DISTANCE, _CAMERA_HEIGHT, _TARGET_HEIGHT, _FOCAL = 6.2, 3.4, 1.14, 1.95
_WALL_DISTANCE, _DIAGONAL = 4.3, 0.70710678118654752440
_LIGHT = np.array([-0.424397371466192, 0.7639152686391455, 0.48612789822491076])
_PENUMBRA, _SHADOW_STEPS, _SAMPLES = 0.16, 48, 5
_CUBE, _CYLINDER, _SPHERE, _CAPSULE = range(4)
_NEVER = 1e30


def _dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 0] + a[..., 1] * b[..., 1] + a[..., 2] * b[..., 2]


def _normalize(a: np.ndarray) -> np.ndarray:
    return a * (1.0 / np.sqrt(_dot(a, a)))[..., None]


class _Object:
    def __init__(self, shape: int, scale: float) -> None:
        self.shape = shape
        # Half edge or radius; half height (cube, cylinder) or half the distance of the two centres (capsule).
        self.radius, self.half = {
            _CUBE: (0.98 * scale, 0.98 * scale),
            _CYLINDER: (0.95 * scale, 1.08 * scale),
            _SPHERE: (1.2 * scale, 0.0),
            _CAPSULE: (0.82 * scale, 0.72 * scale),
        }[shape]
        r, h = self.radius, self.half
        self.centre = {_SPHERE: r, _CAPSULE: r + h}.get(shape, h)
        self.bound = {_CUBE: r * 1.7320508075688772, _CYLINDER: np.sqrt(r * r + h * h), _SPHERE: r}.get(shape, r + h)

    def distance(self, p: np.ndarray) -> np.ndarray:
        """Signed distance from the points p (..., 3) to the surface."""
        r, h = self.radius, self.half
        x, y, z = p[..., 0], p[..., 1], p[..., 2]
        if self.shape == _CUBE:
            x, y, z = np.abs(x) - r, np.abs(y - h) - r, np.abs(z) - r
            ox, oy, oz = np.maximum(x, 0), np.maximum(y, 0), np.maximum(z, 0)
            return np.sqrt(ox * ox + oy * oy + oz * oz) + np.minimum(np.maximum(x, np.maximum(y, z)), 0)
        if self.shape == _CYLINDER:
            side, y = np.sqrt(x * x + z * z) - r, np.abs(y - h) - h
            outer_side, outer_y = np.maximum(side, 0), np.maximum(y, 0)
            return np.sqrt(outer_side * outer_side + outer_y * outer_y) + np.minimum(np.maximum(side, y), 0)
        y = y - (r if self.shape == _SPHERE else np.minimum(np.maximum(y, r), r + 2 * h))
        return np.sqrt(x * x + y * y + z * z) - r

    def hit(self, eye: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """t (M,), normal (M, 3) and face (M,) of the rays from ``eye`` along d (M, 3); face -1 where they miss."""
        hit = (np.full(len(d), _NEVER), np.zeros_like(d), np.full(len(d), -1))
        r, h = self.radius, self.half
        if self.shape == _CUBE:
            self._hit_cube(eye, d, hit)
        elif self.shape == _SPHERE:
            self._hit_sphere(r, eye, d, hit)
        elif self.shape == _CYLINDER:
            self._hit_tube(0.0, 2 * h, eye, d, hit)
            t = (2 * h - eye[1]) / d[:, 1]
            x, z = eye[0] + t * d[:, 0], eye[2] + t * d[:, 2]
            top = (t > 0) & (t < hit[0]) & (x * x + z * z <= r * r)
            _update(hit, top, t, np.array([0.0, 1.0, 0.0]), 10)
        else:
            self._hit_tube(r, r + 2 * h, eye, d, hit)
            self._hit_sphere(r, eye, d, hit)
            self._hit_sphere(r + 2 * h, eye, d, hit)
        return hit

    def _hit_cube(self, eye: np.ndarray, d: np.ndarray, hit: tuple) -> None:
        start = np.array([eye[0], eye[1] - self.half, eye[2]])
        # A ray along an axis gives infinities, which compare as they should.
        with np.errstate(divide="ignore"):
            inverse = 1.0 / d
        t0, t1 = (-self.radius - start) * inverse, (self.radius - start) * inverse
        near, far = np.minimum(t0, t1), np.maximum(t0, t1)
        axis, enter = near.argmax(axis=1), near.max(axis=1)
        sign = np.where(np.take_along_axis(d, axis[:, None], 1)[:, 0] > 0, -1.0, 1.0)
        normal = np.eye(3)[axis] * sign[:, None]
        _update(hit, (enter <= far.min(axis=1)) & (enter > 0), enter, normal, 3 + axis * 2 + (sign > 0))

    def _hit_sphere(self, height: float, eye: np.ndarray, d: np.ndarray, hit: tuple) -> None:
        q = eye - np.array([0.0, height, 0.0])
        b = _dot(q, d)
        discriminant = b * b - (_dot(q, q) - self.radius * self.radius)
        t = -b - np.sqrt(np.maximum(discriminant, 0))
        normal = (q + d * t[:, None]) * (1.0 / self.radius)
        _update(hit, (discriminant > 0) & (t > 0) & (t < hit[0]), t, normal, 9)

    def _hit_tube(self, low: float, high: float, eye: np.ndarray, d: np.ndarray, hit: tuple) -> None:
        a, b = d[:, 0] * d[:, 0] + d[:, 2] * d[:, 2], eye[0] * d[:, 0] + eye[2] * d[:, 2]
        discriminant = b * b - a * (eye[0] * eye[0] + eye[2] * eye[2] - self.radius * self.radius)
        t = (-b - np.sqrt(np.maximum(discriminant, 0))) / a
        y = eye[1] + t * d[:, 1]
        normal = np.stack(
            [(eye[0] + t * d[:, 0]) / self.radius, np.zeros_like(t), (eye[2] + t * d[:, 2]) / self.radius], 1
        )
        _update(hit, (discriminant > 0) & (t > 0) & (y >= low) & (y <= high), t, normal, 9)


def _update(hit: tuple, where: np.ndarray, t: np.ndarray, normal: np.ndarray, face: np.ndarray | int) -> None:
    for old, new in zip(hit, (t, normal, face)):
        old[where] = np.broadcast_to(new, old.shape)[where]


def _hit_scene(o: _Object, eye: np.ndarray, d: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    hit = (np.full(len(d), _NEVER), np.zeros_like(d), np.full(len(d), -1))
    down = d[:, 1] < 0
    _update(hit, down, -eye[1] / np.where(down, d[:, 1], -1.0), np.array([0.0, 1.0, 0.0]), 0)
    for side in range(2):
        normal = np.array([_DIAGONAL if side == 0 else -_DIAGONAL, 0.0, _DIAGONAL])
        facing = _dot(normal, d)
        t = -(_dot(normal, eye) + _WALL_DISTANCE) / np.where(facing < 0, facing, -1.0)
        _update(hit, (facing < 0) & (t < hit[0]), t, normal, 1 + side)
    t, normal, face = o.hit(eye, d)
    _update(hit, face >= 0, t, normal, face)
    return hit


def _light_seen(o: _Object, p: np.ndarray) -> np.ndarray:
    """Share of the light's disc seen from p (M, 3): the narrowest cone towards it that the object leaves free."""
    to_centre = np.array([0.0, o.centre, 0.0]) - p
    along = _dot(to_centre, _LIGHT)
    end = along + o.bound
    reach = o.bound + _PENUMBRA * end
    near = (end > 0) & (_dot(to_centre, to_centre) - along * along < reach * reach)
    seen = np.ones(len(p))
    p, end = p[near], end[near]
    cone, t = np.ones(len(p)), np.full(len(p), 0.02)
    for _ in range(_SHADOW_STEPS):
        going = (t < end) & (cone > -1.0)
        h = o.distance(p + _LIGHT * t[:, None])
        cone = np.where(going, np.minimum(cone, h / (_PENUMBRA * t)), cone)
        t = np.where(going, t + np.minimum(np.maximum(h, 0.04), 0.4), t)
    cone = np.maximum(cone, -1.0)
    seen[near] = 0.25 * (1.0 + cone) * (1.0 + cone) * (2.0 - cone)
    return seen


def _shade(o: _Object, eye: np.ndarray, d: np.ndarray, hit: tuple) -> np.ndarray:
    """(4, M): floor, wall, object and white of the rays d (M, 3)."""
    t, normal, face = hit
    p = eye + d * t[:, None]
    lambert = np.maximum(0.0, _dot(normal, _LIGHT))
    layers = np.zeros((4, len(d)))
    m = face >= 3
    foot = 1.0 - 0.35 * np.exp(-4.0 * np.maximum(0.0, p[m, 1]) / o.radius)
    layers[2, m] = np.minimum(1.0, (0.40 + 0.10 * normal[m, 1]) * foot + 0.58 * lambert[m])
    half = _normalize(_LIGHT - d[m])
    layers[3, m] = 0.42 * np.maximum(0.0, _dot(normal[m], half)) ** 36.0

    left = _DIAGONAL * p[:, 0] + _DIAGONAL * p[:, 2] + _WALL_DISTANCE
    right = -_DIAGONAL * p[:, 0] + _DIAGONAL * p[:, 2] + _WALL_DISTANCE
    m = face == 0
    corner = 1.0 - 0.22 * np.exp(-left[m] / 0.6) - 0.22 * np.exp(-right[m] / 0.6)
    contact = 1.0 - 0.45 * np.exp(-np.maximum(0.0, o.distance(p[m])) / (0.28 * o.radius))
    layers[0, m] = np.clip((0.44 * contact + 0.62 * lambert[m] * _light_seen(o, p[m])) * corner, 0, 1)
    m = (face == 1) | (face == 2)
    other = np.where(face[m] == 1, right[m], left[m])
    corner = 1.0 - 0.22 * np.exp(-other / 0.6) - 0.26 * np.exp(-np.maximum(0.0, p[m, 1]) / 0.5)
    layers[1, m] = np.clip((0.58 + 0.02 * p[m, 1] + 0.40 * lambert[m] * _light_seen(o, p[m])) * corner, 0, 1)
    return layers


class _Camera:
    def __init__(self, orientation: float) -> None:
        self.eye = np.array(
            [_CAMERA_DISTANCE * np.sin(orientation), _CAMERA_HEIGHT, _CAMERA_DISTANCE * np.cos(orientation)]
        )
        f = self._forward = _normalize(np.array([0.0, _TARGET_HEIGHT, 0.0]) - self.eye)
        r = self._right = _normalize(np.array([-f[2], 0.0, f[0]]))
        self._up = np.array([r[1] * f[2] - r[2] * f[1], r[2] * f[0] - r[0] * f[2], r[0] * f[1] - r[1] * f[0]])

    def rays(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """(M, 3) unit vectors through image coordinates in [0, 1], y downwards."""
        x, y = (2.0 * x - 1.0)[:, None], (1.0 - 2.0 * y)[:, None]
        return _normalize(self._right * x + self._up * y + self._forward * _FOCAL)


@functools.cache
def geometry(number: int, size: int) -> np.ndarray:
    """(4, size * size) uint8 layers of one of the 480 geometries: floor, wall, object, white."""
    scale, shape, orientation = number // 60, number // 15 % 4, number % 15
    o = _Object(shape, 0.75 + 0.5 * scale / 7.0)
    camera = _Camera((-30.0 + 60.0 * orientation / 14.0) * np.pi / 180.0)
    step = 1.0 / size

    y, x = (grid.ravel() * step for grid in np.mgrid[0 : size + 1, 0 : size + 1])
    corner = _hit_scene(o, camera.eye, camera.rays(x, y))[2].reshape(size + 1, size + 1)
    y, x = (grid.ravel() for grid in np.mgrid[0:size, 0:size])
    d = camera.rays((x + 0.5) * step, (y + 0.5) * step)
    hit = _hit_scene(o, camera.eye, d)
    layers = _shade(o, camera.eye, d, hit)
    # Only a pixel that sees more than one face needs more than one sample.
    corners = (corner[:-1, :-1], corner[:-1, 1:], corner[1:, :-1], corner[1:, 1:])
    edges = np.flatnonzero(np.any([c.ravel() != hit[2] for c in corners], axis=0))
    total = np.zeros((4, len(edges)))
    for i in range(_SAMPLES * _SAMPLES):
        sx, sy = (i % _SAMPLES + 0.5) / _SAMPLES, (i // _SAMPLES + 0.5) / _SAMPLES
        d = camera.rays((x[edges] + sx) * step, (y[edges] + sy) * step)
        total += _shade(o, camera.eye, d, _hit_scene(o, camera.eye, d)) * (1.0 / (_SAMPLES * _SAMPLES))
    layers[:, edges] = total
    result, rest = np.empty((4, size * size), np.uint8), np.full(size * size, 255)
    for layer in range(4):
        result[layer] = value = np.minimum(rest, (255.0 * layers[layer] + 0.5).astype(np.int64))
        rest = rest - value
    return result


def render(indices: np.ndarray, palette: np.ndarray, out: np.ndarray) -> None:
    """Images (N, size, size, 3) of the row numbers ``indices``; the arithmetic of ``shapes3d_recolour``."""
    size = out.shape[1]
    for i, index in enumerate(indices):
        hues, number = divmod(int(index), 480)
        layers = geometry(number, size).astype(np.uint32)
        colours = palette[(0, 1, 2), (hues // 100, hues // 10 % 10, hues % 10)].astype(np.uint32)
        total = layers[:3].T @ colours + (layers[3, :, None] << 8) + 128
        out[i] = (total >> 8).reshape(size, size, 3)
