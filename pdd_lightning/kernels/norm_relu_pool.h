// Instance norm with scale and shift, ReLU and 2x2 average pooling in one pass: forward, backward, and the backward of
// the backward. See norm_relu_pool.py for the formulas.
//
// Maps are channels-last: [images, height, width, channels]. Work is cut into one image and a block of channels, which
// stays in the cache for all that is done to it. Each lane is a channel of its own, so that no sum is reordered and the
// result does not depend on the number of threads. Sums are taken row by row, which keeps their rounding small.

#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// It would run two positions side by side and then not vectorise over the channels, which is ten times slower.
#pragma GCC optimize("no-loop-unroll-and-jam")
#endif

#include <cmath>
#include <cstdint>
#include <limits>

#include "numbers.h"

namespace {

constexpr int LANES = 32;

// The value where z > 0, else 0; not a number stays what it is, as in torch.
template <typename A> inline A where_positive(A z, A value) { return z <= A(0) ? A(0) : value; }

struct Shape {
    int64_t images, height, width, channels;
    int64_t area() const { return height * width; }
    int64_t pooled() const { return (height / 2) * (width / 2); }
    int64_t blocks() const { return (channels + LANES - 1) / LANES; }
};

// One image and up to LANES channels.
template <typename T> struct Block {
    using A = typename Sum<T>::type;
    const Shape &shape;
    int64_t image, first;

    const T *at(const T *map, int64_t row, int64_t column) const {
        return map + ((image * shape.height + row) * shape.width + column) * shape.channels + first;
    }
    T *at(T *map, int64_t row, int64_t column) const {
        return const_cast<T *>(at(static_cast<const T *>(map), row, column));
    }
    // Place of a position's window in a pooled map, or `zero` where it has none or there is no map.
    const T *window(const T *map, int64_t row, int64_t column, const T *zero) const {
        int64_t rows = shape.height / 2, columns = shape.width / 2;
        if (map == nullptr || row / 2 >= rows || column / 2 >= columns) return zero;
        return map + ((image * rows + row / 2) * columns + column / 2) * shape.channels + first;
    }
    T *window(T *map, int64_t row, int64_t column) const {
        return const_cast<T *>(window(static_cast<const T *>(map), row, column, nullptr));
    }
    const A *per_image(const A *values) const { return values + image * shape.channels + first; }
    A *per_image(A *values) const { return values + image * shape.channels + first; }
};

template <typename T, int N>
void forward(const Block<T> &block, int lanes, const T *y, const typename Sum<T>::type *gamma,
             const typename Sum<T>::type *beta, typename Sum<T>::type eps, T *p, typename Sum<T>::type *mean,
             typename Sum<T>::type *rstd) {
    using A = typename Sum<T>::type;
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const A share = A(1) / A(s.area());
    A m[LANES] = {}, v[LANES] = {}, a[LANES], b[LANES];
    for (int64_t i = 0; i < s.height; ++i) {
        A row[LANES] = {};
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j);
            for (int c = 0; c < n; ++c) row[c] += load(from + c);
        }
        for (int c = 0; c < n; ++c) m[c] += row[c];
    }
    for (int c = 0; c < n; ++c) m[c] *= share;
    for (int64_t i = 0; i < s.height; ++i) {
        A row[LANES] = {};
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j);
            for (int c = 0; c < n; ++c) {
                A d = load(from + c) - m[c];
                row[c] += d * d;
            }
        }
        for (int c = 0; c < n; ++c) v[c] += row[c];
    }
    A *means = block.per_image(mean), *rstds = block.per_image(rstd);
    for (int c = 0; c < n; ++c) {
        // A variance beyond the type's range makes everything not a number, so that nobody goes on with it.
        A r = v[c] < std::numeric_limits<A>::infinity() ? A(1) / std::sqrt(v[c] * share + eps)
                                                        : std::numeric_limits<A>::quiet_NaN();
        means[c] = m[c];
        rstds[c] = r;
        a[c] = gamma[block.first + c] * r;
        b[c] = beta[block.first + c] - a[c] * m[c];
    }
    for (int64_t i = 0; i + 1 < s.height; i += 2)
        for (int64_t j = 0; j + 1 < s.width; j += 2) {
            A sum[LANES] = {};
            for (int k = 0; k < 4; ++k) {
                const T *from = block.at(y, i + k / 2, j + k % 2);
                for (int c = 0; c < n; ++c) {
                    A z = a[c] * load(from + c) + b[c];
                    sum[c] += where_positive(z, z);
                }
            }
            T *to = block.window(p, i, j);
            for (int c = 0; c < n; ++c) store(to + c, sum[c] * A(0.25));
        }
}

// The norm of a map: its mean m and inverse standard deviation r, and a and b with z = a y + b.
template <typename T, typename A>
inline void read_norm(const Block<T> &block, int n, const A *mean, const A *rstd, const A *gamma, const A *beta, A *m,
                      A *r, A *a, A *b) {
    for (int c = 0; c < n; ++c) {
        m[c] = block.per_image(mean)[c];
        r[c] = block.per_image(rstd)[c];
        a[c] = gamma[block.first + c] * r[c];
        b[c] = beta[block.first + c] - a[c] * m[c];
    }
}

// Sums over a map of the slope gz of z, and of gz x.
template <typename T, int N>
void slope_sums(const Block<T> &block, int lanes, const T *gp, const T *y, const typename Sum<T>::type *m,
                const typename Sum<T>::type *r, const typename Sum<T>::type *a, const typename Sum<T>::type *b,
                typename Sum<T>::type *sg, typename Sum<T>::type *sgx) {
    using A = typename Sum<T>::type;
    const int n = N ? N : lanes;
    for (int64_t i = 0; i < block.shape.height / 2 * 2; ++i) {
        A row[LANES] = {}, rowx[LANES] = {};
        for (int64_t j = 0; j < block.shape.width / 2 * 2; ++j) {
            const T *from = block.at(y, i, j), *slope = block.window(gp, i, j, nullptr);
            for (int c = 0; c < n; ++c) {
                A value = load(from + c);
                A gz = where_positive(a[c] * value + b[c], A(0.25) * load(slope + c));
                row[c] += gz;
                rowx[c] += gz * (value - m[c]) * r[c];
            }
        }
        for (int c = 0; c < n; ++c) {
            sg[c] += row[c];
            sgx[c] += rowx[c];
        }
    }
}

template <typename T, int N>
void backward(const Block<T> &block, int lanes, const T *gp, const T *y, const typename Sum<T>::type *mean,
              const typename Sum<T>::type *rstd, const typename Sum<T>::type *gamma,
              const typename Sum<T>::type *beta, T *gy, typename Sum<T>::type *ggamma, typename Sum<T>::type *gbeta) {
    using A = typename Sum<T>::type;
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const A share = A(1) / A(s.area());
    const T zero[LANES] = {};
    A m[LANES], r[LANES], a[LANES], b[LANES], sg[LANES] = {}, sgx[LANES] = {};
    read_norm(block, n, mean, rstd, gamma, beta, m, r, a, b);
    slope_sums<T, N>(block, lanes, gp, y, m, r, a, b, sg, sgx);
    for (int c = 0; c < n; ++c) {
        block.per_image(ggamma)[c] = sgx[c];
        block.per_image(gbeta)[c] = sg[c];
        sg[c] *= share;
        sgx[c] *= share;
    }
    for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j), *slope = block.window(gp, i, j, zero);
            T *to = block.at(gy, i, j);
            for (int c = 0; c < n; ++c) {
                A value = load(from + c);
                A gz = where_positive(a[c] * value + b[c], A(0.25) * load(slope + c));
                store(to + c, a[c] * (gz - sg[c] - (value - m[c]) * r[c] * sgx[c]));
            }
        }
}

// The five sums over a map that the backward of the backward needs.
enum { G, GX, V, VX, VG, SUMS };

template <typename T, int N>
void adjoint(const Block<T> &block, int lanes, const T *gp, const T *y, const T *v, const typename Sum<T>::type *mean,
             const typename Sum<T>::type *rstd, const typename Sum<T>::type *gamma,
             const typename Sum<T>::type *beta, const typename Sum<T>::type *vgamma,
             const typename Sum<T>::type *vbeta, T *vp, typename Sum<T>::type *sums, typename Sum<T>::type *tgamma) {
    using A = typename Sum<T>::type;
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const A share = A(1) / A(s.area());
    const T zero[LANES] = {};
    A m[LANES], r[LANES], a[LANES], b[LANES], sum[SUMS][LANES] = {};
    read_norm(block, n, mean, rstd, gamma, beta, m, r, a, b);
    for (int64_t i = 0; i < s.height; ++i) {
        A row[SUMS][LANES] = {};
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j), *slope = block.window(gp, i, j, zero), *weight = block.at(v, i, j);
            for (int c = 0; c < n; ++c) {
                A value = load(from + c), x = (value - m[c]) * r[c], w = load(weight + c);
                A gz = where_positive(a[c] * value + b[c], A(0.25) * load(slope + c));
                row[G][c] += gz;
                row[GX][c] += gz * x;
                row[V][c] += w;
                row[VX][c] += w * x;
                row[VG][c] += w * gz;
            }
        }
        for (int k = 0; k < SUMS; ++k)
            for (int c = 0; c < n; ++c) sum[k][c] += row[k][c];
    }
    A base[LANES], slant[LANES];
    for (int c = 0; c < n; ++c) {
        for (int k = 0; k < SUMS; ++k)
            sums[(block.image * SUMS + k) * s.channels + block.first + c] = sum[k][c];
        block.per_image(tgamma)[c] =
            r[c] * (sum[VG][c] - (sum[V][c] * sum[G][c] + sum[VX][c] * sum[GX][c]) * share);
        base[c] = vbeta[block.first + c] - a[c] * sum[V][c] * share;
        slant[c] = vgamma[block.first + c] - a[c] * sum[VX][c] * share;
    }
    for (int64_t i = 0; i + 1 < s.height; i += 2)
        for (int64_t j = 0; j + 1 < s.width; j += 2) {
            A total[LANES] = {};
            for (int k = 0; k < 4; ++k) {
                const T *from = block.at(y, i + k / 2, j + k % 2), *weight = block.at(v, i + k / 2, j + k % 2);
                for (int c = 0; c < n; ++c) {
                    A value = load(from + c), x = (value - m[c]) * r[c];
                    A q = a[c] * load(weight + c) + base[c] + slant[c] * x;
                    total[c] += where_positive(a[c] * value + b[c], q);
                }
            }
            T *to = block.window(vp, i, j);
            for (int c = 0; c < n; ++c) store(to + c, total[c] * A(0.25));
        }
}

template <typename T, int N>
void total(const Block<T> &block, int lanes, const T *gp, const T *y, const T *v, const T *tp,
           const typename Sum<T>::type *mean, const typename Sum<T>::type *rstd, const typename Sum<T>::type *gamma,
           const typename Sum<T>::type *beta, const typename Sum<T>::type *vgamma, const typename Sum<T>::type *sums,
           T *ty, typename Sum<T>::type *tgamma, typename Sum<T>::type *tbeta) {
    using A = typename Sum<T>::type;
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const A share = A(1) / A(s.area());
    const T zero[LANES] = {};
    A m[LANES], r[LANES], a[LANES], b[LANES], sg[LANES] = {}, sgx[LANES] = {};
    read_norm(block, n, mean, rstd, gamma, beta, m, r, a, b);
    if (tp != nullptr) slope_sums<T, N>(block, lanes, tp, y, m, r, a, b, sg, sgx);
    // ty = of_v v + of_g gz + of_t tz + slant x + base, with gz and tz the masked slopes of gp and tp.
    A of_v[LANES], of_g[LANES], slant[LANES], base[LANES];
    for (int c = 0; c < n; ++c) {
        block.per_image(tgamma)[c] += sgx[c];
        block.per_image(tbeta)[c] = sg[c];
        const A *own = sums + block.image * SUMS * s.channels + block.first + c;
        A g = own[G * s.channels], gx = own[GX * s.channels], w = own[V * s.channels], wx = own[VX * s.channels],
          wg = own[VG * s.channels], vg = vgamma[block.first + c];
        A k = wg - (w * g + wx * gx) * share;
        A e = -a[c] * (w * gx + g * wx) * share + vg * g;
        A ex = -2 * a[c] * wx * gx * share + vg * gx;
        of_v[c] = -r[c] * a[c] * gx * share;
        of_g[c] = r[c] * (vg - a[c] * wx * share);
        slant[c] = -r[c] * share * (ex + a[c] * k) - a[c] * sgx[c] * share;
        base[c] = -r[c] * e * share - a[c] * sg[c] * share;
    }
    for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j), *weight = block.at(v, i, j);
            const T *slope = block.window(gp, i, j, zero), *later = block.window(tp, i, j, zero);
            T *to = block.at(ty, i, j);
            for (int c = 0; c < n; ++c) {
                A value = load(from + c), x = (value - m[c]) * r[c];
                A gz = A(0.25) * load(slope + c), tz = A(0.25) * load(later + c);
                A masked = where_positive(a[c] * value + b[c], of_g[c] * gz + a[c] * tz);
                store(to + c, of_v[c] * load(weight + c) + masked + slant[c] * x + base[c]);
            }
        }
}

}  // namespace
