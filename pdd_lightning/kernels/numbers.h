// The types of numbers in maps, and what sums over them are computed in.

#pragma once

#include <cstdint>
#include <cstring>

namespace {

struct bfloat16 {
    uint16_t bits;
};

inline float load(const float *at) { return *at; }
inline double load(const double *at) { return *at; }
inline float load(const bfloat16 *at) {
    uint32_t bits = static_cast<uint32_t>(at->bits) << 16;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline void store(float *at, float value) { *at = value; }
inline void store(double *at, double value) { *at = value; }
inline void store(bfloat16 *at, float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
    at->bits = static_cast<uint16_t>(value != value ? 0x7fc0u : rounded);
}

template <typename T> struct Sum {
    using type = float;
};
template <> struct Sum<double> {
    using type = double;
};

}  // namespace
