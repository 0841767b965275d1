// What the kernels share: element types, 128-bit access, fixed-order reductions, and the softmax's row sums.
//
// The host puts this text before each .cu file (see cuda.py), so that NVRTC needs no header and no include path.
//
// A row's softmax is kept as two numbers, neither of which cancels:
//   top    the largest logit
//   rest   sum of exp(logit - top), without the 1 that a largest logit itself contributes
// so that sum = 1 + rest, log sum = log1p(rest), and for a class with logit = top
//   y - t = (1 - t) - rest / sum
// keeps its digits where y rounds to 1.  For every other class y <= 1/2 + rounding, and y - t is safe as it stands.
// A NaN, or infinities without a finite softmax, make `rest` NaN, and with it the row's loss and output.

#define TILE_ROWS 64
#define FULL_WARP 0xffffffffu

template <typename real> struct Limits;
template <> struct Limits<float> {
    static __device__ float lowest() { return -3.402823466e+38f; }
    static __device__ float minus_infinity() { return __int_as_float(0xff800000); }
};
template <> struct Limits<double> {
    static __device__ double lowest() { return -1.7976931348623157e+308; }
    static __device__ double minus_infinity() { return __longlong_as_double(0xfff0000000000000LL); }
};

// ---- 16-bit storage: bit patterns, computed with in float ---------------------------------------

struct float16 { unsigned short bits; };
struct bfloat16 { unsigned short bits; };

__device__ __forceinline__ unsigned to_bits(float value, float16)
{
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ unsigned to_bits(float value, bfloat16)  // sm_75 has no instruction for it
{
    const unsigned bits = __float_as_uint(value);
    const unsigned rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;  // to nearest, ties to even
    return value == value ? rounded : 0x7fffu;
}
__device__ __forceinline__ float from_bits(unsigned bits, float16)
{
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"((unsigned short)bits));
    return value;
}
__device__ __forceinline__ float from_bits(unsigned bits, bfloat16) { return __uint_as_float(bits << 16); }

// ---- packs: the numbers of one 128-bit load (one 64-bit store where storage is 16 bits) ---------

__device__ __forceinline__ void load_pack(const float* from, float* to)
{
    const float4 q = *reinterpret_cast<const float4*>(from);
    to[0] = q.x; to[1] = q.y; to[2] = q.z; to[3] = q.w;
}
__device__ __forceinline__ void load_pack(const double* from, double* to)
{
    const double2 q = *reinterpret_cast<const double2*>(from);
    to[0] = q.x; to[1] = q.y;
}
__device__ __forceinline__ void store_pack(float* to, const float* from)
{
    *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
__device__ __forceinline__ void store_pack(double* to, const double* from)
{
    *reinterpret_cast<double2*>(to) = make_double2(from[0], from[1]);
}
template <typename half> __device__ __forceinline__ void store_pack(half* to, const float* from)
{
    const half type{};
    const unsigned low = to_bits(from[0], type) | to_bits(from[1], type) << 16;
    const unsigned high = to_bits(from[2], type) | to_bits(from[3], type) << 16;
    *reinterpret_cast<uint2*>(to) = make_uint2(low, high);
}

// ---- pairs: two neighbouring numbers, for kernels that go along columns -------------------------

template <typename real> struct Pair { real first, second; };

__device__ __forceinline__ Pair<float> load_pair(const float* from)
{
    const float2 q = *reinterpret_cast<const float2*>(from);
    return {q.x, q.y};
}
__device__ __forceinline__ Pair<double> load_pair(const double* from)
{
    const double2 q = *reinterpret_cast<const double2*>(from);
    return {q.x, q.y};
}
template <typename half> __device__ __forceinline__ Pair<float> load_pair(const half* from)
{
    const unsigned both = *reinterpret_cast<const unsigned*>(from);
    return {from_bits(both & 0xffffu, half{}), from_bits(both >> 16, half{})};
}
__device__ __forceinline__ void store_pair(float* to, float first, float second)
{
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
}
__device__ __forceinline__ void store_pair(double* to, double first, double second)
{
    *reinterpret_cast<double2*>(to) = make_double2(first, second);
}
__device__ __forceinline__ void store_pair(float16* to, float first, float second)
{
    *reinterpret_cast<unsigned*>(to) = to_bits(first, float16{}) | to_bits(second, float16{}) << 16;
}
__device__ __forceinline__ void store_pair(bfloat16* to, float first, float second)
{
    *reinterpret_cast<unsigned*>(to) = to_bits(first, bfloat16{}) | to_bits(second, bfloat16{}) << 16;
}

// ---- reductions in a fixed order ----------------------------------------------------------------

// Over LANES neighbouring lanes; every lane gets the result.
template <int LANES, typename number> __device__ __forceinline__ number lanes_max(number v)
{
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) v = max(v, __shfl_xor_sync(FULL_WARP, v, step));
    return v;
}
template <int LANES, typename real> __device__ __forceinline__ real lanes_sum(real v)
{
#pragma unroll
    for (int step = LANES / 2; step > 0; step /= 2) v += __shfl_xor_sync(FULL_WARP, v, step);
    return v;
}

// Over a block; `scratch` holds one number per warp and belongs to this call alone.
template <int WARPS, typename real> __device__ __forceinline__ real block_sum(real v, real* scratch)
{
    v = lanes_sum<32>(v);
    if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
    __syncthreads();
    v = scratch[0];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) v += scratch[i];
    return v;
}

// Over the 64 row losses of a tile, called by one full warp.
__device__ __forceinline__ double tile_sum(double first_half, double second_half)
{
    return lanes_sum<32>(first_half + second_half);
}

// ---- targets of one row -------------------------------------------------------------------------

// Smoothed targets (1 - e) t + e / K of a class index (`soft` null) or of a row of soft targets; a null pair of
// pointers, for outputs that need no targets, gives label 0.
template <typename real> struct Targets {
    const real* soft;
    int label;
    real keep, spread, missing;  // 1 - e, e / K, and what smoothing takes from the label: e (K - 1) / K

    __device__ __forceinline__ Targets(const int* labels, const real* soft_targets, long long ld_t, long long row,
                                       int classes, real label_smoothing)
        : soft(soft_targets ? soft_targets + row * ld_t : nullptr), label(labels ? labels[row] : 0),
          keep(real(1) - label_smoothing), spread(label_smoothing / classes), missing(spread * (classes - 1))
    {
    }
    // Targets of one class, and 1 minus it: the label's own is exact.
    __device__ __forceinline__ Pair<real> at(int column) const
    {
        if (soft) {
            const real t = keep * soft[column] + spread;
            return {t, real(1) - t};
        }
        const bool is_label = column == label;
        return {is_label ? real(1) - missing : spread, is_label ? missing : real(1) - spread};
    }
};

// A class's y - t, from e = exp(logit - top).
template <typename real>
__device__ __forceinline__ real residual_value(real e, real rest, real inverse_sum, Pair<real> target)
{
    return e == real(1) ? target.second - rest * inverse_sum : e * inverse_sum - target.first;
}
