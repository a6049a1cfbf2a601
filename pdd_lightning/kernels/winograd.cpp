// Convolutions of 3x3 by Winograd's algorithm F(4x4, 3x3): 36 products for 16 numbers of the result instead of
// 144. See convolution.py for the formulas.
//
// Maps are channels-last: [images, height, width, channels]. Channels are processed in whole vectors, one channel per
// lane. A result is divided into tiles of 4x4. Transformed tiles are stored as [element][tile][channel], so that the
// sum over channels is a matrix product per element. No sum depends on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>

#include "product.h"

namespace {

constexpr int SIDE = 4, SPREAD = 6, ELEMENTS = 36, KERNEL = 3;
// Maximum number of tiles that a thread computes together, in its cache; and of a partial sum over tiles.
constexpr int64_t TOGETHER = 24, SUMMED = 48;
// Padding between the elements, which avoids conflicts in the cache.
constexpr int64_t GAP = 16;
// Smallest number of products per element for several threads.
constexpr int64_t GRAIN = 1 << 16;

// The matrices of the algorithm for the points 0, +-p, +-q and infinity, each as a function of one row or column with
// stride `step`. The rounding error with 1/p = q = sqrt 2 is half that of the usual 1 and 2.
template <typename T> struct Winograd {
    using V = Vector<T>;
    static constexpr T p = T(0.70710678118654752440), q = T(1.41421356237309504880), pp = T(0.5), qq = T(2);
    static constexpr T of_0 = 1 / (pp * qq), of_p = 1 / (2 * pp * (pp - qq)), of_q = 1 / (2 * qq * (qq - pp));

    // B^T: 6 numbers of a map to 6 elements.
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
    // G: 3 numbers of a kernel to 6 elements.
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
    // A^T: 6 elements to 4 numbers of the result.
    static void result(const V *m, int step, V *to) {
        const V sum_p = m[step] + m[2 * step], difference_p = p * (m[step] - m[2 * step]);
        const V sum_q = m[3 * step] + m[4 * step], difference_q = q * (m[3 * step] - m[4 * step]);
        to[0] = m[0] + sum_p + sum_q;
        to[1] = difference_p + difference_q;
        to[2] = pp * sum_p + qq * sum_q;
        to[3] = pp * difference_p + qq * difference_q + m[5 * step];
    }
    // A: gradients of 4 numbers of the result to 6 elements.
    static void gradient(const V *g, int step, V *to) {
        const V even_p = g[0] + pp * g[2 * step], odd_p = p * (g[step] + pp * g[3 * step]);
        const V even_q = g[0] + qq * g[2 * step], odd_q = q * (g[step] + qq * g[3 * step]);
        to[0] = g[0];
        to[1] = even_p + odd_p;
        to[2] = even_p - odd_p;
        to[3] = even_q + odd_q;
        to[4] = even_q - odd_q;
        to[5] = g[3 * step];
    }
    // G^T: 6 elements to gradients of 3 numbers of the kernel.
    static void kernel_gradient(const V *m, int step, V *to) {
        const V sum_p = of_p * (m[step] + m[2 * step]), sum_q = of_q * (m[3 * step] + m[4 * step]);
        to[0] = of_0 * m[0] + sum_p + sum_q;
        to[1] = (of_p * p) * (m[step] - m[2 * step]) + (of_q * q) * (m[3 * step] - m[4 * step]);
        to[2] = pp * sum_p + qq * sum_q + m[5 * step];
    }

    // Apply a function to the rows of a FROM x FROM square, then to the columns, and pass the result to `write`.
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

// A map and the tiles of a result. The input of a tile begins `before` rows and columns before the tile.
struct Tiles {
    int64_t height, width, channels, rows, columns, before_rows, before_columns;

    struct Position {
        int64_t image, row, column;
    };
    Position position(int64_t tile) const {
        const int64_t of_image = rows * columns;
        return {tile / of_image, tile % of_image / columns * SIDE, tile % columns * SIDE};
    }
};

inline Tiles tiles_of_map(const Sizes &s) {
    const int64_t rows = (s.to_height() + SIDE - 1) / SIDE, columns = (s.to_width() + SIDE - 1) / SIDE;
    return {s.height, s.width, s.channels, rows, columns, s.padding_rows, s.padding_columns};
}

// The COUNT x COUNT input of a tile, for one vector of channels; zero outside of the map.
template <int COUNT, typename T>
inline void read(const Tiles &tiles, int64_t tile, int64_t channel, const T *map, Vector<T> *square) {
    const Tiles::Position position = tiles.position(tile);
    const T *image = map + position.image * tiles.height * tiles.width * tiles.channels + channel;
    for (int i = 0; i < COUNT; ++i)
        for (int j = 0; j < COUNT; ++j) {
            const int64_t row = position.row + i - tiles.before_rows;
            const int64_t column = position.column + j - tiles.before_columns;
            const bool inside = row >= 0 && row < tiles.height && column >= 0 && column < tiles.width;
            square[i * COUNT + j] =
                inside ? load_vector(image + (row * tiles.width + column) * tiles.channels) : Vector<T>{};
        }
}

// A matrix of `rows` by `columns` is stored in panels of up to PANEL columns, each as [row][column].
template <typename T> struct Panels {
    int64_t rows, columns;

    int64_t count() const { return (columns + Vectors<T>::PANEL - 1) / Vectors<T>::PANEL; }
    int64_t width(int64_t column) const {
        return std::min<int64_t>(Vectors<T>::PANEL, columns - column / Vectors<T>::PANEL * Vectors<T>::PANEL);
    }
    int64_t at(int64_t row, int64_t column) const {
        const int64_t first = column / Vectors<T>::PANEL * Vectors<T>::PANEL;
        return first * rows + row * width(column) + column - first;
    }
};

// Input and output channels of a kernel, and its strides.
struct Steps {
    int64_t in, out, in_step, out_step, row_step, column_step;
};

// Transform a kernel to its 36 elements, each a matrix of `in` by `out` channels in panels.
template <typename T> void winograd_transform(const Steps &steps, const T *weight, T *elements) {
    constexpr int LANES = Vectors<T>::LANES;
    const int64_t in = steps.in, out = steps.out, out_step = steps.out_step;
    const Panels<T> panels{in, out};
    const bool large = in * out * ELEMENTS > GRAIN;
#pragma omp parallel for schedule(static) if (large)
    for (int64_t first = 0; first < out; first += LANES)
        for (int64_t channel = 0; channel < in; ++channel) {
            Vector<T> square[KERNEL * KERNEL];
            for (int k = 0; k < KERNEL * KERNEL; ++k) {
                const T *from = weight + channel * steps.in_step + first * out_step;
                from += k / KERNEL * steps.row_step + k % KERNEL * steps.column_step;
                if (out_step == 1)
                    square[k] = load_vector(from);
                else
                    for (int lane = 0; lane < LANES; ++lane) square[k][lane] = from[lane * out_step];
            }
            T *to = elements + panels.at(channel, first);
            Winograd<T>::template both<KERNEL, SPREAD>(Winograd<T>::kernel, square, [&](int i, int j, Vector<T> value) {
                store_vector(to + (i * SPREAD + j) * (in * out + GAP), value);
            });
        }
}

// Length of the elements of a kernel.
template <typename T> int64_t winograd_transform_size(const Sizes &s) {
    return ELEMENTS * (s.channels * s.outputs + GAP);
}
// Length of a thread's scratch.
template <typename T> int64_t winograd_convolve_scratch(const Sizes &s) {
    return ELEMENTS * (TOGETHER * (s.channels + s.outputs) + 2 * GAP);
}
// Length of the scratch of all threads.
template <typename T> int64_t winograd_kernel_gradient_scratch(const Sizes &s) {
    return ELEMENTS * (s.channels * s.outputs + GAP + SUMMED * s.channels + GAP + SUMMED * (s.outputs + GAP));
}

// The result of a convolution. `scratch` holds, for each thread, the elements of TOGETHER tiles.
template <typename T>
void winograd_convolve(const Sizes &s, const T *map, const T *elements, T *result, T *scratch, int64_t threads) {
    constexpr int LANES = Vectors<T>::LANES;
    const Tiles from = tiles_of_map(s);
    const int64_t in = s.channels, out = s.outputs, height = s.to_height(), width = s.to_width();
    const int64_t tiles = s.images * from.rows * from.columns;
    const int64_t share = (tiles + threads - 1) / threads;
    const int64_t together = std::min(TOGETHER, (share + ROWS - 1) / ROWS * ROWS);
    const int64_t chunks = (tiles + together - 1) / together;
    const int64_t of_map = TOGETHER * in + GAP, of_result = TOGETHER * out + GAP;
    const Panels<T> panels{in, out};
#pragma omp parallel num_threads(static_cast<int>(threads)) if (tiles * in * out > GRAIN)
    {
        T *own = scratch + omp_get_thread_num() * ELEMENTS * (of_map + of_result), *products = own + ELEMENTS * of_map;
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < chunks; ++chunk) {
            const int64_t first = chunk * together, count = std::min(together, tiles - first);
            for (int64_t tile = 0; tile < count; ++tile)
                for (int64_t channel = 0; channel < in; channel += LANES) {
                    Vector<T> square[SPREAD * SPREAD];
                    read<SPREAD, T>(from, first + tile, channel, map, square);
                    T *to = own + tile * in + channel;
                    Winograd<T>::template both<SPREAD, SPREAD>(
                        Winograd<T>::map, square,
                        [&](int i, int j, Vector<T> value) { store_vector(to + (i * SPREAD + j) * of_map, value); });
                }
            for (int64_t k = 0; k < ELEMENTS; ++k)
                for (int64_t channel = 0; channel < out; channel += Vectors<T>::PANEL) {
                    const int64_t panel = panels.width(channel);
                    multiply(count, in, panel, own + k * of_map, in, 1,
                             elements + k * (in * out + GAP) + panels.at(0, channel), panel,
                             products + k * of_result + channel, out, false);
                }
            for (int64_t tile = 0; tile < count; ++tile) {
                const Tiles::Position position = from.position(first + tile);
                for (int64_t channel = 0; channel < out; channel += LANES) {
                    Vector<T> square[SPREAD * SPREAD];
                    const T *at = products + tile * out + channel;
                    for (int k = 0; k < ELEMENTS; ++k) square[k] = load_vector(at + k * of_result);
                    T *to = result + position.image * height * width * out + channel;
                    Winograd<T>::template both<SPREAD, SIDE>(
                        Winograd<T>::result, square, [&](int i, int j, Vector<T> value) {
                            const int64_t row = position.row + i, column = position.column + j;
                            if (row < height && column < width) store_vector(to + (row * width + column) * out, value);
                        });
                }
            }
        }
    }
}

// The gradient of a kernel [out][3][3][in] from that of the result. `scratch` holds the elements of the kernel, and those
// of SUMMED tiles of the map and of the gradient.
template <typename T>
void winograd_kernel_gradient(const Sizes &s, const T *map, const T *gradient, T *weight, T *scratch, int64_t threads) {
    constexpr int LANES = Vectors<T>::LANES;
    const Tiles from = tiles_of_map(s), to{s.to_height(), s.to_width(), s.outputs, from.rows, from.columns, 0, 0};
    const int64_t in = s.channels, out = s.outputs, tiles = s.images * from.rows * from.columns;
    const int64_t of_map = SUMMED * in + GAP, row = out + GAP, of_gradient = SUMMED * row, of_kernel = in * out + GAP;
    T *sums = scratch, *maps = sums + ELEMENTS * of_kernel, *gradients = maps + ELEMENTS * of_map;
#pragma omp parallel num_threads(static_cast<int>(threads)) if (tiles * in * out > GRAIN)
    {
        for (int64_t first = 0; first < tiles; first += SUMMED) {
            const int64_t count = std::min(SUMMED, tiles - first);
            const Panels<T> panels{count, in};
#pragma omp for schedule(static)
            for (int64_t tile = 0; tile < count; ++tile) {
                for (int64_t channel = 0; channel < in; channel += LANES) {
                    Vector<T> square[SPREAD * SPREAD];
                    read<SPREAD, T>(from, first + tile, channel, map, square);
                    T *at = maps + panels.at(tile, channel);
                    Winograd<T>::template both<SPREAD, SPREAD>(
                        Winograd<T>::map, square,
                        [&](int i, int j, Vector<T> value) { store_vector(at + (i * SPREAD + j) * of_map, value); });
                }
                for (int64_t channel = 0; channel < out; channel += LANES) {
                    Vector<T> square[SIDE * SIDE];
                    read<SIDE, T>(to, first + tile, channel, gradient, square);
                    T *at = gradients + tile * row + channel;
                    Winograd<T>::template both<SIDE, SPREAD>(
                        Winograd<T>::gradient, square, [&](int i, int j, Vector<T> value) {
                            store_vector(at + (i * SPREAD + j) * of_gradient, value);
                        });
                }
            }
#pragma omp for schedule(static)
            for (int64_t task = 0; task < ELEMENTS * panels.count(); ++task) {
                const int64_t k = task / panels.count(), channel = task % panels.count() * Vectors<T>::PANEL;
                const int64_t width = panels.width(channel);
                multiply(out, count, width, gradients + k * of_gradient, 1, row,
                         maps + k * of_map + panels.at(0, channel), width, sums + k * of_kernel + channel, in,
                         first > 0);
            }
        }
#pragma omp for schedule(static)
        for (int64_t k = 0; k < out; ++k)
            for (int64_t channel = 0; channel < in; channel += LANES) {
                Vector<T> square[SPREAD * SPREAD];
                const T *at = sums + k * in + channel;
                for (int e = 0; e < ELEMENTS; ++e) square[e] = load_vector(at + e * of_kernel);
                T *own = weight + k * KERNEL * KERNEL * in + channel;
                Winograd<T>::template both<SPREAD, KERNEL>(
                    Winograd<T>::kernel_gradient, square,
                    [&](int i, int j, Vector<T> value) { store_vector(own + (i * KERNEL + j) * in, value); });
            }
    }
}

}  // namespace

EXPORT(winograd_transform)
EXPORT(winograd_transform_size)
EXPORT(winograd_convolve)
EXPORT(winograd_convolve_scratch)
EXPORT(winograd_kernel_gradient)
EXPORT(winograd_kernel_gradient_scratch)
