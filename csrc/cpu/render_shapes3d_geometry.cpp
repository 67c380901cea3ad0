#include "render_shapes3d.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../common/simd.h"

namespace strucfast {
namespace {

// The scene. strucfast/data/_shapes3d_scene.py holds the same numbers and formulas; a test compares the pixels.
constexpr double kPi = 3.14159265358979323846;
constexpr double kCameraDistance = 6.2, kCameraHeight = 3.4, kTargetHeight = 1.14, kFocal = 1.95;
constexpr double kWallDistance = 4.3;
constexpr double kDiagonal = 0.70710678118654752440;
// Unit vector towards the light: up, to the left and in front of the room's corner.
constexpr double kLightX = -0.424397371466192, kLightY = 0.7639152686391455, kLightZ = 0.48612789822491076;
constexpr double kPenumbra = 0.16;
constexpr int kShadowSteps = 48;
constexpr int kSamples = 5;

enum Shape { kCube, kCylinder, kSphere, kCapsule };
enum Material { kFloor, kWall, kObject };

struct Vec {
  double x, y, z;
};
inline Vec operator+(Vec a, Vec b) { return {a.x + b.x, a.y + b.y, a.z + b.z}; }
inline Vec operator-(Vec a, Vec b) { return {a.x - b.x, a.y - b.y, a.z - b.z}; }
inline Vec operator*(Vec a, double s) { return {a.x * s, a.y * s, a.z * s}; }
inline double dot(Vec a, Vec b) { return a.x * b.x + a.y * b.y + a.z * b.z; }
inline Vec normalize(Vec a) { return a * (1.0 / std::sqrt(dot(a, a))); }
inline double clamp01(double v) { return std::min(1.0, std::max(0.0, v)); }
constexpr Vec kLight{kLightX, kLightY, kLightZ};

// An object stands on the floor at the origin; radius is the half edge of the cube.
struct Object {
  Shape shape;
  double radius;
  // Half the height for the cube and the cylinder; half the distance of the two centres for the capsule.
  double half;

  double centre() const { return shape == kSphere ? radius : shape == kCapsule ? radius + half : half; }
  double bound() const {
    switch (shape) {
      case kCube: return radius * 1.7320508075688772;
      case kCylinder: return std::sqrt(radius * radius + half * half);
      case kSphere: return radius;
      default: return radius + half;
    }
  }
};

Object make_object(int shape, double scale) {
  switch (shape) {
    case kCube: return {kCube, 0.98 * scale, 0.98 * scale};
    case kCylinder: return {kCylinder, 0.95 * scale, 1.08 * scale};
    case kSphere: return {kSphere, 1.2 * scale, 0.0};
    default: return {kCapsule, 0.82 * scale, 0.72 * scale};
  }
}

struct Hit {
  double t = 1e30;
  Vec normal{0, 0, 0};
  // Which smooth piece of surface was hit; two neighbouring rays with different faces have an edge between them.
  int face = -1;
};

void hit_sphere(Vec centre, double radius, Vec eye, Vec d, int face, Hit& hit) {
  const Vec q = eye - centre;
  const double b = dot(q, d), discriminant = b * b - (dot(q, q) - radius * radius);
  if (discriminant <= 0) return;
  const double t = -b - std::sqrt(discriminant);
  if (t <= 0 || t >= hit.t) return;
  hit.t = t;
  hit.normal = (q + d * t) * (1.0 / radius);
  hit.face = face;
}

void hit_cube(const Object& o, Vec eye, Vec d, Hit& hit) {
  const double from[3] = {eye.x, eye.y - o.half, eye.z}, along[3] = {d.x, d.y, d.z};
  double enter = -1e30, leave = 1e30;
  int axis = 0;
  for (int a = 0; a < 3; ++a) {
    const double inverse = 1.0 / along[a];
    const double t0 = (-o.radius - from[a]) * inverse, t1 = (o.radius - from[a]) * inverse;
    const double near = std::min(t0, t1), far = std::max(t0, t1);
    if (near > enter) {
      enter = near;
      axis = a;
    }
    leave = std::min(leave, far);
  }
  if (enter > leave || enter <= 0) return;
  const double sign = along[axis] > 0 ? -1.0 : 1.0;
  hit.t = enter;
  hit.normal = {axis == 0 ? sign : 0.0, axis == 1 ? sign : 0.0, axis == 2 ? sign : 0.0};
  hit.face = 3 + axis * 2 + (sign > 0 ? 1 : 0);
}

// The open tube of a cylinder or capsule between the heights low and high.
void hit_tube(double radius, double low, double high, Vec eye, Vec d, Hit& hit) {
  const double a = d.x * d.x + d.z * d.z, b = eye.x * d.x + eye.z * d.z;
  const double c = eye.x * eye.x + eye.z * eye.z - radius * radius, discriminant = b * b - a * c;
  if (discriminant <= 0) return;
  const double t = (-b - std::sqrt(discriminant)) / a, y = eye.y + t * d.y;
  if (t <= 0 || y < low || y > high) return;
  hit.t = t;
  hit.normal = {(eye.x + t * d.x) / radius, 0.0, (eye.z + t * d.z) / radius};
  hit.face = 9;
}

Hit hit_object(const Object& o, Vec eye, Vec d) {
  Hit hit;
  switch (o.shape) {
    case kCube: hit_cube(o, eye, d, hit); break;
    case kSphere: hit_sphere({0, o.radius, 0}, o.radius, eye, d, 9, hit); break;
    case kCylinder: {
      hit_tube(o.radius, 0.0, 2 * o.half, eye, d, hit);
      const double t = (2 * o.half - eye.y) / d.y;
      const double x = eye.x + t * d.x, z = eye.z + t * d.z;
      if (t > 0 && t < hit.t && x * x + z * z <= o.radius * o.radius) {
        hit.t = t;
        hit.normal = {0, 1, 0};
        hit.face = 10;
      }
      break;
    }
    case kCapsule:
      hit_tube(o.radius, o.radius, o.radius + 2 * o.half, eye, d, hit);
      hit_sphere({0, o.radius, 0}, o.radius, eye, d, 9, hit);
      hit_sphere({0, o.radius + 2 * o.half, 0}, o.radius, eye, d, 9, hit);
      break;
  }
  return hit;
}

// Signed distance from p to the object's surface.
double distance(const Object& o, Vec p) {
  switch (o.shape) {
    case kCube: {
      const double x = std::fabs(p.x) - o.radius, y = std::fabs(p.y - o.half) - o.radius, z = std::fabs(p.z) - o.radius;
      const double ox = std::max(x, 0.0), oy = std::max(y, 0.0), oz = std::max(z, 0.0);
      return std::sqrt(ox * ox + oy * oy + oz * oz) + std::min(std::max(x, std::max(y, z)), 0.0);
    }
    case kCylinder: {
      const double r = std::sqrt(p.x * p.x + p.z * p.z) - o.radius, y = std::fabs(p.y - o.half) - o.half;
      const double outer_r = std::max(r, 0.0), outer_y = std::max(y, 0.0);
      return std::sqrt(outer_r * outer_r + outer_y * outer_y) + std::min(std::max(r, y), 0.0);
    }
    case kSphere: {
      const double y = p.y - o.radius;
      return std::sqrt(p.x * p.x + y * y + p.z * p.z) - o.radius;
    }
    default: {
      const double y = p.y - std::min(std::max(p.y, o.radius), o.radius + 2 * o.half);
      return std::sqrt(p.x * p.x + y * y + p.z * p.z) - o.radius;
    }
  }
}

// Share of a disc-shaped light seen from p: the narrowest cone between p and the light that the object leaves free.
double light_seen(const Object& o, Vec p) {
  const Vec to_centre = Vec{0, o.centre(), 0} - p;
  const double along = dot(to_centre, kLight), bound = o.bound(), end = along + bound;
  const double away2 = dot(to_centre, to_centre) - along * along, reach = bound + kPenumbra * end;
  // Outside this cone the march below returns 1.
  if (end <= 0 || away2 >= reach * reach) return 1.0;
  double cone = 1.0, t = 0.02;
  for (int i = 0; i < kShadowSteps && t < end && cone > -1.0; ++i) {
    const double h = distance(o, p + kLight * t);
    cone = std::min(cone, h / (kPenumbra * t));
    t += std::min(std::max(h, 0.04), 0.4);
  }
  cone = std::max(cone, -1.0);
  return 0.25 * (1.0 + cone) * (1.0 + cone) * (2.0 - cone);
}

Hit hit_room(Vec eye, Vec d) {
  Hit hit;
  if (d.y < 0) {
    hit.t = -eye.y / d.y;
    hit.normal = {0, 1, 0};
    hit.face = 0;
  }
  for (int side = 0; side < 2; ++side) {
    const Vec normal{side == 0 ? kDiagonal : -kDiagonal, 0, kDiagonal};
    const double facing = dot(normal, d);
    if (facing >= 0) continue;
    const double t = -(dot(normal, eye) + kWallDistance) / facing;
    if (t < hit.t) {
      hit.t = t;
      hit.normal = normal;
      hit.face = 1 + side;
    }
  }
  return hit;
}

Hit hit_scene(const Object& o, Vec eye, Vec d) {
  const Hit object = hit_object(o, eye, d);
  return object.face >= 0 ? object : hit_room(eye, d);
}

// Adds one sample of weight `weight` to the pixel's floor, wall, object and white.
void shade(const Object& o, Vec eye, Vec d, const Hit& hit, double weight, double* layers) {
  const Vec p = eye + d * hit.t;
  const double lambert = std::max(0.0, dot(hit.normal, kLight));
  if (hit.face >= 3) {
    // Sky light from above, bounce light from below, and a darker foot where the object meets the floor.
    const double foot = 1.0 - 0.35 * std::exp(-4.0 * std::max(0.0, p.y) / o.radius);
    const double ambient = (0.40 + 0.10 * hit.normal.y) * foot;
    layers[kObject] += weight * std::min(1.0, ambient + 0.58 * lambert);
    const Vec half = normalize(kLight - d);
    layers[3] += weight * 0.42 * std::pow(std::max(0.0, dot(hit.normal, half)), 36.0);
    return;
  }
  const double seen = light_seen(o, p);
  // Distance to the planes that meet this one; corners are darker.
  const double left = kDiagonal * p.x + kDiagonal * p.z + kWallDistance;
  const double right = -kDiagonal * p.x + kDiagonal * p.z + kWallDistance;
  if (hit.face == 0) {
    const double corner = 1.0 - 0.22 * std::exp(-left / 0.6) - 0.22 * std::exp(-right / 0.6);
    const double contact = 1.0 - 0.45 * std::exp(-std::max(0.0, distance(o, p)) / (0.28 * o.radius));
    layers[kFloor] += weight * clamp01((0.44 * contact + 0.62 * lambert * seen) * corner);
  } else {
    const double other = hit.face == 1 ? right : left;
    const double corner = 1.0 - 0.22 * std::exp(-other / 0.6) - 0.26 * std::exp(-std::max(0.0, p.y) / 0.5);
    layers[kWall] += weight * clamp01((0.58 + 0.02 * p.y + 0.40 * lambert * seen) * corner);
  }
}

struct Camera {
  Vec eye, forward, right, up;

  explicit Camera(double orientation) {
    eye = {kCameraDistance * std::sin(orientation), kCameraHeight, kCameraDistance * std::cos(orientation)};
    forward = normalize(Vec{0, kTargetHeight, 0} - eye);
    right = normalize({-forward.z, 0, forward.x});
    up = {right.y * forward.z - right.z * forward.y, right.z * forward.x - right.x * forward.z,
          right.x * forward.y - right.y * forward.x};
  }
  // Image coordinates in [0, 1], y downwards.
  Vec ray(double x, double y) const {
    return normalize(right * (2.0 * x - 1.0) + up * (1.0 - 2.0 * y) + forward * kFocal);
  }
};

void cast_geometry(int64_t geometry, int64_t size, uint8_t* layers) {
  const int orientation = static_cast<int>(geometry % 15), shape = static_cast<int>(geometry / 15 % 4);
  const int scale = static_cast<int>(geometry / 60);
  const Object object = make_object(shape, 0.75 + 0.5 * scale / 7.0);
  const Camera camera((-30.0 + 60.0 * orientation / 14.0) * kPi / 180.0);
  const double step = 1.0 / static_cast<double>(size);

  // Faces at the pixel corners: only a pixel that sees more than one face needs more than one sample.
  std::vector<int> corner((size + 1) * (size + 1));
  for (int64_t y = 0; y <= size; ++y)
    for (int64_t x = 0; x <= size; ++x)
      corner[y * (size + 1) + x] =
          hit_scene(object, camera.eye, camera.ray(static_cast<double>(x) * step, static_cast<double>(y) * step)).face;

  const int64_t pixels = size * size;
  for (int64_t y = 0; y < size; ++y) {
    for (int64_t x = 0; x < size; ++x) {
      double sum[4] = {0, 0, 0, 0};
      const Vec d = camera.ray((static_cast<double>(x) + 0.5) * step, (static_cast<double>(y) + 0.5) * step);
      const Hit hit = hit_scene(object, camera.eye, d);
      const int* c = corner.data() + y * (size + 1) + x;
      if (c[0] == hit.face && c[1] == hit.face && c[size + 1] == hit.face && c[size + 2] == hit.face) {
        shade(object, camera.eye, d, hit, 1.0, sum);
      } else {
        for (int i = 0; i < kSamples * kSamples; ++i) {
          const double sx = (i % kSamples + 0.5) / kSamples, sy = (i / kSamples + 0.5) / kSamples;
          const Vec e = camera.ray((static_cast<double>(x) + sx) * step, (static_cast<double>(y) + sy) * step);
          shade(object, camera.eye, e, hit_scene(object, camera.eye, e), 1.0 / (kSamples * kSamples), sum);
        }
      }
      int rest = 255;
      for (int layer = 0; layer < 4; ++layer) {
        const int value = std::min(rest, static_cast<int>(255.0 * sum[layer] + 0.5));
        layers[layer * pixels + y * size + x] = static_cast<uint8_t>(value);
        rest -= value;
      }
    }
  }
}

}  // namespace

void shapes3d_geometry(int64_t begin, int64_t end, int64_t image_size, uint8_t* layers) {
  for (int64_t g = begin; g < end; ++g)
    cast_geometry(g, image_size, layers + g * kShapes3dLayers * image_size * image_size);
}

}  // namespace strucfast
