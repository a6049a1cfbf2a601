// A block of convolution, instance norm, ReLU and 2x2 average pooling for images of few channels, image by image:
// forward, backward and double backward. See block.py.
//
// The map of such a block is the largest of a network, and costs more to move than to compute. Here it never leaves the
// cache: it is recomputed from the image in each pass, image by image, and for LANES channels at a time. The
// convolution is a product of the image's patches, [position][row, column, channel], with the kernel. The caller sums
// over images, so that no sum depends on the number of threads.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "norm_relu_pool.h"
#include "product.h"

namespace {

// Length of a patch in whole vectors, padded with zeros.
template <typename T> int64_t block_patch(const Sizes &s) {
    return (s.depth() + Vectors<T>::LANES - 1) / Vectors<T>::LANES * Vectors<T>::LANES;
}

// Scratch memory of a thread.
template <typename T> struct Scratch {
    T *patches, *gradients, *y, *v, *g, *p, *q, *weight, *sums;

    static int64_t size(const Sizes &s) {
        const int64_t patch = block_patch<T>(s);
        return 2 * s.area() * patch + 3 * s.area() * LANES + 2 * s.pooled() * LANES + LANES * patch +
               (SUMS + 2) * LANES;
    }
    Scratch(T *from, const Sizes &s) {
        const int64_t patch = block_patch<T>(s);
        patches = from;
        gradients = patches + s.area() * patch;
        y = gradients + s.area() * patch;
        v = y + s.area() * LANES;
        g = v + s.area() * LANES;
        p = g + s.area() * LANES;
        q = p + s.pooled() * LANES;
        weight = q + s.pooled() * LANES;
        sums = weight + LANES * patch;
    }
};

// Call a function of an image's number and a thread's scratch for every image.
template <typename T, typename Work> void each_image(const Sizes &s, T *scratch, int64_t threads, Work work) {
    const int64_t size = Scratch<T>::size(s);
#pragma omp parallel for schedule(static) num_threads(static_cast<int>(threads)) if (s.images > 1)
    for (int64_t image = 0; image < s.images; ++image)
        work(image, Scratch<T>(scratch + omp_get_thread_num() * size, s));
}

// Call a function of the first channel and the width of every block of channels.
template <typename Work> void each_block(const Sizes &s, Work work) {
    for (int64_t first = 0; first < s.outputs; first += LANES) work(first, std::min<int64_t>(LANES, s.outputs - first));
}

// Run a kernel on one image's map of at most LANES channels.
#define ON_MAP(kernel, width, ...)                                     \
    {                                                                  \
        const Shape shape{1, s.to_height(), s.to_width(), width};      \
        const Block<T> block{shape, 0, 0};                             \
        if (width == LANES)                                            \
            kernel<T, LANES>(block, LANES, __VA_ARGS__);               \
        else                                                           \
            kernel<T, 0>(block, static_cast<int>(width), __VA_ARGS__); \
    }

template <typename T> void read_patches(const Sizes &s, const T *image, T *to) {
    const int64_t patch = block_patch<T>(s), line = s.columns * s.channels;
    for (int64_t i = 0; i < s.to_height(); ++i)
        for (int64_t j = 0; j < s.to_width(); ++j, to += patch) {
            std::memset(to, 0, patch * sizeof(T));
            for (int64_t r = 0; r < s.rows; ++r) {
                const int64_t row = i + r - s.padding_rows, column = j - s.padding_columns;
                if (row < 0 || row >= s.height) continue;
                const int64_t first = std::max<int64_t>(0, -column), last = std::min(s.columns, s.width - column);
                const T *from = image + (row * s.width + column) * s.channels;
                for (int64_t k = first * s.channels; k < last * s.channels; ++k) to[r * line + k] = from[k];
            }
        }
}

// Sum the gradients of patches to that of the image.
template <typename T> void write_image(const Sizes &s, const T *gradients, T *image) {
    const int64_t patch = block_patch<T>(s), line = s.columns * s.channels;
    std::memset(image, 0, s.image() * sizeof(T));
    for (int64_t i = 0; i < s.to_height(); ++i)
        for (int64_t j = 0; j < s.to_width(); ++j, gradients += patch)
            for (int64_t r = 0; r < s.rows; ++r) {
                const int64_t row = i + r - s.padding_rows, column = j - s.padding_columns;
                if (row < 0 || row >= s.height) continue;
                const int64_t first = std::max<int64_t>(0, -column), last = std::min(s.columns, s.width - column);
                T *to = image + (row * s.width + column) * s.channels;
                for (int64_t k = first * s.channels; k < last * s.channels; ++k) to[k] += gradients[r * line + k];
            }
}

// Copy a block of channels of a pooled map [image][position][output] to or from [position][channel].
template <typename T>
void read_pooled(const Sizes &s, const T *map, int64_t image, int64_t first, int64_t width, T *to) {
    const T *from = map + image * s.pooled() * s.outputs + first;
    for (int64_t i = 0; i < s.pooled(); ++i)
        for (int64_t c = 0; c < width; ++c) to[i * width + c] = from[i * s.outputs + c];
}
template <typename T>
void write_pooled(const Sizes &s, const T *from, int64_t image, int64_t first, int64_t width, T *map) {
    T *to = map + image * s.pooled() * s.outputs + first;
    for (int64_t i = 0; i < s.pooled(); ++i)
        for (int64_t c = 0; c < width; ++c) to[i * s.outputs + c] = from[i * width + c];
}

// Result of the convolution; the kernel is [row, column, channel][output].
template <typename T>
void convolve(const Sizes &s, const T *patches, const T *weight, int64_t first, int64_t width, T *to) {
    multiply(s.area(), s.depth(), width, patches, block_patch<T>(s), 1, weight + first, s.outputs, to, width, false);
}
// Contribution of an image to the gradient of the kernel [output][row, column, channel].
template <typename T>
void weight_gradient(const Sizes &s, const T *gradient, const Scratch<T> &own, int64_t first, int64_t width, T *to) {
    const int64_t patch = block_patch<T>(s);
    multiply(width, s.area(), patch, gradient, 1, width, own.patches, patch, own.weight, patch, false);
    for (int64_t c = 0; c < width; ++c)
        std::memcpy(to + (first + c) * s.depth(), own.weight + c * patch, s.depth() * sizeof(T));
}
// Contribution of a block of channels to the gradients of patches; the kernel is [output][patch].
template <typename T>
void patch_gradients(const Sizes &s, const T *gradient, const T *weight, int64_t first, int64_t width, bool add,
                     T *to) {
    const int64_t patch = block_patch<T>(s);
    multiply(s.area(), width, patch, gradient, width, 1, weight + first * patch, patch, to, patch, add);
}

// Inputs of the double backward pass: the map y, the derivative v of its gradient, and the gradient of its result.
template <typename T>
void maps(const Sizes &s, const Scratch<T> &own, const T *weight, const T *vweight, const T *gp, int64_t image,
          int64_t first, int64_t width) {
    convolve(s, own.patches, weight, first, width, own.y);
    convolve(s, own.patches, vweight, first, width, own.v);
    read_pooled(s, gp, image, first, width, own.p);
}

// Length of a thread's scratch.
template <typename T> int64_t block_scratch(const Sizes &s) { return Scratch<T>::size(s); }

template <typename T>
void block_forward(const Sizes &s, const T *x, const T *weight, const T *gamma, const T *beta, double eps, T *p,
                   T *mean, T *rstd, T *scratch, int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<T> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            convolve(s, own.patches, weight, first, width, own.y);
            ON_MAP(forward, width, own.y, gamma + first, beta + first, static_cast<T>(eps), own.p, mean + at, rstd + at)
            write_pooled(s, own.p, image, first, width, p);
        });
    });
}

// The gradient of the images is not computed if it is a null pointer.
template <typename T>
void block_backward(const Sizes &s, const T *x, const T *weight, const T *rows, const T *mean, const T *rstd,
                    const T *gamma, const T *beta, const T *gp, T *gweight, T *ggamma, T *gbeta, T *gx, T *scratch,
                    int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<T> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            convolve(s, own.patches, weight, first, width, own.y);
            read_pooled(s, gp, image, first, width, own.p);
            ON_MAP(backward, width, own.p, own.y, mean + at, rstd + at, gamma + first, beta + first, own.g, ggamma + at,
                   gbeta + at)
            weight_gradient(s, own.g, own, first, width, gweight + image * s.outputs * s.depth());
            if (gx != nullptr) patch_gradients(s, own.g, rows, first, width, first > 0, own.gradients);
        });
        if (gx != nullptr) write_image(s, own.gradients, gx + image * s.image());
    });
}

template <typename T>
void block_double_backward_gradient(const Sizes &s, const T *x, const T *weight, const T *vweight, const T *mean,
                                    const T *rstd, const T *gamma, const T *beta, const T *gp, const T *vgamma,
                                    const T *vbeta, T *vp, T *sums, T *tgamma, T *scratch, int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<T> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            maps(s, own, weight, vweight, gp, image, first, width);
            ON_MAP(double_backward_gradient, width, own.p, own.y, own.v, mean + at, rstd + at, gamma + first,
                   beta + first, vgamma + first, vbeta + first, own.q, own.sums, tgamma + at)
            write_pooled(s, own.q, image, first, width, vp);
            for (int k = 0; k < SUMS; ++k)
                std::memcpy(sums + (image * SUMS + k) * s.outputs + first, own.sums + k * width, width * sizeof(T));
        });
    });
}

// The derivative of the images is not computed if it is a null pointer.
template <typename T>
void block_double_backward_inputs(const Sizes &s, const T *x, const T *weight, const T *rows, const T *vweight,
                                  const T *vrows, const T *mean, const T *rstd, const T *gamma, const T *beta,
                                  const T *gp, const T *tp, const T *vgamma, const T *sums, T *tweight, T *tgamma,
                                  T *tbeta, T *tx, T *scratch, int64_t threads) {
    each_image(s, scratch, threads, [&](int64_t image, const Scratch<T> &own) {
        read_patches(s, x + image * s.image(), own.patches);
        each_block(s, [&](int64_t first, int64_t width) {
            const int64_t at = image * s.outputs + first;
            maps(s, own, weight, vweight, gp, image, first, width);
            read_pooled(s, tp, image, first, width, own.q);
            for (int k = 0; k < SUMS; ++k)
                std::memcpy(own.sums + k * width, sums + (image * SUMS + k) * s.outputs + first, width * sizeof(T));
            ON_MAP(double_backward_inputs, width, own.p, own.y, own.v, own.q, mean + at, rstd + at, gamma + first,
                   beta + first, vgamma + first, own.sums, own.g, tgamma + at, tbeta + at)
            weight_gradient(s, own.g, own, first, width, tweight + image * s.outputs * s.depth());
            if (tx == nullptr) return;
            patch_gradients(s, own.g, rows, first, width, first > 0, own.gradients);
            T *unused = own.sums + SUMS * LANES;
            ON_MAP(backward, width, own.p, own.y, mean + at, rstd + at, gamma + first, beta + first, own.g, unused,
                   unused + LANES)
            patch_gradients(s, own.g, vrows, first, width, true, own.gradients);
        });
        if (tx != nullptr) write_image(s, own.gradients, tx + image * s.image());
    });
}

}  // namespace

EXPORT(block_patch)
EXPORT(block_scratch)
EXPORT(block_forward)
EXPORT(block_backward)
EXPORT(block_double_backward_gradient)
EXPORT(block_double_backward_inputs)
