// The kernels of norm_relu_pool.h for the maps of all images.

#include "norm_relu_pool.h"

#include <type_traits>

#include "product.h"

namespace {

// Smallest length for several threads, as in torch.
constexpr int64_t GRAIN = 32768;

// Call a function of every image and block of channels; blocks of the usual width are compiled separately.
template <typename T, typename Work> void each_block(const Shape &shape, Work work) {
    const int64_t count = shape.images * shape.blocks();
    const bool large = shape.images * shape.area() * shape.channels > GRAIN;
#pragma omp parallel for schedule(static) if (large)
    for (int64_t k = 0; k < count; ++k) {
        const Block<T> block{shape, k / shape.blocks(), k % shape.blocks() * LANES};
        const int64_t lanes = shape.channels - block.first;
        if (lanes >= LANES)
            work(block, LANES, std::integral_constant<int, LANES>());
        else
            work(block, static_cast<int>(lanes), std::integral_constant<int, 0>());
    }
}

template <typename T>
void norm_forward(const Shape &shape, const T *y, const T *gamma, const T *beta, double eps, T *p, T *mean, T *rstd) {
    each_block<T>(shape, [&](const Block<T> &block, int lanes, auto width) {
        forward<T, width>(block, lanes, y, gamma, beta, static_cast<T>(eps), p, mean, rstd);
    });
}

template <typename T>
void norm_backward(const Shape &shape, const T *gp, const T *y, const T *mean, const T *rstd, const T *gamma,
                   const T *beta, T *gy, T *ggamma, T *gbeta) {
    each_block<T>(shape, [&](const Block<T> &block, int lanes, auto width) {
        backward<T, width>(block, lanes, gp, y, mean, rstd, gamma, beta, gy, ggamma, gbeta);
    });
}

template <typename T>
void norm_double_backward_gradient(const Shape &shape, const T *gp, const T *y, const T *v, const T *mean,
                                   const T *rstd, const T *gamma, const T *beta, const T *vgamma, const T *vbeta, T *vp,
                                   T *sums, T *tgamma) {
    each_block<T>(shape, [&](const Block<T> &block, int lanes, auto width) {
        double_backward_gradient<T, width>(block, lanes, gp, y, v, mean, rstd, gamma, beta, vgamma, vbeta, vp, sums,
                                           tgamma);
    });
}

template <typename T>
void norm_double_backward_inputs(const Shape &shape, const T *gp, const T *y, const T *v, const T *tp, const T *mean,
                                 const T *rstd, const T *gamma, const T *beta, const T *vgamma, const T *sums, T *ty,
                                 T *tgamma, T *tbeta) {
    each_block<T>(shape, [&](const Block<T> &block, int lanes, auto width) {
        double_backward_inputs<T, width>(block, lanes, gp, y, v, tp, mean, rstd, gamma, beta, vgamma, sums, ty, tgamma,
                                         tbeta);
    });
}

}  // namespace

EXPORT(norm_forward)
EXPORT(norm_backward)
EXPORT(norm_double_backward_gradient)
EXPORT(norm_double_backward_inputs)
