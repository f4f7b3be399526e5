// Window attention for a CPU: the scores of one window and head at a time, in a core's own caches.
//
// Compiled at first use by library.py, called by attention.py. Queries, keys and values are read where they lie,
// (B, h, w, 3, heads, d), and results are written where they belong: padding, shift and windows are arithmetic on
// indices. Everything is computed in fp32, whatever the tensors are.
//
// t is the tokens of a window, "wide" a length rounded up to whole vectors. The same number of parts gives the same
// bits: each part has its own share of the windows, and sums over parts are taken in their order.

#include <cmath>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

constexpr float MASKED = -100.0f;  // as swin_mim/kernels/window_geometry.py
constexpr int64_t HEADS = 4;       // heads of a window that are read together: 512 bytes of a token
constexpr int64_t ROWS = 64;       // most rows of scores at a time,
constexpr int64_t SOME_ROWS = 48;  // and so many where a window has more
constexpr int64_t ALIGNED = 16;    // floats of a cache line
constexpr float SHORTEST = 1e-12f;  // length, as swin_mim/kernels/cosine.py

// A vector's numbers combined, its halves first, in registers: to go through memory was measured to be slower.
template <int N, typename Combine>
inline float across(const float* values, Combine combine) {
  if constexpr (N == 1) {
    return values[0];
  } else {
    typedef float Half __attribute__((vector_size(N * 2), may_alias));
    Half low, high;
    std::memcpy(&low, values, sizeof(low));
    std::memcpy(&high, values + N / 2, sizeof(high));
    const Half both = combine(low, high);
    return across<N / 2>(reinterpret_cast<const float*>(&both), combine);
  }
}

inline float sum_of(Vector x) {
  return across<W>(reinterpret_cast<const float*>(&x), [](auto a, auto b) { return a + b; });
}

inline float max_of(Vector x) {
  return across<W>(reinterpret_cast<const float*>(&x), [](auto a, auto b) { return a > b ? a : b; });
}

inline int64_t rounded(int64_t length, int64_t unit) { return (length + unit - 1) / unit * unit; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Matrix products.

// c (M, NV vectors) = a b, or c += a b; a's element (i, k) is a[i * row + k * step], b and c are rows of vectors.
template <int M, int NV, bool ADD>
inline void tile(int64_t inner, const float* a, int64_t row, int64_t step, const float* b, int64_t wide_b, float* c,
                 int64_t wide_c) {
  Vector sum[M][NV];
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) sum[i][v] = ADD ? at(c + i * wide_c + v * W) : Vector{};
  for (int64_t k = 0; k < inner; k++) {
    Vector column[NV];
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) column[v] = at(b + k * wide_b + v * W);
#pragma GCC unroll 16
    for (int i = 0; i < M; i++) {
      const Vector factor = all(a[i * row + k * step]);
#pragma GCC unroll 8
      for (int v = 0; v < NV; v++) sum[i][v] += factor * column[v];
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < M; i++)
#pragma GCC unroll 8
    for (int v = 0; v < NV; v++) at(c + i * wide_c + v * W) = sum[i][v];
}

// The same for the rows that are left over, fewer than M.
template <int M, int NV, bool ADD>
inline void rest(int64_t rows, int64_t inner, const float* a, int64_t row, int64_t step, const float* b,
                 int64_t wide_b, float* c, int64_t wide_c) {
  if constexpr (M > 1) {
    if (rows == M - 1)
      tile<M - 1, NV, ADD>(inner, a, row, step, b, wide_b, c, wide_c);
    else
      rest<M - 1, NV, ADD>(rows, inner, a, row, step, b, wide_b, c, wide_c);
  }
}

template <int NV, bool ADD>
void columns(int64_t rows, int64_t inner, const float* a, int64_t row, int64_t step, const float* b, int64_t wide_b,
             float* c, int64_t wide_c) {
  constexpr int M = (NV == 1 ? 8 : NV == 2 ? 6 : NV == 3 ? 4 : NV == 4 ? 3 : 2) * (REGISTERS / 16);
  int64_t i = 0;
  for (; i + M <= rows; i += M) tile<M, NV, ADD>(inner, a + i * row, row, step, b, wide_b, c + i * wide_c, wide_c);
  rest<M, NV, ADD>(rows - i, inner, a + i * row, row, step, b, wide_b, c + i * wide_c, wide_c);
}

template <bool ADD>
void product(int64_t rows, int64_t width, int64_t inner, const float* a, int64_t row, int64_t step, const float* b,
             int64_t wide_b, float* c, int64_t wide_c) {
  int64_t left = width / W;
  while (left) {
    int64_t taken;
    if (left == 5) {
      columns<5, ADD>(rows, inner, a, row, step, b, wide_b, c, wide_c), taken = 5;
    } else if (left % 3 == 0 && left != 12) {
      columns<3, ADD>(rows, inner, a, row, step, b, wide_b, c, wide_c), taken = 3;
    } else if (left >= 4) {
      columns<4, ADD>(rows, inner, a, row, step, b, wide_b, c, wide_c), taken = 4;
    } else if (left == 2) {
      columns<2, ADD>(rows, inner, a, row, step, b, wide_b, c, wide_c), taken = 2;
    } else {
      columns<1, ADD>(rows, inner, a, row, step, b, wide_b, c, wide_c), taken = 1;
    }
    left -= taken, b += taken * W, c += taken * W;
  }
}

// Rows in and out.

struct BFloat16 {
  uint16_t bits;
};

inline float value_of(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline void put(BFloat16& place, float value) {  // rounded to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  place.bits = static_cast<uint16_t>(value == value ? rounded : 0x7FC0);
}

// A row times a factor.
inline void scaled(float factor, const float* from, int64_t d, float* to) {
  int64_t c = 0;
  for (; c + W <= d; c += W) at(to + c) = factor * at(from + c);
  for (; c < d; c++) to[c] = factor * from[c];
}

inline void scaled(float factor, const BFloat16* from, int64_t d, float* to) {
  for (int64_t c = 0; c < d; c++) to[c] = factor * value_of(from[c]);
}

inline void scaled(float factor, const float* from, int64_t d, BFloat16* to) {
  for (int64_t c = 0; c < d; c++) put(to[c], factor * from[c]);
}

// As attention.py hands it over.
struct Geometry {
  int64_t batch, height, width, heads, d;
  int64_t window_h, window_w, table_h, table_w, shift_h, shift_w;
};

// What follows from the geometry. A unit of work is one window and a few of its heads.
struct Layout {
  Geometry g;
  int64_t t, wide_t, wide_d, down, right, blocks, units, parts, rows;
  int64_t most_heads = 0;  // that one part has to do with

  Layout(const Geometry& geometry, int64_t parts) : g(geometry), parts(parts) {
    t = g.window_h * g.window_w;
    wide_t = rounded(t, W), wide_d = rounded(g.d, W);
    down = (g.height + g.window_h - 1) / g.window_h, right = (g.width + g.window_w - 1) / g.window_w;
    blocks = (g.heads + HEADS - 1) / HEADS;
    units = blocks * g.batch * down * right;
    rows = t <= ROWS ? t : SOME_ROWS;
    for (int64_t part = 0; part < parts; part++) {
      const int64_t heads = to_head(part) - from_head(part);
      if (heads > most_heads) most_heads = heads;
    }
  }
  int64_t first_head(int64_t block) const { return block * g.heads / blocks; }
  int64_t first_unit(int64_t part) const { return part * units / parts; }
  int64_t block_of(int64_t unit) const { return unit / (g.batch * down * right); }
  // The heads that a part has to do with.
  int64_t from_head(int64_t part) const { return first_head(block_of(first_unit(part))); }
  int64_t to_head(int64_t part) const {
    const int64_t end = first_unit(part + 1);
    return first_unit(part) == end ? from_head(part) : first_head(block_of(end - 1) + 1);
  }
  // Sizes in floats: a head's bias, its rows and rows turned around, scores, and what a window has besides.
  int64_t bias() const { return t * wide_t; }
  int64_t matrix() const { return rounded(t * wide_d, ALIGNED); }
  int64_t flipped() const { return rounded(g.d * wide_t, ALIGNED); }
  int64_t scores() const { return rounded(rows * wide_t, ALIGNED); }
  int64_t of_window() const { return rounded(4 * t, ALIGNED) + rounded(4 * wide_t, ALIGNED) + 2 * rounded(t, ALIGNED); }
  int64_t scratch(bool backward) const {
    return of_window() + (backward ? 6 : 3) * matrix() + (backward ? 2 : 1) * (flipped() + scores());
  }
  int64_t gradients() const { return rounded(most_heads * bias() + 3 * g.heads * g.d + g.heads, ALIGNED); }
  int64_t of_part(bool backward) const { return scratch(backward) + (backward ? gradients() : 0); }
  int64_t all_biases() const { return rounded(g.heads * bias(), ALIGNED); }
};

// One window of one image: where its tokens lie, and who is to see whom.
struct Window {
  int64_t* place;   // (t,): token of the batch in raster order, -1 for padding
  int32_t* region;  // (t,): tokens of different regions are neighbours only through the cyclic shift
  float* mask;      // (4, wide_t): what a token of each region adds to the scores of the window's tokens
  bool masked;

  Window(const Layout& layout, float* memory)
      : place(reinterpret_cast<int64_t*>(memory)),
        region(reinterpret_cast<int32_t*>(memory + 2 * layout.t)),
        mask(memory + rounded(4 * layout.t, ALIGNED)) {}

  void set(const Layout& layout, int64_t image, int64_t row, int64_t column) {
    const Geometry& g = layout.g;
    const bool last_row = row == layout.down - 1, last_column = column == layout.right - 1;
    int64_t i = 0;
    for (int64_t dy = 0; dy < g.window_h; dy++) {
      int64_t y = row * g.window_h + dy + g.shift_h;
      if (y >= layout.down * g.window_h) y -= layout.down * g.window_h;
      for (int64_t dx = 0; dx < g.window_w; dx++, i++) {
        int64_t x = column * g.window_w + dx + g.shift_w;
        if (x >= layout.right * g.window_w) x -= layout.right * g.window_w;
        place[i] = y < g.height && x < g.width ? (image * g.height + y) * g.width + x : -1;
        region[i] = 2 * (last_row && dy >= g.window_h - g.shift_h) + (last_column && dx >= g.window_w - g.shift_w);
      }
    }
    masked = (last_row && g.shift_h) || (last_column && g.shift_w);
    if (!masked) return;
    for (int64_t other = 0; other < 4; other++)
      for (int64_t j = 0; j < layout.wide_t; j++)
        mask[other * layout.wide_t + j] = j < layout.t && region[j] != other ? MASKED : 0.0f;
  }
};

template <typename T>
struct Call {
  Layout layout;
  const T* qkv;
  const float* table;  // (rows, heads)
  const float* fill;   // (3, heads, d) or nothing
  const float* cosine;  // (heads,): compare by cosines times this; or nothing
  float* biases;       // (heads, t, wide_t), and behind it what the parts need
  T* out = nullptr;             // of the forward pass
  const T* upstream = nullptr;  // of the backward pass, with all below
  T* to_qkv = nullptr;
  float* to_table = nullptr;
  float* to_fill = nullptr;
  float* to_cosine = nullptr;

  float* scratch(int64_t part, bool backward) const {
    return biases + layout.all_biases() + part * layout.of_part(backward);
  }
  // A part's gradients of the biases of its heads, and of the fill.
  float* gradients(int64_t part) const { return scratch(part, true) + layout.scratch(true); }
};

int64_t table_row(const Geometry& g, int64_t i, int64_t j) {
  const int64_t down = i / g.window_w - j / g.window_w + g.table_h - 1;
  const int64_t right = i % g.window_w - j % g.window_w + g.table_w - 1;
  return down * (2 * g.table_w - 1) + right;
}

template <typename T>
void spread_biases(int64_t begin, int64_t end, void* context) {
  const Call<T>& call = *static_cast<Call<T>*>(context);
  const Layout& layout = call.layout;
  for (int64_t head = begin; head < end; head++)
    for (int64_t i = 0; i < layout.t; i++) {
      float* row = call.biases + head * layout.bias() + i * layout.wide_t;
      for (int64_t j = 0; j < layout.t; j++) row[j] = call.table[table_row(layout.g, i, j) * layout.g.heads + head];
      for (int64_t j = layout.t; j < layout.wide_t; j++) row[j] = -INFINITY;
    }
}

// A head's rows of a window to (t, wide_d), times a factor; `which` of `count` that a token has: q, k or v.
template <typename T>
void gather(const Layout& layout, const Window& window, const T* from, const float* fill, int64_t which, int64_t count,
            int64_t head, float factor, float* to) {
  const int64_t d = layout.g.d, heads = layout.g.heads, inner = (which * heads + head) * d;
  for (int64_t i = 0; i < layout.t; i++, to += layout.wide_d) {
    if (window.place[i] >= 0) {
      scaled(factor, from + window.place[i] * count * heads * d + inner, d, to);
    } else {
      for (int64_t c = 0; c < d; c++) to[c] = fill ? factor * fill[inner + c] : 0.0f;
    }
    for (int64_t c = d; c < layout.wide_d; c++) to[c] = 0.0f;
  }
}

// Rows (t, wide_d) to the length of a factor, in place; `stretch` (t,) is what each was multiplied with.
void stretch_rows(const Layout& layout, float factor, float* rows, float* stretch) {
  for (int64_t i = 0; i < layout.t; i++, rows += layout.wide_d) {
    Vector sum = Vector{};
    for (int64_t c = 0; c < layout.wide_d; c += W) sum += at(rows + c) * at(rows + c);
    const float length = std::sqrt(sum_of(sum));
    stretch[i] = factor / (length < SHORTEST ? SHORTEST : length);
    for (int64_t c = 0; c < layout.wide_d; c += W) at(rows + c) *= all(stretch[i]);
  }
}

// Gradients of such rows to gradients of what they were made of, in place. Returns the sum of their products.
float stretch_backward(const Layout& layout, float factor, const float* stretched, const float* stretch, int64_t rows,
                       float* gradients) {
  float total = 0.0f;
  for (int64_t i = 0; i < rows; i++, stretched += layout.wide_d, gradients += layout.wide_d) {
    Vector sum = Vector{};
    for (int64_t c = 0; c < layout.wide_d; c += W) sum += at(stretched + c) * at(gradients + c);
    const float along = sum_of(sum);
    total += along;
    const Vector back = all(along / (factor * factor)), by = all(stretch[i]);
    for (int64_t c = 0; c < layout.wide_d; c += W)
      at(gradients + c) = by * (at(gradients + c) - back * at(stretched + c));
  }
  return total;
}

// Some of a window's rows of gradients to where they belong; those of padding are summed.
template <typename T>
void scatter(const Call<T>& call, const Window& window, const float* from, int64_t first, int64_t rows, int64_t which,
             int64_t head, float factor, float* to_fill) {
  const int64_t d = call.layout.g.d, heads = call.layout.g.heads, inner = (which * heads + head) * d;
  for (int64_t i = 0; i < rows; i++, from += call.layout.wide_d) {
    if (window.place[first + i] >= 0) {
      T* row = call.to_qkv + window.place[first + i] * 3 * heads * d + inner;
      scaled(factor, from, d, row);
    } else {
      for (int64_t c = 0; c < d; c++) to_fill[inner + c] += factor * from[c];
    }
  }
}

typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
typedef int32_t Places __attribute__((vector_size(16)));

// Numbers of two vectors by their places, from 0 to 7.
#if defined(__clang__)
#define CHOSEN(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define CHOSEN(a, b, ...) __builtin_shuffle(a, b, Places{__VA_ARGS__})
#endif

// 4 x 4 numbers turned around.
inline void flip_four(const float* from, int64_t wide_from, float* to, int64_t wide_to) {
  Four row[4];
  for (int i = 0; i < 4; i++) row[i] = *reinterpret_cast<const Four*>(from + i * wide_from);
  const Four a = CHOSEN(row[0], row[1], 0, 4, 1, 5), b = CHOSEN(row[2], row[3], 0, 4, 1, 5);
  const Four c = CHOSEN(row[0], row[1], 2, 6, 3, 7), d = CHOSEN(row[2], row[3], 2, 6, 3, 7);
  const Four column[] = {CHOSEN(a, b, 0, 1, 4, 5), CHOSEN(a, b, 2, 3, 6, 7), CHOSEN(c, d, 0, 1, 4, 5),
                         CHOSEN(c, d, 2, 3, 6, 7)};
  for (int i = 0; i < 4; i++) *reinterpret_cast<Four*>(to + i * wide_to) = column[i];
}

// (t, wide_d) to (d, wide_t), with zeros behind t. wide_d and wide_t are multiples of 4.
void flip(const Layout& layout, const float* from, float* to) {
  const int64_t d = layout.g.d, t = layout.t, wide_t = layout.wide_t, wide_d = layout.wide_d;
  const int64_t whole_t = t / 4 * 4, whole_d = d / 4 * 4;
  for (int64_t j = 0; j < whole_t; j += 4)
    for (int64_t c = 0; c < whole_d; c += 4) flip_four(from + j * wide_d + c, wide_d, to + c * wide_t + j, wide_t);
  for (int64_t c = 0; c < d; c++) {
    for (int64_t j = c < whole_d ? whole_t : 0; j < t; j++) to[c * wide_t + j] = from[j * wide_d + c];
    for (int64_t j = t; j < wide_t; j++) to[c * wide_t + j] = 0.0f;
  }
}

// Scores to e^(score - max), in place, and one over the sum of each row.
void softmax(const Layout& layout, const Window& window, const float* bias, int64_t first, int64_t rows, float* scores,
             float* inverse) {
  const int64_t wide = layout.wide_t;
  for (int64_t i = 0; i < rows; i++) {
    float* row = scores + i * wide;
    const float* bias_row = bias + (first + i) * wide;
    const float* mask_row = window.mask + window.region[first + i] * wide;
    Vector top = all(-INFINITY);
    for (int64_t j = 0; j < wide; j += W) {
      Vector x = at(row + j) + at(bias_row + j);
      if (window.masked) x += at(mask_row + j);
      at(row + j) = x;
      top = choose(x > top, x, top);
    }
    const Vector highest = all(max_of(top));
    Vector sum = Vector{};
    for (int64_t j = 0; j < wide; j += W) {
      const Vector p = exponential(at(row + j) - highest);
      at(row + j) = p;
      sum += p;
    }
    inverse[i] = 1.0f / sum_of(sum);
  }
}

// Gradients of probabilities to gradients of scores, in place; also added to `to_bias`. Scales the probabilities.
void softmax_backward(const Layout& layout, int64_t first, int64_t rows, const float* inverse, float* probabilities,
                      float* gradients, float* to_bias) {
  const int64_t wide = layout.wide_t;
  for (int64_t i = 0; i < rows; i++) {
    float* p = probabilities + i * wide;
    float* g = gradients + i * wide;
    float* sums = to_bias + (first + i) * wide;
    Vector dot = Vector{};
    for (int64_t j = 0; j < wide; j += W) {
      at(p + j) *= all(inverse[i]);
      dot += at(p + j) * at(g + j);
    }
    const Vector mean = all(sum_of(dot));
    for (int64_t j = 0; j < wide; j += W) {
      const Vector x = at(p + j) * (at(g + j) - mean);
      at(g + j) = x;
      at(sums + j) += x;
    }
  }
}

// Visit the windows and heads of a part.
template <typename Visit>
void each_window(const Layout& layout, int64_t part, float* memory, Visit visit) {
  Window window(layout, memory);
  const int64_t windows = layout.down * layout.right;
  for (int64_t unit = layout.first_unit(part); unit < layout.first_unit(part + 1); unit++) {
    const int64_t block = layout.block_of(unit), image = unit / windows % layout.g.batch, n = unit % windows;
    window.set(layout, image, n / layout.right, n % layout.right);
    for (int64_t head = layout.first_head(block); head < layout.first_head(block + 1); head++) visit(window, head);
  }
}

template <typename T>
void forward_part(const Call<T>& call, int64_t part) {
  const Layout& layout = call.layout;
  const int64_t d = layout.g.d, heads = layout.g.heads, wide_t = layout.wide_t, wide_d = layout.wide_d;
  float* q = call.scratch(part, false);
  float* k = q + layout.matrix();  // and then the result
  float* v = k + layout.matrix();
  float* flat_k = v + layout.matrix();
  float* scores = flat_k + layout.flipped();
  float* stretch = scores + layout.scores();
  float* of_window = stretch + rounded(layout.t, ALIGNED);
  float inverse[ROWS];
  const float scale = call.cosine ? 1.0f : 1.0f / std::sqrt(static_cast<float>(d));
  each_window(layout, part, of_window, [&](const Window& window, int64_t head) {
    gather(layout, window, call.qkv, call.fill, 0, 3, head, scale, q);
    gather(layout, window, call.qkv, call.fill, 1, 3, head, 1.0f, k);
    if (call.cosine) {
      stretch_rows(layout, call.cosine[head], q, stretch);
      stretch_rows(layout, 1.0f, k, stretch);
    }
    gather(layout, window, call.qkv, call.fill, 2, 3, head, 1.0f, v);
    flip(layout, k, flat_k);
    for (int64_t first = 0; first < layout.t; first += layout.rows) {
      const int64_t rows = smaller(layout.rows, layout.t - first);
      product<false>(rows, wide_t, d, q + first * wide_d, wide_d, 1, flat_k, wide_t, scores, wide_t);
      softmax(layout, window, call.biases + head * layout.bias(), first, rows, scores, inverse);
      product<false>(rows, wide_d, layout.t, scores, wide_t, 1, v, wide_d, k, wide_d);
      for (int64_t i = 0; i < rows; i++) {
        if (window.place[first + i] < 0) continue;
        T* row = call.out + (window.place[first + i] * heads + head) * d;
        scaled(inverse[i], k + i * wide_d, d, row);
      }
    }
  });
}

template <typename T>
void backward_part(const Call<T>& call, int64_t part) {
  const Layout& layout = call.layout;
  const int64_t d = layout.g.d, t = layout.t, wide_t = layout.wide_t, wide_d = layout.wide_d;
  float* q = call.scratch(part, true);
  float* k = q + layout.matrix();
  float* v = k + layout.matrix();  // and then gradients of q
  float* upstream = v + layout.matrix();
  float* to_k = upstream + layout.matrix();
  float* to_v = to_k + layout.matrix();
  float* flat_k = to_v + layout.matrix();
  float* flat_v = flat_k + layout.flipped();
  float* scores = flat_v + layout.flipped();
  float* gradients = scores + layout.scores();
  float* stretch_q = gradients + layout.scores();
  float* stretch_k = stretch_q + rounded(t, ALIGNED);
  float* of_window = stretch_k + rounded(t, ALIGNED);
  float* to_biases = call.gradients(part);
  float* to_fill = to_biases + layout.most_heads * layout.bias();
  float* to_cosine = to_fill + 3 * layout.g.heads * d;
  std::memset(to_biases, 0, layout.gradients() * sizeof(float));
  float inverse[ROWS];
  const int64_t from_head = layout.from_head(part);
  const float scale = call.cosine ? 1.0f : 1.0f / std::sqrt(static_cast<float>(d));
  each_window(layout, part, of_window, [&](const Window& window, int64_t head) {
    gather(layout, window, call.qkv, call.fill, 0, 3, head, scale, q);
    gather(layout, window, call.qkv, call.fill, 1, 3, head, 1.0f, k);
    gather(layout, window, call.qkv, call.fill, 2, 3, head, 1.0f, v);
    if (call.cosine) {
      stretch_rows(layout, call.cosine[head], q, stretch_q);
      stretch_rows(layout, 1.0f, k, stretch_k);
    }
    gather(layout, window, call.upstream, static_cast<const float*>(nullptr), 0, 1, head, 1.0f, upstream);
    flip(layout, k, flat_k);
    flip(layout, v, flat_v);
    float* to_bias = to_biases + (head - from_head) * layout.bias();
    for (int64_t first = 0; first < t; first += layout.rows) {
      const int64_t rows = smaller(layout.rows, t - first);
      const float *q_rows = q + first * wide_d, *upstream_rows = upstream + first * wide_d;
      product<false>(rows, wide_t, d, q_rows, wide_d, 1, flat_k, wide_t, scores, wide_t);
      softmax(layout, window, call.biases + head * layout.bias(), first, rows, scores, inverse);
      product<false>(rows, wide_t, d, upstream_rows, wide_d, 1, flat_v, wide_t, gradients, wide_t);
      softmax_backward(layout, first, rows, inverse, scores, gradients, to_bias);
      const auto add = first ? product<true> : product<false>;
      add(t, wide_d, rows, scores, 1, wide_t, upstream_rows, wide_d, to_v, wide_d);
      add(t, wide_d, rows, gradients, 1, wide_t, q_rows, wide_d, to_k, wide_d);
      product<false>(rows, wide_d, t, gradients, wide_t, 1, k, wide_d, v, wide_d);
      if (call.cosine)
        to_cosine[head] += stretch_backward(layout, call.cosine[head], q_rows, stretch_q + first, rows, v);
      scatter(call, window, v, first, rows, 0, head, scale, to_fill);
    }
    if (call.cosine) stretch_backward(layout, 1.0f, k, stretch_k, t, to_k);
    scatter(call, window, to_k, 0, t, 1, head, 1.0f, to_fill);
    scatter(call, window, to_v, 0, t, 2, head, 1.0f, to_fill);
  });
}

// Sum what the parts found for each head, in the order of the parts.
template <typename T>
void collect(int64_t begin, int64_t end, void* context) {
  const Call<T>& call = *static_cast<Call<T>*>(context);
  const Layout& layout = call.layout;
  const int64_t heads = layout.g.heads, d = layout.g.d, behind_biases = layout.most_heads * layout.bias();
  const int64_t entries = (2 * layout.g.table_h - 1) * (2 * layout.g.table_w - 1);
  for (int64_t head = begin; head < end; head++) {
    float* sums = call.biases + head * layout.bias();  // the bias itself is no longer needed
    std::memset(sums, 0, layout.bias() * sizeof(float));
    for (int64_t part = 0; part < layout.parts; part++) {
      if (head < layout.from_head(part) || head >= layout.to_head(part)) continue;
      const float* found = call.gradients(part) + (head - layout.from_head(part)) * layout.bias();
      for (int64_t i = 0; i < layout.bias(); i += W) at(sums + i) += at(found + i);
    }
    for (int64_t entry = 0; entry < entries; entry++) call.to_table[entry * heads + head] = 0.0f;
    for (int64_t i = 0; i < layout.t; i++)
      for (int64_t j = 0; j < layout.t; j++)
        call.to_table[table_row(layout.g, i, j) * heads + head] += sums[i * layout.wide_t + j];
    for (int64_t which = 0; which < 3; which++)
      for (int64_t c = (which * heads + head) * d; c < (which * heads + head + 1) * d; c++) {
        float sum = 0.0f;
        for (int64_t part = 0; part < layout.parts; part++) sum += call.gradients(part)[behind_biases + c];
        call.to_fill[c] = sum;
      }
    if (!call.cosine) continue;
    call.to_cosine[head] = 0.0f;
    for (int64_t part = 0; part < layout.parts; part++)
      call.to_cosine[head] += call.gradients(part)[behind_biases + 3 * heads * d + head] / call.cosine[head];
  }
}

template <typename T>
void forward_parts(int64_t begin, int64_t end, void* context) {
  for (int64_t part = begin; part < end; part++) forward_part(*static_cast<Call<T>*>(context), part);
}

template <typename T>
void backward_parts(int64_t begin, int64_t end, void* context) {
  for (int64_t part = begin; part < end; part++) backward_part(*static_cast<Call<T>*>(context), part);
}

template <typename T>
int32_t forward(const Layout& layout, const void* qkv, const float* table, const float* fill, const float* cosine,
                void* out, float* workspace, ParallelFor parallel_for) {
  Call<T> call{layout, static_cast<const T*>(qkv), table, fill, cosine, workspace};
  call.out = static_cast<T*>(out);
  const int32_t failed = parallel_for(0, layout.g.heads, 1, spread_biases<T>, &call);
  return failed ? failed : parallel_for(0, layout.parts, 1, forward_parts<T>, &call);
}

template <typename T>
int32_t backward(const Layout& layout, const void* upstream, const void* qkv, const float* table, const float* fill,
                 const float* cosine, void* to_qkv, float* to_table, float* to_fill, float* to_cosine, float* workspace,
                 ParallelFor parallel_for) {
  Call<T> call{layout, static_cast<const T*>(qkv), table, fill, cosine, workspace};
  call.upstream = static_cast<const T*>(upstream), call.to_qkv = static_cast<T*>(to_qkv);
  call.to_table = to_table, call.to_fill = to_fill, call.to_cosine = to_cosine;
  int32_t failed = parallel_for(0, layout.g.heads, 1, spread_biases<T>, &call);
  if (!failed) failed = parallel_for(0, layout.parts, 1, backward_parts<T>, &call);
  return failed ? failed : parallel_for(0, layout.g.heads, 1, collect<T>, &call);
}

}  // namespace

// What attention.py calls. `bf16`: qkv, out and their gradients are bf16 and not fp32. `parallel_for` is torch's loop
// over its own threads; what it returns, 0 if all is well, the functions return.

extern "C" int64_t swin_mim_attention_workspace(const Geometry* geometry, int64_t parts, int32_t backward) {
  const Layout layout(*geometry, parts);
  return layout.all_biases() + parts * layout.of_part(backward);
}

extern "C" int32_t swin_mim_attention(const Geometry* geometry, int64_t parts, int32_t bf16, const void* qkv,
                                      const float* table, const float* fill, const float* cosine, void* out,
                                      float* workspace, ParallelFor parallel_for) {
  const auto run = bf16 ? forward<BFloat16> : forward<float>;
  return run(Layout(*geometry, parts), qkv, table, fill, cosine, out, workspace, parallel_for);
}

extern "C" int32_t swin_mim_attention_backward(const Geometry* geometry, int64_t parts, int32_t bf16,
                                               const void* upstream, const void* qkv, const float* table,
                                               const float* fill, const float* cosine, void* to_qkv, float* to_table,
                                               float* to_fill, float* to_cosine, float* workspace,
                                               ParallelFor parallel_for) {
  const auto run = bf16 ? backward<BFloat16> : backward<float>;
  return run(Layout(*geometry, parts), upstream, qkv, table, fill, cosine, to_qkv, to_table, to_fill, to_cosine,
             workspace, parallel_for);
}
