// Vectors of numbers, and the product of two matrices as far as a processor's registers and nearest cache hold it.

#pragma once

#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace {

// A vector, and the block of a matrix that a processor's registers hold: ROWS by VECTORS of them.
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

template <typename A> struct Vectors {
    typedef A Vector __attribute__((vector_size(BYTES)));
    static constexpr int LANES = BYTES / sizeof(A);
    static constexpr int PANEL = LANES * VECTORS;
};
template <typename A> using Vector = typename Vectors<A>::Vector;

inline Vector<float> load_vector(const float *from) {
    Vector<float> vector;
    std::memcpy(&vector, from, BYTES);
    return vector;
}
inline Vector<double> load_vector(const double *from) {
    Vector<double> vector;
    std::memcpy(&vector, from, BYTES);
    return vector;
}
inline void store_vector(float *to, Vector<float> vector) { std::memcpy(to, &vector, BYTES); }
inline void store_vector(double *to, Vector<double> vector) { std::memcpy(to, &vector, BYTES); }

typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));
typedef uint32_t Words __attribute__((vector_size(BYTES)));

// As load and store, for as many numbers.
inline Vector<float> load_vector(const bfloat16 *from) {
    Halves halves;
    std::memcpy(&halves, from, sizeof halves);
    const Words bits = __builtin_convertvector(halves, Words) << 16;
    Vector<float> vector;
    std::memcpy(&vector, &bits, BYTES);
    return vector;
}
inline void store_vector(bfloat16 *to, Vector<float> vector) {
    Words bits;
    std::memcpy(&bits, &vector, BYTES);
    const Words number = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16, is_number = Words(vector == vector);
    const Halves halves = __builtin_convertvector((number & is_number) | (0x7fc0u & ~is_number), Halves);
    std::memcpy(to, &halves, sizeof halves);
}

// C = A B, or C += A B: A [COUNT x depth] with steps between rows and columns, B [depth x WIDE vectors], both in `A`.
template <int COUNT, int WIDE, typename A>
inline __attribute__((always_inline)) void block(int64_t depth, const A *a, int64_t a_row, int64_t a_column, const A *b,
                                                 int64_t b_row, A *c, int64_t c_row, bool add) {
    constexpr int LANES = Vectors<A>::LANES;
    Vector<A> sum[COUNT][WIDE];
#pragma GCC unroll 24
    for (int i = 0; i < COUNT; ++i)
#pragma GCC unroll 8
        for (int j = 0; j < WIDE; ++j) sum[i][j] = add ? load_vector(c + i * c_row + j * LANES) : Vector<A>{};
    for (int64_t k = 0; k < depth; ++k) {
        Vector<A> row[WIDE];
#pragma GCC unroll 8
        for (int j = 0; j < WIDE; ++j) row[j] = load_vector(b + k * b_row + j * LANES);
#pragma GCC unroll 24
        for (int i = 0; i < COUNT; ++i) {
            const A value = a[i * a_row + k * a_column];
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
template <int WIDE, typename A>
void panel(int64_t rows, int64_t depth, const A *a, int64_t a_row, int64_t a_column, const A *b, int64_t b_row, A *c,
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
template <typename A>
void multiply(int64_t rows, int64_t depth, int64_t columns, const A *a, int64_t a_row, int64_t a_column, const A *b,
              int64_t b_row, A *c, int64_t c_row, bool add) {
    constexpr int LANES = Vectors<A>::LANES;
    int64_t j = 0;
    for (; j + LANES * VECTORS <= columns; j += LANES * VECTORS)
        panel<VECTORS>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
    for (; j + LANES * 2 <= columns; j += LANES * 2)
        panel<2>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
    for (; j < columns; j += LANES) panel<1>(rows, depth, a, a_row, a_column, b + j, b_row, c + j, c_row, add);
}

}  // namespace
