// GELU x F(x), F the normal distribution, and its derivative F(x) + x f(x), each in one pass.
//
// Called by gelu.py. With F(-|x|) = e^(-x^2/2) q(t) t and t = 1 / (1 + 0.55 |x| / sqrt 2), q a polynomial fitted for this
// to 1e-8, F is off by 2e-7 at most in fp32, and half of it needs but one exponential, which is f's too.

#include <cstring>

#include "vectors.h"

namespace {

struct Gelu {
  Vector value, slope;
};

inline Gelu gelu(Vector x) {
  const Vector size = (Vector)((Integers)x & 0x7FFFFFFF);
  const Vector t = 1.0f / (size * 0.388908729f + 1.0f);
  const Vector e = exponential(x * x * -0.5f);
  Vector q = t * -0.0325336484f + 0.1765056905f;
  q = q * t - 0.3532959982f;
  q = q * t + 0.2576673053f;
  q = q * t - 0.0101055041f;
  q = q * t + 0.1541666911f;
  q = q * t + 0.1522942188f;
  q = q * t + 0.1553012467f;
  const Vector tail = q * t * e;
  const Vector below = choose(x < Vector{}, tail, 1.0f - tail);
  return {x * below, below + x * e * 0.398942280f};
}

struct Call {
  int64_t rows, columns, parts;
  const float* x;
  float* out;       // gelu(x); may be x
  float* gradient;  // of gelu(x), to become that of x; none in the forward pass
  float* sums;      // (parts, columns), of the gradients of x over the rows of each part

  int64_t first_row(int64_t part) const { return part * rows / parts; }
};

// `length` numbers of a row, no more than W.
template <bool BACKWARD>
inline void some(const Call& call, int64_t place, float* sums, int64_t length) {
  Vector x = {}, gradient = {}, sum = {};
  const int64_t bytes = length * sizeof(float);
  std::memcpy(&x, call.x + place, bytes);
  const Gelu found = gelu(x);
  std::memcpy(call.out + place, &found.value, bytes);
  if constexpr (BACKWARD) {
    std::memcpy(&gradient, call.gradient + place, bytes);
    std::memcpy(&sum, sums, bytes);
    gradient *= found.slope;
    sum += gradient;
    std::memcpy(call.gradient + place, &gradient, bytes);
    std::memcpy(sums, &sum, bytes);
  }
}

template <bool BACKWARD>
void of_parts(int64_t begin, int64_t end, void* context) {
  const Call& call = *static_cast<Call*>(context);
  for (int64_t part = begin; part < end; part++) {
    float* sums = call.sums + (BACKWARD ? part * call.columns : 0);
    if constexpr (BACKWARD) std::memset(sums, 0, call.columns * sizeof(float));
    for (int64_t row = call.first_row(part); row < call.first_row(part + 1); row++) {
      int64_t column = 0;
      for (; column + W <= call.columns; column += W)
        some<BACKWARD>(call, row * call.columns + column, sums + column, W);
      if (column < call.columns)
        some<BACKWARD>(call, row * call.columns + column, sums + column, call.columns - column);
    }
  }
}

}  // namespace

// `parallel_for` is torch's loop over its own threads; what it returns, 0 if all is well, the functions return.

extern "C" int32_t swin_mim_gelu(int64_t rows, int64_t columns, int64_t parts, const float* x, float* out,
                                 ParallelFor parallel_for) {
  Call call{rows, columns, parts, x, out, nullptr, nullptr};
  return parallel_for(0, parts, 1, of_parts<false>, &call);
}

extern "C" int32_t swin_mim_gelu_backward(int64_t rows, int64_t columns, int64_t parts, const float* x, float* out,
                                          float* gradient, float* sums, ParallelFor parallel_for) {
  Call call{rows, columns, parts, x, out, gradient, sums};
  return parallel_for(0, parts, 1, of_parts<true>, &call);
}
