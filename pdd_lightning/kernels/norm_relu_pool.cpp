// The kernels of norm_relu_pool.h for the maps of all images.

#include "norm_relu_pool.h"

// Numbers from which on several threads are worth waking up, as in torch.
constexpr int64_t GRAIN = 32768;

// Calls a kernel on every image and block of channels; blocks of the usual width are compiled apart.
#define EACH_BLOCK(T, kernel, ...)                                                            \
    const Shape shape{images, height, width, channels};                                       \
    const int64_t count = images * shape.blocks();                                            \
    const bool large = images * shape.area() * channels > GRAIN;                              \
    _Pragma("omp parallel for schedule(static) if (large)") for (int64_t k = 0; k < count; ++k) { \
        const Block<T> block{shape, k / shape.blocks(), k % shape.blocks() * LANES};          \
        const int64_t lanes = channels - block.first;                                         \
        if (lanes >= LANES)                                                                   \
            kernel<T, LANES>(block, LANES, __VA_ARGS__);                                      \
        else                                                                                  \
            kernel<T, 0>(block, static_cast<int>(lanes), __VA_ARGS__);                        \
    }

#define SHAPE int64_t images, int64_t height, int64_t width, int64_t channels

#define EXPORT(NAME, T)                                                                                               \
    extern "C" void forward_##NAME(SHAPE, const T *y, const Sum<T>::type *gamma, const Sum<T>::type *beta,            \
                                   double eps, T *p, Sum<T>::type *mean, Sum<T>::type *rstd) {                        \
        EACH_BLOCK(T, forward, y, gamma, beta, static_cast<Sum<T>::type>(eps), p, mean, rstd)                         \
    }                                                                                                                 \
    extern "C" void backward_##NAME(SHAPE, const T *gp, const T *y, const Sum<T>::type *mean,                         \
                                    const Sum<T>::type *rstd, const Sum<T>::type *gamma, const Sum<T>::type *beta,    \
                                    T *gy, Sum<T>::type *ggamma, Sum<T>::type *gbeta) {                               \
        EACH_BLOCK(T, backward, gp, y, mean, rstd, gamma, beta, gy, ggamma, gbeta)                                    \
    }                                                                                                                 \
    extern "C" void adjoint_##NAME(SHAPE, const T *gp, const T *y, const T *v, const Sum<T>::type *mean,              \
                                   const Sum<T>::type *rstd, const Sum<T>::type *gamma, const Sum<T>::type *beta,     \
                                   const Sum<T>::type *vgamma, const Sum<T>::type *vbeta, T *vp,                      \
                                   Sum<T>::type *sums, Sum<T>::type *tgamma) {                                        \
        EACH_BLOCK(T, adjoint, gp, y, v, mean, rstd, gamma, beta, vgamma, vbeta, vp, sums, tgamma)                    \
    }                                                                                                                 \
    extern "C" void total_##NAME(SHAPE, const T *gp, const T *y, const T *v, const T *tp, const Sum<T>::type *mean,   \
                                 const Sum<T>::type *rstd, const Sum<T>::type *gamma, const Sum<T>::type *beta,       \
                                 const Sum<T>::type *vgamma, const Sum<T>::type *sums, T *ty, Sum<T>::type *tgamma,   \
                                 Sum<T>::type *tbeta) {                                                               \
        EACH_BLOCK(T, total, gp, y, v, tp, mean, rstd, gamma, beta, vgamma, sums, ty, tgamma, tbeta)                  \
    }

EXPORT(float32, float)
EXPORT(float64, double)
EXPORT(bfloat16, bfloat16)
