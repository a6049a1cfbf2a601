// Common parts of both kinds of convolution: sizes, vectors, and matrix products within a processor's registers and
// nearest cache.

#pragma once

#include <cstdint>
#include <cstring>

// Export a kernel for both types as pointers kernel_float32 and kernel_float64.
#define EXPORT(kernel)                       \
    extern "C" {                             \
    auto *kernel##_float32 = kernel<float>;  \
    auto *kernel##_float64 = kernel<double>; \
    }

namespace {

// Sizes of a convolution: images, kernel, and padding.
struct Sizes {
    int64_t images, height, width, channels, outputs, rows, columns, padding_rows, padding_columns;

    int64_t to_height() const { return height + 2 * padding_rows - rows + 1; }
    int64_t to_width() const { return width + 2 * padding_columns - columns + 1; }
    int64_t area() const { return to_height() * to_width(); }
    int64_t pooled() const { return (to_height() / 2) * (to_width() / 2); }
    int64_t image() const { return height * width * channels; }
    int64_t depth() const { return rows * columns * channels; }
};

// A vector, and the block of a matrix that fits a processor's registers: ROWS by VECTORS.
#if defined(__AVX512F__)
constexpr int BYTES = 64, VECTORS = 4;
#elif defined(__AVX__)
constexpr int BYTES = 32, VECTORS = 2;
#elif defined(__aarch64__)
constexpr int BYTES = 16, VECTORS = 4;
#else
constexpr int BYTES = 16, VECTORS = 2;
#endif
constexpr int ROWS = 6;

template <typename T> struct Vectors {
    typedef T Vector __attribute__((vector_size(BYTES)));
    static constexpr int LANES = BYTES / sizeof(T);
    static constexpr int PANEL = LANES * VECTORS;
};
template <typename T> using Vector = typename Vectors<T>::Vector;

template <typename T> inline Vector<T> load_vector(const T *from) {
    Vector<T> vector;
    std::memcpy(&vector, from, BYTES);
    return vector;
}
template <typename T> inline void store_vector(T *to, Vector<T> vector) { std::memcpy(to, &vector, BYTES); }

// C = A B, or C += A B: A [COUNT x depth] with strides of rows and columns, B [depth x WIDE vectors], all of type T.
template <int COUNT, int WIDE, typename T>
inline __attribute__((always_inline)) void block(int64_t depth, const T *a, int64_t a_row, int64_t a_column, const T *b,
                                                 int64_t b_row, T *c, int64_t c_row, bool add) {
    constexpr int LANES = Vectors<T>::LANES;
    Vector<T> sum[COUNT][WIDE];
#pragma GCC unroll 24
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < WIDE; ++j) sum[i][j] = add ? load_vector(c + i * c_row + j * LANES) : Vector<T>{};
    for (int64_t k = 0; k < depth; ++k) {
        Vector<T> row[WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < WIDE; ++j) row[j] = load_vector(b + k * b_row + j * LANES);
#pragma GCC unroll 24
        for (int i = 0; i < COUNT; ++i) {
            const T value = a[i * a_row + k * a_column];
#pragma GCC unroll 8
            for (int j = 0; j < WIDE; ++j) sum[i][j] += value * row[j];
        }
    }
#pragma GCC unroll 24
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < WIDE; ++j) store_vector(c + i * c_row + j * LANES, sum[i][j]);
}

// The same for any number of rows.
template <int WIDE, typename T>
void panel(int64_t rows, int64_t depth, const T *a, int64_t a_row, int64_t a_column, const T *b, int64_t b_row, T *c,
           int64_t c_row, bool add) {
    constexpr int MANY = ROWS * VECTORS / WIDE;
    int64_t i = 0;
    for (; i + MANY <= rows; i += MANY)
        block<MANY, WIDE>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
    for (; i + 2 <= rows; i += 2)
        block<2, WIDE>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
    if (i < rows) block<1, WIDE>(depth, a + i * a_row, a_row, a_column, b, b_row, c + i * c_row, c_row, add);
}

// The same for any number of columns, in whole vectors.
template <typename T>
void multiply(int64_t rows, int64_t depth, int64_t columns, const T *a, int64_t a_row, int64_t a_column, const T *b,
              int64_t b_row, T *c, int64_t c_row, bool add) {
    constexpr int LANES = Vectors<T>::LANES;
    int64_t j = 0;
    for (; j + LANES * VECTORS <= columns; j += LANES * VECTORS)
        panel<VECTORS>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
    for (; j + LANES * 2 <= columns; j += LANES * 2)
        panel<2>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
    for (; j < columns; j += LANES) panel<1>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
}

}  // namespace
