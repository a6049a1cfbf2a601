// Convolutions of 3x3 by Winograd's algorithm F(4x4, 3x3): 36 products for 16 numbers of the result, in place of 144.
// See winograd.py for the formulas.
//
// Maps are channels-last: [images, height, width, channels]. Channels come in whole vectors, and each lane is a
// channel. A result is cut into tiles of 4x4. Of each tile the 36 numbers, its places, lie apart:
// [place][tile][channel], so that what couples the channels is a product of matrices per place. No sum depends on the
// number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "product.h"

namespace {

constexpr int SIDE = 4, SPREAD = 6, PLACES = 36, KERNEL = 3;
// Tiles that a thread computes together at most, so that they stay in its cache; and of a part of a sum over tiles.
constexpr int64_t TOGETHER = 24, SUMMED = 48;
// Numbers between the places, so that they do not all fall on the same lines of the cache.
constexpr int64_t GAP = 16;
// Products per place from which on several threads are worth waking up.
constexpr int64_t GRAIN = 1 << 16;

// The matrices of the algorithm for the points 0, +-p, +-q and infinity, each as a function of one row or column whose
// numbers lie `step` apart. 1/p = q = sqrt 2 keep rounding half as large as the usual 1 and 2.
template <typename A> struct Winograd {
    using V = Vector<A>;
    static constexpr A p = A(0.70710678118654752440), q = A(1.41421356237309504880), pp = A(0.5), qq = A(2);
    static constexpr A of_0 = 1 / (pp * qq), of_p = 1 / (2 * pp * (pp - qq)), of_q = 1 / (2 * qq * (qq - pp));

    // B^T: 6 numbers of a map to 6 places.
    static void map(const V *x, int step, V *to) {
        const V x1 = x[step], x2 = x[2 * step], x3 = x[3 * step], x4 = x[4 * step];
        const V even_p = x4 - qq * x2, odd_p = p * (x3 - qq * x1), even_q = x4 - pp * x2, odd_q = q * (x3 - pp * x1);
        to[0] = x4 - (pp + qq) * x2 + (pp * qq) * x[0];
        to[1] = even_p + odd_p;
        to[2] = even_p - odd_p;
        to[3] = even_q + odd_q;
        to[4] = even_q - odd_q;
        to[5] = x[5 * step] - (pp + qq) * x3 + (pp * qq) * x1;
    }
    // G: 3 numbers of a kernel to 6 places.
    static void kernel(const V *w, int step, V *to) {
        const V even_p = of_p * (w[0] + pp * w[2 * step]), odd_p = (of_p * p) * w[step];
        const V even_q = of_q * (w[0] + qq * w[2 * step]), odd_q = (of_q * q) * w[step];
        to[0] = of_0 * w[0];
        to[1] = even_p + odd_p;
        to[2] = even_p - odd_p;
        to[3] = even_q + odd_q;
        to[4] = even_q - odd_q;
        to[5] = w[2 * step];
    }
    // A^T: 6 places to 4 numbers of the result.
    static void result(const V *m, int step, V *to) {
        const V sum_p = m[step] + m[2 * step], difference_p = p * (m[step] - m[2 * step]);
        const V sum_q = m[3 * step] + m[4 * step], difference_q = q * (m[3 * step] - m[4 * step]);
        to[0] = m[0] + sum_p + sum_q;
        to[1] = difference_p + difference_q;
        to[2] = pp * sum_p + qq * sum_q;
        to[3] = pp * difference_p + qq * difference_q + m[5 * step];
    }
    // A: slopes of 4 numbers of the result to 6 places.
    static void slope(const V *g, int step, V *to) {
        const V even_p = g[0] + pp * g[2 * step], odd_p = p * (g[step] + pp * g[3 * step]);
        const V even_q = g[0] + qq * g[2 * step], odd_q = q * (g[step] + qq * g[3 * step]);
        to[0] = g[0];
        to[1] = even_p + odd_p;
        to[2] = even_p - odd_p;
        to[3] = even_q + odd_q;
        to[4] = even_q - odd_q;
        to[5] = g[3 * step];
    }
    // G^T: 6 places to slopes of 3 numbers of the kernel.
    static void kernel_slope(const V *m, int step, V *to) {
        const V sum_p = of_p * (m[step] + m[2 * step]), sum_q = of_q * (m[3 * step] + m[4 * step]);
        to[0] = of_0 * m[0] + sum_p + sum_q;
        to[1] = (of_p * p) * (m[step] - m[2 * step]) + (of_q * q) * (m[3 * step] - m[4 * step]);
        to[2] = pp * sum_p + qq * sum_q + m[5 * step];
    }

    // Applies a function to the rows of a square of FROM x FROM, then to the columns, and gives the result to `write`.
    template <int FROM, int TO, typename Write>
    static void both(void (*one)(const V *, int, V *), const V *x, Write write) {
        V rows[FROM * TO], column[TO];
        for (int i = 0; i < FROM; ++i) one(x + i * FROM, 1, rows + i * TO);
        for (int j = 0; j < TO; ++j) {
            one(rows + j, TO, column);
            for (int i = 0; i < TO; ++i) write(i, j, column[i]);
        }
    }
};

// A map and the tiles of a result. The first number that counts for a tile is `before` rows and columns from its own.
struct Tiles {
    int64_t height, width, channels, rows, columns, before_rows, before_columns;

    struct Place {
        int64_t image, row, column;
    };
    Place place(int64_t tile) const {
        const int64_t of_image = rows * columns;
        return {tile / of_image, tile % of_image / columns * SIDE, tile % columns * SIDE};
    }
};

// The square of COUNT x COUNT that counts for a tile, of one vector of channels; outside of the map are zeros.
template <int COUNT, typename A, typename T>
inline void read(const Tiles &tiles, int64_t tile, int64_t channel, const T *map, Vector<A> *square) {
    const Tiles::Place place = tiles.place(tile);
    const T *image = map + place.image * tiles.height * tiles.width * tiles.channels + channel;
    for (int i = 0; i < COUNT; ++i)
        for (int j = 0; j < COUNT; ++j) {
            const int64_t row = place.row - tiles.before_rows + i, column = place.column - tiles.before_columns + j;
            const bool inside = row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
            square[i * COUNT + j] =
                inside ? load_vector(image + (row * tiles.width + column) * tiles.channels) : Vector<A>{};
        }
}

// A matrix of `rows` by `columns` is kept in panels, up to PANEL columns wide, each [rows][its columns].
template <typename A> struct Panels {
    int64_t rows, columns;

    int64_t count() const { return (columns + Vectors<A>::PANEL - 1) / Vectors<A>::PANEL; }
    int64_t width(int64_t column) const {
        return std::min<int64_t>(Vectors<A>::PANEL, columns - column / Vectors<A>::PANEL * Vectors<A>::PANEL);
    }
    int64_t at(int64_t row, int64_t column) const {
        const int64_t first = column / Vectors<A>::PANEL * Vectors<A>::PANEL;
        return first * rows + row * width(column) + column - first;
    }
};

// A kernel to its 36 places, each a matrix of `in` by `out` channels in panels. Steps are those between its numbers.
template <typename T>
void transform(int64_t in, int64_t out, int64_t in_step, int64_t out_step, int64_t row_step, int64_t column_step,
               const T *weight, typename Sum<T>::type *places) {
    using A = typename Sum<T>::type;
    constexpr int LANES = Vectors<A>::LANES;
    const Panels<A> panels{in, out};
    const bool large = in * out * PLACES > GRAIN;
#pragma omp parallel for schedule(static) if (large)
    for (int64_t first = 0; first < out; first += LANES)
        for (int64_t channel = 0; channel < in; ++channel) {
            Vector<A> square[KERNEL * KERNEL];
            for (int k = 0; k < KERNEL * KERNEL; ++k) {
                const T *from = weight + channel * in_step + first * out_step;
                from += k / KERNEL * row_step + k % KERNEL * column_step;
                if (out_step == 1)
                    square[k] = load_vector(from);
                else
                    for (int lane = 0; lane < LANES; ++lane) square[k][lane] = load(from + lane * out_step);
            }
            A *to = places + panels.at(channel, first);
            Winograd<A>::template both<KERNEL, SPREAD>(Winograd<A>::kernel, square, [&](int i, int j, Vector<A> value) {
                store_vector(to + (i * SPREAD + j) * (in * out + GAP), value);
            });
        }
}

// The result of a convolution, or what is added to it. `scratch` holds, for each thread, the places of TOGETHER tiles.
template <typename T>
void convolve(int64_t images, const Tiles &from, int64_t height, int64_t width, int64_t out, const T *map,
              const typename Sum<T>::type *places, T *result, typename Sum<T>::type *scratch, int64_t threads) {
    using A = typename Sum<T>::type;
    constexpr int LANES = Vectors<A>::LANES;
    const int64_t in = from.channels, tiles = images * from.rows * from.columns;
    const int64_t share = (tiles + threads - 1) / threads;
    const int64_t together = std::min(TOGETHER, (share + ROWS - 1) / ROWS * ROWS);
    const int64_t chunks = (tiles + together - 1) / together;
    const int64_t of_map = TOGETHER * in + GAP, of_result = TOGETHER * out + GAP;
    const Panels<A> panels{in, out};
#pragma omp parallel num_threads(static_cast<int>(threads)) if (tiles * in * out > GRAIN)
    {
        A *own = scratch + omp_get_thread_num() * PLACES * (of_map + of_result), *products = own + PLACES * of_map;
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t first = chunk * together, count = std::min(together, tiles - first);
            for (int64_t tile = 0; tile < count; ++tile)
                for (int64_t channel = 0; channel < in; channel += LANES) {
                    Vector<A> square[SPREAD * SPREAD];
                    read<SPREAD, A>(from, first + tile, channel, map, square);
                    A *to = own + tile * in + channel;
                    Winograd<A>::template both<SPREAD, SPREAD>(
                        Winograd<A>::map, square,
                        [&](int i, int j, Vector<A> value) { store_vector(to + (i * SPREAD + j) * of_map, value); });
                }
            for (int64_t k = 0; k < PLACES; ++k)
                for (int64_t channel = 0; channel < out; channel += Vectors<A>::PANEL) {
                    const int64_t panel = panels.width(channel);
                    multiply(count, in, panel, own + k * of_map, in, 1,
                             places + k * (in * out + GAP) + panels.at(0, channel), panel,
                             products + k * of_result + channel, out, false);
                }
            for (int64_t tile = 0; tile < count; ++tile) {
                const Tiles::Place place = from.place(first + tile);
                for (int64_t channel = 0; channel < out; channel += LANES) {
                    Vector<A> square[SPREAD * SPREAD];
                    const A *at = products + tile * out + channel;
                    for (int k = 0; k < PLACES; ++k) square[k] = load_vector(at + k * of_result);
                    T *to = result + place.image * height * width * out + channel;
                    Winograd<A>::template both<SPREAD, SIDE>(
                        Winograd<A>::result, square, [&](int i, int j, Vector<A> value) {
                            const int64_t row = place.row + i, column = place.column + j;
                            if (row < height && column < width) store_vector(to + (row * width + column) * out, value);
                        });
                }
            }
        }
    }
}

// The slope of a kernel [out][3][3][in] from that of the result. `scratch` holds the places of the kernel, and those of
// SUMMED tiles of the map and of the slope.
template <typename T>
void kernel_slope(int64_t images, const Tiles &from, const Tiles &to, const T *map, const T *slope, T *weight,
                  typename Sum<T>::type *scratch, int64_t threads) {
    using A = typename Sum<T>::type;
    constexpr int LANES = Vectors<A>::LANES;
    const int64_t in = from.channels, out = to.channels, tiles = images * from.rows * from.columns;
    const int64_t of_map = SUMMED * in + GAP, row = out + GAP, of_slope = SUMMED * row, of_kernel = in * out + GAP;
    A *sums = scratch, *maps = sums + PLACES * of_kernel, *slopes = maps + PLACES * of_map;
#pragma omp parallel num_threads(static_cast<int>(threads)) if (tiles * in * out > GRAIN)
    {
        for (int64_t first = 0; first < tiles; first += SUMMED) {
            const int64_t count = std::min(SUMMED, tiles - first);
            const Panels<A> panels{count, in};
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < count; ++tile) {
                for (int64_t channel = 0; channel < in; channel += LANES) {
                    Vector<A> square[SPREAD * SPREAD];
                    read<SPREAD, A>(from, first + tile, channel, map, square);
                    A *at = maps + panels.at(tile, channel);
                    Winograd<A>::template both<SPREAD, SPREAD>(
                        Winograd<A>::map, square,
                        [&](int i, int j, Vector<A> value) { store_vector(at + (i * SPREAD + j) * of_map, value); });
                }
                for (int64_t channel = 0; channel < out; channel += LANES) {
                    Vector<A> square[SIDE * SIDE];
                    read<SIDE, A>(to, first + tile, channel, slope, square);
                    A *at = slopes + tile * row + channel;
                    Winograd<A>::template both<SIDE, SPREAD>(
                        Winograd<A>::slope, square,
                        [&](int i, int j, Vector<A> value) { store_vector(at + (i * SPREAD + j) * of_slope, value); });
                }
            }
#pragma omp for schedule(static)
            for (int64_t task = 0; task < PLACES * panels.count(); ++task) {
                const int64_t k = task / panels.count(), channel = task % panels.count() * Vectors<A>::PANEL;
                const int64_t width = panels.width(channel);
                multiply(out, count, width, slopes + k * of_slope, 1, row, maps + k * of_map + panels.at(0, channel),
                         width, sums + k * of_kernel + channel, in, first > 0);
            }
        }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < out; ++k)
            for (int64_t channel = 0; channel < in; channel += LANES) {
                Vector<A> square[SPREAD * SPREAD];
                const A *at = sums + k * in + channel;
                for (int place = 0; place < PLACES; ++place) square[place] = load_vector(at + place * of_kernel);
                T *own = weight + k * KERNEL * KERNEL * in + channel;
                Winograd<A>::template both<SPREAD, KERNEL>(
                    Winograd<A>::kernel_slope, square,
                    [&](int i, int j, Vector<A> value) { store_vector(own + (i * KERNEL + j) * in, value); });
            }
    }
}

}  // namespace

#define MAPS                                                                                   \
    int64_t images, int64_t height, int64_t width, int64_t in, int64_t out, int64_t padding_rows, \
        int64_t padding_columns
#define RESULT                                                                                           \
    const int64_t to_height = height + 2 * padding_rows - 2, to_width = width + 2 * padding_columns - 2; \
    const int64_t rows = (to_height + SIDE - 1) / SIDE, columns = (to_width + SIDE - 1) / SIDE;          \
    const Tiles from{height, width, in, rows, columns, padding_rows, padding_columns};

#define EXPORT(NAME, T)                                                                                              \
    extern "C" void winograd_transform_##NAME(int64_t in, int64_t out, int64_t in_step, int64_t out_step,            \
                                              int64_t row_step, int64_t column_step, const T *weight,                \
                                              Sum<T>::type *places) {                                                \
        transform<T>(in, out, in_step, out_step, row_step, column_step, weight, places);                             \
    }                                                                                                                \
    /* Numbers of `places`, and of `scratch`. */                                                                      \
    extern "C" int64_t winograd_transform_size_##NAME(int64_t in, int64_t out) { return PLACES * (in * out + GAP); } \
    extern "C" int64_t winograd_convolve_scratch_##NAME(int64_t in, int64_t out, int64_t threads) {                  \
        return threads * PLACES * (TOGETHER * (in + out) + 2 * GAP);                                                 \
    }                                                                                                                \
    extern "C" int64_t winograd_kernel_slope_scratch_##NAME(int64_t in, int64_t out) {                               \
        return PLACES * (in * out + GAP + SUMMED * in + GAP + SUMMED * (out + GAP));                                 \
    }                                                                                                                \
    extern "C" void winograd_convolve_##NAME(MAPS, const T *map, const Sum<T>::type *places, T *result,              \
                                             Sum<T>::type *scratch, int64_t threads) {                               \
        RESULT                                                                                                       \
        convolve<T>(images, from, to_height, to_width, out, map, places, result, scratch, threads);                  \
    }                                                                                                                \
    extern "C" void winograd_kernel_slope_##NAME(MAPS, const T *map, const T *slope, T *weight,                      \
                                                 Sum<T>::type *scratch, int64_t threads) {                           \
        RESULT                                                                                                       \
        const Tiles to{to_height, to_width, out, rows, columns, 0, 0};                                               \
        kernel_slope<T>(images, from, to, map, slope, weight, scratch, threads);                                     \
    }

EXPORT(float32, float)
EXPORT(float64, double)
EXPORT(bfloat16, bfloat16)
