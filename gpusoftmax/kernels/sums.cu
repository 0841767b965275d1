// Sums in a fixed order, and copies between padded and contiguous layouts.  No atomics: equal inputs give equal bits.
// Nothing here is large: losses, one number per column, or one read and one write of params.

#define SUM_THREADS 256

// ---- losses ---------------------------------------------------------------------------------------

// tile_loss[p * tile_stride + tile] = sum of 64 of row_loss[p * row_stride + row], added in the order in which
// residual_rows adds them.  grid: tiles * problems blocks, problems of a tile side by side; block: 32 threads.
extern "C" __global__ void __launch_bounds__(32)
tile_losses(const double* __restrict__ row_loss, long long row_stride, int rows, int problems,
            double* __restrict__ tile_loss, long long tile_stride)
{
    const int problem = blockIdx.x % problems;
    const long long tile = blockIdx.x / problems;
    row_loss += problem * row_stride;
    const long long first = tile * TILE_ROWS + threadIdx.x, second = first + 32;
    const double sum = tile_sum(first < rows ? row_loss[first] : 0.0, second < rows ? row_loss[second] : 0.0);
    if (threadIdx.x == 0) tile_loss[problem * tile_stride + tile] = sum;
}

// total[p] = sum over tiles of tile_loss[p * tile_stride + tile], plus the old total where `accumulate`.
// Thread t adds the tiles t, t + 256, ... in that order; a binary tree adds the threads.
// grid: one block per problem; block: 256 threads.
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
sum_losses(const double* __restrict__ tile_loss, long long tile_stride, long long tiles, int accumulate,
           double* __restrict__ total)
{
    __shared__ double partial[SUM_THREADS];
    tile_loss += blockIdx.x * tile_stride;
    double sum = 0;
    for (long long i = threadIdx.x; i < tiles; i += SUM_THREADS) sum += tile_loss[i];
    partial[threadIdx.x] = sum;
    __syncthreads();
    for (int half = SUM_THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) partial[threadIdx.x] += partial[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) total[blockIdx.x] = partial[0] + (accumulate ? total[blockIdx.x] : 0.0);
}

// ---- gradients ------------------------------------------------------------------------------------

// out[i] = scale * (parts[0][i] + parts[1][i] + ...), added in that order in double, plus the old out[i] where
// `accumulate`.  Part n starts at n * part_stride.  For the blocks of fused_small, for column_sums, and for a product
// XᵀG whose rows were split between multiprocessors.
// grid: ceil(length / 256) blocks; block: 256 threads.
template <typename real, typename out_type>
__global__ void __launch_bounds__(SUM_THREADS)
sum_parts(const real* __restrict__ parts, int part_count, long long part_stride, long long length, double scale,
          int accumulate, out_type* __restrict__ out)
{
    const long long i = (long long)blockIdx.x * SUM_THREADS + threadIdx.x;
    if (i >= length) return;
    double sum = 0;
    for (int part = 0; part < part_count; ++part) sum += (double)parts[part * part_stride + i];
    out[i] = (out_type)(scale * sum + (accumulate ? (double)out[i] : 0.0));
}

// parts[group][column] = sum of the column over the group's 512 rows, in double: 1ᵀG of g, rows x columns with row
// stride ld_g; columns, ld_g and the base address are even numbers of elements.  sum_parts adds the groups.
// A warp adds every eighth row, two columns a lane; then one thread per column adds the eight warps in order.
// grid: row groups * column groups (of 64) blocks, column groups side by side; block: 256 threads.
template <typename real>
__global__ void __launch_bounds__(SUM_THREADS)
column_sums(const real* __restrict__ g, long long ld_g, long long rows, long long columns, double* __restrict__ parts)
{
    constexpr int GROUP_ROWS = 512, GROUP_COLUMNS = 64, WARPS = SUM_THREADS / 32;
    __shared__ double warp_sums[WARPS][GROUP_COLUMNS];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long column_groups = (columns + GROUP_COLUMNS - 1) / GROUP_COLUMNS;
    const long long first_column = blockIdx.x % column_groups * GROUP_COLUMNS;
    const long long group = blockIdx.x / column_groups;
    const long long column = first_column + 2 * lane;
    const long long end = min(rows, (group + 1) * GROUP_ROWS);

    double first = 0, second = 0;
    if (column < columns) {
        for (long long row = group * GROUP_ROWS + warp; row < end; row += WARPS) {
            const auto both = load_pair(g + row * ld_g + column);
            first += (double)both.first;
            second += (double)both.second;
        }
    }
    warp_sums[warp][2 * lane] = first;
    warp_sums[warp][2 * lane + 1] = second;
    __syncthreads();
    if (threadIdx.x < GROUP_COLUMNS && first_column + threadIdx.x < columns) {
        double sum = 0;
#pragma unroll
        for (int i = 0; i < WARPS; ++i) sum += warp_sums[i][threadIdx.x];
        parts[group * columns + first_column + threadIdx.x] = sum;
    }
}

// ---- layouts --------------------------------------------------------------------------------------

// From rows x problems x classes with row stride ld_in to padded storage with row stride ld_out: a problem's classes
// start at a multiple of 16 bytes and zeros fill the gaps.  Also rounds to 16-bit storage; with one problem it is a copy
// of a matrix.  grid: ceil(rows * problems * stride / 2 / 256) blocks; block: 256 threads, two numbers each.
template <typename in_type, typename out_type>
__global__ void __launch_bounds__(SUM_THREADS)
pad_classes(const in_type* __restrict__ in, long long ld_in, long long rows, int problems, int classes,
            out_type* __restrict__ out, long long ld_out)
{
    constexpr int PACK = 16 / sizeof(out_type);
    const int stride = (classes + PACK - 1) / PACK * PACK;
    const long long i = (long long)blockIdx.x * SUM_THREADS + threadIdx.x;
    const int pairs = stride / 2;
    const long long segment = i / pairs;
    const int k = (int)(i % pairs) * 2, problem = (int)(segment % problems);
    const long long row = segment / problems;
    if (row >= rows) return;
    const in_type* from = in + row * ld_in + (long long)problem * classes + k;
    const in_type first = k < classes ? from[0] : in_type(0), second = k + 1 < classes ? from[1] : in_type(0);
    store_pair(out + row * ld_out + (long long)problem * stride + k, first, second);
}

// From padded storage with row stride ld_in to rows x problems x classes with row stride ld_out, times scale[problem]
// (1 / total weight, or null for 1).  grid: ceil(rows * problems * classes / 256) blocks; block: 256 threads.
template <typename in_type, typename out_type>
__global__ void __launch_bounds__(SUM_THREADS)
unpad_classes(const in_type* __restrict__ in, long long ld_in, long long rows, int problems, int classes,
              int stride, const double* __restrict__ scale, out_type* __restrict__ out, long long ld_out)
{
    const long long i = (long long)blockIdx.x * SUM_THREADS + threadIdx.x;
    const long long segment = i / classes;
    const int k = (int)(i % classes), problem = (int)(segment % problems);
    const long long row = segment / problems;
    if (row >= rows) return;
    const double value = (double)in[row * ld_in + (long long)problem * stride + k];
    out[row * ld_out + (long long)problem * classes + k] = (out_type)(scale ? scale[problem] * value : value);
}
