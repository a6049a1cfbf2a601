// A block of convolution, instance norm, ReLU and 2x2 average pooling for images of few channels, image by image:
// forward, backward, and the backward of the backward. See image_block.py.
//
// The map of such a block is the largest of a network, and costs more to move than to compute. Here it never leaves the
// cache: of one image after the other, and of LANES channels after the others, it is computed from the image wherever
// it is needed. The convolution is a product of the image's patches, [position][row, column, channel], with the kernel.
// What is summed over images is left to the caller, so that no sum depends on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "norm_relu_pool.h"
#include "product.h"

namespace {

struct Sizes {
    int64_t images, height, width, channels, outputs, rows, columns, padding_rows, padding_columns;

    int64_t to_height() const { return height + 2 * padding_rows - rows + 1; }
    int64_t to_width() const { return width + 2 * padding_columns - columns + 1; }
    int64_t area() const { return to_height() * to_width(); }
    int64_t pooled() const { return (to_height() / 2) * (to_width() / 2); }
    int64_t image() const { return height * width * channels; }
    int64_t depth() const { return rows * columns * channels; }
    // A patch in whole vectors; what is behind its end is zero.
    template <typename A> int64_t patch() const {
        return (depth() + Vectors<A>::LANES - 1) / Vectors<A>::LANES * Vectors<A>::LANES;
    }
};

// What a thread works in.
template <typename A> struct Scratch {
    A *patches, *slopes, *y, *v, *g, *p, *q, *weight, *sums, *image;

    static int64_t size(const Sizes &s) {
        const int64_t patch = s.patch<A>();
        return 2 * s.area() * patch + 3 * s.area() * LANES + 2 * s.pooled() * LANES + LANES * patch +
               (SUMS + 2) * LANES + (s.image() + LANES) / LANES * LANES;
    }
    Scratch(A *from, const Sizes &s) {
        const int64_t patch = s.patch<A>();
        patches = from;
        slopes = patches + s.area() * patch;
        y = slopes + s.area() * patch;
        v = y + s.area() * LANES;
        g = v + s.area() * LANES;
        p = g + s.area() * LANES;
        q = p + s.pooled() * LANES;
        weight = q + s.pooled() * LANES;
        sums = weight + LANES * patch;
        image = sums + (SUMS + 2) * LANES;
    }
};

// Calls a function of an image's number and a thread's scratch for every image.
template <typename A, typename Work> void each_image(const Sizes &s, A *scratch, int64_t threads, Work work) {
    const int64_t size = Scratch<A>::size(s);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (s.images > 1)
    for (int64_t image = 0; image < s.images; ++image)
        work(image, Scratch<A>(scratch + omp_get_thread_num() * size, s));
}

// Calls a function of the first channel and the width of every block of channels.
template <typename Work> void each_block(const Sizes &s, Work work) {
    for (int64_t first = 0; first < s.outputs; first += LANES) work(first, std::min<int64_t>(LANES, s.outputs - first));
}

// Runs a kernel on one image's map of LANES channels, or fewer.
#define ON_MAP(kernel, width, ...)                                         \
    {                                                                      \
        const Shape shape{1, s.to_height(), s.to_width(), width};          \
        const Block<A> block{shape, 0, 0};                                 \
        if (width == LANES)                                                \
            kernel<A, LANES>(block, LANES, __VA_ARGS__);                   \
        else                                                               \
            kernel<A, 0>(block, static_cast<int>(width), __VA_ARGS__);     \
    }

template <typename T> void read_patches(const Sizes &s, const T *image, typename Sum<T>::type *to) {
    using A = typename Sum<T>::type;
    const int64_t patch = s.patch<A>(), line = s.columns * s.channels;
    for (int64_t i = 0; i < s.to_height(); ++i)
        for (int64_t j = 0; j < s.to_width(); ++j, to += patch) {
            std::memset(to, 0, patch * sizeof(A));
            for (int64_t r = 0; r < s.rows; ++r) {
                const int64_t row = i + r - s.padding_rows, column = j - s.padding_columns;
                if (row < 0 || row >= s.height) continue;
                const int64_t first = std::max<int64_t>(0, -column), last = std::min(s.columns, s.width - column);
                const T *from = image + (row * s.width + column) * s.channels;
                for (int64_t k = first * s.channels; k < last * s.channels; ++k) to[r * line + k] = load(from + k);
            }
        }
}

// Adds the slopes of patches up to that of the image.
template <typename T>
void write_image(const Sizes &s, const typename Sum<T>::type *slopes, typename Sum<T>::type *sums, T *image) {
    using A = typename Sum<T>::type;
    const int64_t patch = s.patch<A>(), line = s.columns * s.channels;
    std::memset(sums, 0, s.image() * sizeof(A));
    for (int64_t i = 0; i < s.to_height(); ++i)
        for (int64_t j = 0; j < s.to_width(); ++j, slopes += patch)
            for (int64_t r = 0; r < s.rows; ++r) {
                const int64_t row = i + r - s.padding_rows, column = j - s.padding_columns;
                if (row < 0 || row >= s.height) continue;
                const int64_t first = std::max<int64_t>(0, -column), last = std::min(s.columns, s.width - column);
                A *to = sums + (row * s.width + column) * s.channels;
                for (int64_t k = first * s.channels; k < last * s.channels; ++k) to[k] += slopes[r * line + k];
            }
    for (int64_t k = 0; k < s.image(); ++k) store(image + k, sums[k]);
}

// A block of channels of a pooled map [image][position][output], to and from [position][channel].
template <typename T, typename A>
void read_pooled(const Sizes &s, const T *map, int64_t image, int64_t first, int64_t width, A *to) {
    const T *from = map + image * s.pooled() * s.outputs + first;
    for (int64_t i = 0; i < s.pooled(); ++i)
        for (int64_t c = 0; c < width; ++c) to[i * width + c] = load(from + i * s.outputs + c);
}
template <typename T, typename A>
void write_pooled(const Sizes &s, const A *from, int64_t image, int64_t first, int64_t width, T *map) {
    T *to = map + image * s.pooled() * s.outputs + first;
    for (int64_t i = 0; i < s.pooled(); ++i)
        for (int64_t c = 0; c < width; ++c) store(to + i * s.outputs + c, from[i * width + c]);
}

// Result of the convolution; the kernel is [row, column, channel][output].
template <typename A>
void convolve(const Sizes &s, const A *patches, const A *weight, int64_t first, int64_t width, A *to) {
    multiply(s.area(), s.depth(), width, patches, s.patch<A>(), 1, weight + first, s.outputs, to, width, false);
}
// An image's part in the slope of the kernel [output][row, column, channel].
template <typename A>
void weight_slope(const Sizes &s, const A *slope, const Scratch<A> &own, int64_t first, int64_t width, A *to) {
    const int64_t patch = s.patch<A>();
    multiply(width, s.area(), patch, slope, 1, width, own.patches, patch, own.weight, patch, false);
    for (int64_t c = 0; c < width; ++c)
        std::memcpy(to + (first + c) * s.depth(), own.weight + c * patch, s.depth() * sizeof(A));
}
// What a block of channels adds to the slopes of patches; the kernel is [output][patch].
template <typename A>
void patch_slopes(const Sizes &s, const A *slope, const A *weight, int64_t first, int64_t width, bool add, A *to) {
    const int64_t patch = s.patch<A>();
    multiply(s.area(), width, patch, slope, width, 1, weight + first * patch, patch, to, patch, add);
}

// What the backward of the backward starts from: the map, its slope by that of the kernel, and the slope of its result.
template <typename T, typename A>
void maps(const Sizes &s, const Scratch<A> &own, const A *weight, const A *vweight, const T *gp, int64_t image,
          int64_t first, int64_t width) {
    convolve(s, own.patches, weight, first, width, own.y);
    convolve(s, own.patches, vweight, first, width, own.v);
    read_pooled(s, gp, image, first, width, own.p);
}

template <typename T, typename A>
void block_forward(const Sizes &s, const T *x, const A *weight, const A *gamma, const A *beta, double eps, T *p,
                   A *mean, A *rstd, A *scratch, int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<A> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            convolve(s, own.patches, weight, first, width, own.y);
            ON_MAP(forward, width, own.y, gamma + first, beta + first, static_cast<A>(eps), own.p, mean + at, rstd + at)
            write_pooled(s, own.p, image, first, width, p);
        });
    });
}

// Without the slope of the images where it is a null pointer.
template <typename T, typename A>
void block_backward(const Sizes &s, const T *x, const A *weight, const A *rows, const A *mean, const A *rstd,
                    const A *gamma, const A *beta, const T *gp, A *gweight, A *ggamma, A *gbeta, T *gx, A *scratch,
                    int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<A> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            convolve(s, own.patches, weight, first, width, own.y);
            read_pooled(s, gp, image, first, width, own.p);
            ON_MAP(backward, width, own.p, own.y, mean + at, rstd + at, gamma + first, beta + first, own.g, ggamma + at,
                   gbeta + at)
            weight_slope(s, own.g, own, first, width, gweight + image * s.outputs * s.depth());
            if (gx != nullptr) patch_slopes(s, own.g, rows, first, width, first > 0, own.slopes);
        });
        if (gx != nullptr) write_image(s, own.slopes, own.image, gx + image * s.image());
    });
}

template <typename T, typename A>
void block_adjoint(const Sizes &s, const T *x, const A *weight, const A *vweight, const A *mean, const A *rstd,
                   const A *gamma, const A *beta, const T *gp, const A *vgamma, const A *vbeta, T *vp, A *sums,
                   A *tgamma, A *scratch, int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<A> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            maps(s, own, weight, vweight, gp, image, first, width);
            ON_MAP(adjoint, width, own.p, own.y, own.v, mean + at, rstd + at, gamma + first, beta + first,
                   vgamma + first, vbeta + first, own.q, own.sums, tgamma + at)
            write_pooled(s, own.q, image, first, width, vp);
            for (int k = 0; k < SUMS; ++k)
                std::memcpy(sums + (image * SUMS + k) * s.outputs + first, own.sums + k * width, width * sizeof(A));
        });
    });
}

// Without the derivative of the images where it is a null pointer.
template <typename T, typename A>
void block_total(const Sizes &s, const T *x, const A *weight, const A *rows, const A *vweight, const A *vrows,
                 const A *mean, const A *rstd, const A *gamma, const A *beta, const T *gp, const T *tp,
                 const A *vgamma, const A *sums, A *tweight, A *tgamma, A *tbeta, T *tx, A *scratch, int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<A> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            maps(s, own, weight, vweight, gp, image, first, width);
            read_pooled(s, tp, image, first, width, own.q);
            for (int k = 0; k < SUMS; ++k)
                std::memcpy(own.sums + k * width, sums + (image * SUMS + k) * s.outputs + first, width * sizeof(A));
            ON_MAP(total, width, own.p, own.y, own.v, own.q, mean + at, rstd + at, gamma + first, beta + first,
                   vgamma + first, own.sums, own.g, tgamma + at, tbeta + at)
            weight_slope(s, own.g, own, first, width, tweight + image * s.outputs * s.depth());
            if (tx == nullptr) return;
            patch_slopes(s, own.g, rows, first, width, first > 0, own.slopes);
            A *unused = own.sums + SUMS * LANES;
            ON_MAP(backward, width, own.p, own.y, mean + at, rstd + at, gamma + first, beta + first, own.g, unused,
                   unused + LANES)
            patch_slopes(s, own.g, vrows, first, width, true, own.slopes);
        });
        if (tx != nullptr) write_image(s, own.slopes, own.image, tx + image * s.image());
    });
}

}  // namespace

#define SIZES                                                                                                   \
    int64_t images, int64_t height, int64_t width, int64_t channels, int64_t outputs, int64_t rows, int64_t columns, \
        int64_t padding_rows, int64_t padding_columns
#define GIVEN \
    Sizes { images, height, width, channels, outputs, rows, columns, padding_rows, padding_columns }

#define EXPORT(NAME, T, A)                                                                                           \
    extern "C" int64_t block_scratch_##NAME(SIZES) { return Scratch<A>::size(GIVEN); }                               \
    extern "C" int64_t block_patch_##NAME(SIZES) { return GIVEN.patch<A>(); }                                        \
    extern "C" void block_forward_##NAME(SIZES, const T *x, const A *weight, const A *gamma, const A *beta,          \
                                         double eps, T *p, A *mean, A *rstd, A *scratch, int64_t threads) {          \
        block_forward(GIVEN, x, weight, gamma, beta, eps, p, mean, rstd, scratch, threads);                          \
    }                                                                                                                \
    extern "C" void block_backward_##NAME(SIZES, const T *x, const A *weight, const A *kernel_rows, const A *mean,   \
                                          const A *rstd, const A *gamma, const A *beta, const T *gp, A *gweight,     \
                                          A *ggamma, A *gbeta, T *gx, A *scratch, int64_t threads) {                 \
        block_backward(GIVEN, x, weight, kernel_rows, mean, rstd, gamma, beta, gp, gweight, ggamma, gbeta, gx,       \
                       scratch, threads);                                                                            \
    }                                                                                                                \
    extern "C" void block_adjoint_##NAME(SIZES, const T *x, const A *weight, const A *vweight, const A *mean,        \
                                         const A *rstd, const A *gamma, const A *beta, const T *gp, const A *vgamma, \
                                         const A *vbeta, T *vp, A *sums, A *tgamma, A *scratch, int64_t threads) {   \
        block_adjoint(GIVEN, x, weight, vweight, mean, rstd, gamma, beta, gp, vgamma, vbeta, vp, sums, tgamma,       \
                      scratch, threads);                                                                             \
    }                                                                                                                \
    extern "C" void block_total_##NAME(SIZES, const T *x, const A *weight, const A *kernel_rows, const A *vweight,   \
                                       const A *vrows, const A *mean, const A *rstd, const A *gamma, const A *beta,  \
                                       const T *gp, const T *tp, const A *vgamma, const A *sums, A *tweight,         \
                                       A *tgamma, A *tbeta, T *tx, A *scratch, int64_t threads) {                    \
        block_total(GIVEN, x, weight, kernel_rows, vweight, vrows, mean, rstd, gamma, beta, gp, tp, vgamma, sums,    \
                    tweight, tgamma, tbeta, tx, scratch, threads);                                                   \
    }

EXPORT(float32, float, float)
EXPORT(float64, double, double)
EXPORT(bfloat16, bfloat16, float)
