// What the C++ of this folder computes with: vectors of the processor's width, their exponential, torch's threads.

#pragma once

#include <cstdint>

namespace {

#if defined(__AVX512F__)
constexpr int64_t W = 16;
constexpr int REGISTERS = 32;
#elif defined(__AVX__)
constexpr int64_t W = 8;
constexpr int REGISTERS = 16;
#else
constexpr int64_t W = 4;
#if defined(__aarch64__)
constexpr int REGISTERS = 32;
#else
constexpr int REGISTERS = 16;
#endif
#endif

typedef float Vector __attribute__((vector_size(W * 4), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(W * 4), aligned(4), may_alias));

inline Vector& at(float* place) { return *reinterpret_cast<Vector*>(place); }
inline const Vector& at(const float* place) { return *reinterpret_cast<const Vector*>(place); }
inline Vector all(float value) { return value - Vector{}; }

inline Vector choose(Integers condition, Vector yes, Vector no) {
  return condition ? yes : no;
}

// e^x to 1e-7 of itself for x <= 0; below -87.3 it is 0. NaN stays NaN.
inline Vector exponential(Vector x) {
  const Integers tiny = x < all(-87.33f);
  x = choose(tiny, all(-87.33f), x);
  const Vector shifted = x * 1.44269504088896341f + 12582912.0f;  // the integer is in its last bits
  const Vector n = shifted - 12582912.0f;
  const Vector r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
  Vector p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + (r + 1.0f);
  p *= (Vector)(((Integers)shifted + 127) << 23);
  return (Vector)(~tiny & (Integers)p);
}

typedef void (*Body)(int64_t begin, int64_t end, void* context);
typedef int32_t (*ParallelFor)(int64_t begin, int64_t end, int64_t grain, Body body, void* context);

}  // namespace
