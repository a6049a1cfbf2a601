// Instance norm with scale and shift, ReLU and 2x2 average pooling in one pass: forward, backward and double
// backward. See block.py for the formulas.
//
// Maps are channels-last: [images, height, width, channels]. The unit of work is a block of channels of one image, which
// stays in the cache. Each lane is a separate channel, so that no sum is reordered and the result does not depend on the
// number of threads. Sums are computed row by row, which keeps rounding errors small.

#pragma once

#if defined(__GNUC__) && !defined(__clang__)
// It would process two positions together rather than vectorize over channels, which is ten times slower.
#pragma GCC optimize("no-loop-unroll-and-jam")
#endif

#include <cmath>
#include <cstdint>
#include <limits>

namespace {

constexpr int LANES = 32;

// The value where z > 0, else 0; NaN is propagated, as in torch.
template <typename T> inline T where_positive(T z, T value) { return z <= T(0) ? T(0) : value; }

struct Shape {
    int64_t images, height, width, channels;
    int64_t area() const { return height * width; }
    int64_t pooled() const { return (height / 2) * (width / 2); }
    int64_t blocks() const { return (channels + LANES - 1) / LANES; }
};

// One image and up to LANES channels.
template <typename T> struct Block {
    const Shape &shape;
    int64_t image, first;

    const T *at(const T *map, int64_t row, int64_t column) const {
        return map + ((image * shape.height + row) * shape.width + column) * shape.channels + first;
    }
    T *at(T *map, int64_t row, int64_t column) const {
        return const_cast<T *>(at(static_cast<const T *>(map), row, column));
    }
    // The position's window in a pooled map, or `zero` without a window or map.
    const T *window(const T *map, int64_t row, int64_t column, const T *zero) const {
        int64_t rows = shape.height / 2, columns = shape.width / 2;
        if (map == nullptr || row / 2 >= rows || column / 2 >= columns) return zero;
        return map + ((image * rows + row / 2) * columns + column / 2) * shape.channels + first;
    }
    T *window(T *map, int64_t row, int64_t column) const {
        return const_cast<T *>(window(static_cast<const T *>(map), row, column, nullptr));
    }
    const T *per_image(const T *values) const { return values + image * shape.channels + first; }
    T *per_image(T *values) const { return values + image * shape.channels + first; }
};

template <typename T, int N>
void forward(const Block<T> &block, int lanes, const T *y, const T *gamma, const T *beta, T eps, T *p, T *mean,
             T *rstd) {
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const T share = T(1) / T(s.area());
    T m[LANES] = {}, v[LANES] = {}, a[LANES], b[LANES];
    for (int64_t i = 0; i < s.height; ++i) {
        T row[LANES] = {};
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j);
            for (int c = 0; c < n; ++c) row[c] += from[c];
        }
        for (int c = 0; c < n; ++c) m[c] += row[c];
    }
    for (int c = 0; c < n; ++c) m[c] *= share;
    for (int64_t i = 0; i < s.height; ++i) {
        T row[LANES] = {};
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j);
            for (int c = 0; c < n; ++c) {
                T d = from[c] - m[c];
                row[c] += d * d;
            }
        }
        for (int c = 0; c < n; ++c) v[c] += row[c];
    }
    T *means = block.per_image(mean), *rstds = block.per_image(rstd);
    for (int c = 0; c < n; ++c) {
        // A variance beyond the range of the type makes everything NaN, so that it is noticed.
        T r = v[c] < std::numeric_limits<T>::infinity() ? T(1) / std::sqrt(v[c] * share + eps)
                                                        : std::numeric_limits<T>::quiet_NaN();
        means[c] = m[c];
        rstds[c] = r;
        a[c] = gamma[block.first + c] * r;
        b[c] = beta[block.first + c] - a[c] * m[c];
    }
    for (int64_t i = 0; i + 1 < s.height; i += 2)
        for (int64_t j = 0; j + 1 < s.width; j += 2) {
            T sum[LANES] = {};
            for (int k = 0; k < 4; ++k) {
                const T *from = block.at(y, i + k / 2, j + k % 2);
                for (int c = 0; c < n; ++c) {
                    T z = a[c] * from[c] + b[c];
                    sum[c] += where_positive(z, z);
                }
            }
            T *to = block.window(p, i, j);
            for (int c = 0; c < n; ++c) to[c] = sum[c] * T(0.25);
        }
}

// The norm of a map: its mean m and inverse standard deviation r, and a and b with z = a y + b.
template <typename T>
inline void read_norm(const Block<T> &block, int n, const T *mean, const T *rstd, const T *gamma, const T *beta, T *m,
                      T *r, T *a, T *b) {
    for (int c = 0; c < n; ++c) {
        m[c] = block.per_image(mean)[c];
        r[c] = block.per_image(rstd)[c];
        a[c] = gamma[block.first + c] * r[c];
        b[c] = beta[block.first + c] - a[c] * m[c];
    }
}

// Sums over a map of the gradient gz of z, and of gz x.
template <typename T, int N>
void gradient_sums(const Block<T> &block, int lanes, const T *gp, const T *y, const T *m, const T *r, const T *a,
                   const T *b, T *sg, T *sgx) {
    const int n = N ? N : lanes;
    for (int64_t i = 0; i < block.shape.height / 2 * 2; ++i) {
        T row[LANES] = {}, rowx[LANES] = {};
        for (int64_t j = 0; j < block.shape.width / 2 * 2; ++j) {
            const T *from = block.at(y, i, j), *gradient = block.window(gp, i, j, nullptr);
            for (int c = 0; c < n; ++c) {
                T value = from[c];
                T gz = where_positive(a[c] * value + b[c], T(0.25) * gradient[c]);
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
void backward(const Block<T> &block, int lanes, const T *gp, const T *y, const T *mean, const T *rstd, const T *gamma,
              const T *beta, T *gy, T *ggamma, T *gbeta) {
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const T share = T(1) / T(s.area());
    const T zero[LANES] = {};
    T m[LANES], r[LANES], a[LANES], b[LANES], sg[LANES] = {}, sgx[LANES] = {};
    read_norm(block, n, mean, rstd, gamma, beta, m, r, a, b);
    gradient_sums<T, N>(block, lanes, gp, y, m, r, a, b, sg, sgx);
    for (int c = 0; c < n; ++c) {
        block.per_image(ggamma)[c] = sgx[c];
        block.per_image(gbeta)[c] = sg[c];
        sg[c] *= share;
        sgx[c] *= share;
    }
    for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j), *gradient = block.window(gp, i, j, zero);
            T *to = block.at(gy, i, j);
            for (int c = 0; c < n; ++c) {
                T value = from[c];
                T gz = where_positive(a[c] * value + b[c], T(0.25) * gradient[c]);
                to[c] = a[c] * (gz - sg[c] - (value - m[c]) * r[c] * sgx[c]);
            }
        }
}

enum { G, GX, V, VX, VG, SUMS };

// Double backward, first half: the derivatives of gp, and five sums over each map for the second.
template <typename T, int N>
void double_backward_gradient(const Block<T> &block, int lanes, const T *gp, const T *y, const T *v, const T *mean,
                              const T *rstd, const T *gamma, const T *beta, const T *vgamma, const T *vbeta, T *vp,
                              T *sums, T *tgamma) {
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const T share = T(1) / T(s.area());
    const T zero[LANES] = {};
    T m[LANES], r[LANES], a[LANES], b[LANES], sum[SUMS][LANES] = {};
    read_norm(block, n, mean, rstd, gamma, beta, m, r, a, b);
    for (int64_t i = 0; i < s.height; ++i) {
        T row[SUMS][LANES] = {};
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j), *gradient = block.window(gp, i, j, zero), *vy = block.at(v, i, j);
            for (int c = 0; c < n; ++c) {
                T value = from[c], x = (value - m[c]) * r[c], w = vy[c];
                T gz = where_positive(a[c] * value + b[c], T(0.25) * gradient[c]);
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
    T base[LANES], of_x[LANES];
    for (int c = 0; c < n; ++c) {
        for (int k = 0; k < SUMS; ++k) sums[(block.image * SUMS + k) * s.channels + block.first + c] = sum[k][c];
        block.per_image(tgamma)[c] = r[c] * (sum[VG][c] - (sum[V][c] * sum[G][c] + sum[VX][c] * sum[GX][c]) * share);
        base[c] = vbeta[block.first + c] - a[c] * sum[V][c] * share;
        of_x[c] = vgamma[block.first + c] - a[c] * sum[VX][c] * share;
    }
    for (int64_t i = 0; i + 1 < s.height; i += 2)
        for (int64_t j = 0; j + 1 < s.width; j += 2) {
            T total[LANES] = {};
            for (int k = 0; k < 4; ++k) {
                const T *from = block.at(y, i + k / 2, j + k % 2), *vy = block.at(v, i + k / 2, j + k % 2);
                for (int c = 0; c < n; ++c) {
                    T value = from[c], x = (value - m[c]) * r[c];
                    T q = a[c] * vy[c] + base[c] + of_x[c] * x;
                    total[c] += where_positive(a[c] * value + b[c], q);
                }
            }
            T *to = block.window(vp, i, j);
            for (int c = 0; c < n; ++c) to[c] = total[c] * T(0.25);
        }
}

// Double backward, second half: the derivatives of y, gamma and beta; with tp, the backward of that is added.
template <typename T, int N>
void double_backward_inputs(const Block<T> &block, int lanes, const T *gp, const T *y, const T *v, const T *tp,
                            const T *mean, const T *rstd, const T *gamma, const T *beta, const T *vgamma, const T *sums,
                            T *ty, T *tgamma, T *tbeta) {
    const Shape &s = block.shape;
    const int n = N ? N : lanes;
    const T share = T(1) / T(s.area());
    const T zero[LANES] = {};
    T m[LANES], r[LANES], a[LANES], b[LANES], sg[LANES] = {}, sgx[LANES] = {};
    read_norm(block, n, mean, rstd, gamma, beta, m, r, a, b);
    if (tp != nullptr) gradient_sums<T, N>(block, lanes, tp, y, m, r, a, b, sg, sgx);
    // ty = of_v v + of_g gz + of_t tz + of_x x + base, with gz and tz the masked gradients of gp and tp.
    T of_v[LANES], of_g[LANES], of_x[LANES], base[LANES];
    for (int c = 0; c < n; ++c) {
        block.per_image(tgamma)[c] += sgx[c];
        block.per_image(tbeta)[c] = sg[c];
        const T *own = sums + block.image * SUMS * s.channels + block.first + c;
        T g = own[G * s.channels], gx = own[GX * s.channels], w = own[V * s.channels], wx = own[VX * s.channels],
          wg = own[VG * s.channels], vg = vgamma[block.first + c];
        T k = wg - (w * g + wx * gx) * share;
        T e = -a[c] * (w * gx + g * wx) * share + vg * g;
        T ex = -2 * a[c] * wx * gx * share + vg * gx;
        of_v[c] = -r[c] * a[c] * gx * share;
        of_g[c] = r[c] * (vg - a[c] * wx * share);
        of_x[c] = -r[c] * share * (ex + a[c] * k) - a[c] * sgx[c] * share;
        base[c] = -r[c] * e * share - a[c] * sg[c] * share;
    }
    for (int64_t i = 0; i < s.height; ++i)
        for (int64_t j = 0; j < s.width; ++j) {
            const T *from = block.at(y, i, j), *vy = block.at(v, i, j);
            const T *gradient = block.window(gp, i, j, zero), *later = block.window(tp, i, j, zero);
            T *to = block.at(ty, i, j);
            for (int c = 0; c < n; ++c) {
                T value = from[c], x = (value - m[c]) * r[c];
                T gz = T(0.25) * gradient[c], tz = T(0.25) * later[c];
                T masked = where_positive(a[c] * value + b[c], of_g[c] * gz + a[c] * tz);
                to[c] = of_v[c] * vy[c] + masked + of_x[c] * x + base[c];
            }
        }
}

}  // namespace
