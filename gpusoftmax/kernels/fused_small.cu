// The whole pass for a small weight matrix: logits, softmax, loss, residual and XᵀG in one kernel, X read once.
//
// Fuses all stages of DESIGN's pass for every problem.  Never materialised in global memory: logits, probabilities,
// one-hot targets, residual.  Overwrites gradient_parts and tile_loss; nothing else is written.
//
// Conventions
//   D, K, P         features, classes, problems; C = P * K columns, at most 256
//   x               rows x D, row stride ld_x, any alignment
//   w, bias         D x C and C numbers, row-major: the rows of params (D + 1, P, K); bias may be null
//   labels          one class index per row, 0 <= label < K (the caller checks), or null: then
//   targets         soft targets, rows x K with row stride ld_t, the same for every problem
//   weights         of row i and problem p at i * weight_row_stride + p * weight_problem_stride, or null for all ones
//   gradient_parts  grid x (D + 1) x P x K: each block's sums of XᵀG, then of 1ᵀG; sum_parts adds them
//   tile_loss       the weighted loss of problem p's tile of 64 rows at p * tile_stride + tile, in double
//
// grid: any number of blocks, at most one per tile; block b takes the tiles b, b + grid, ...  The gradient's bits depend
// on it, so keep it constant.  block: 256 threads.  Shared: fused_shared_bytes in launches.py, and P * 512 bytes static.
// ROWS divides 64; it trades shared memory for work per barrier.  The second launch bound lets ptxas use up to 255
// registers; without it some shapes spill.

template <typename real, int D, int K, int P, int ROWS>
__global__ void __launch_bounds__(256, 1)
fused_small(const real* __restrict__ x, long long ld_x, int rows, const real* __restrict__ w,
            const real* __restrict__ bias, const int* __restrict__ labels, const real* __restrict__ targets,
            long long ld_t, real label_smoothing, const real* __restrict__ weights, long long weight_row_stride,
            long long weight_problem_stride, real* __restrict__ gradient_parts, double* __restrict__ tile_loss,
            long long tile_stride)
{
    constexpr int THREADS = 256, WARPS = THREADS / 32;
    constexpr int C = P * K;
    constexpr int PACK = 16 / sizeof(real);
    constexpr int D_PACKS = (D + PACK - 1) / PACK;
    constexpr int C_PACKS = (C + PACK - 1) / PACK;
    constexpr int D_PAD = D_PACKS * PACK;
    constexpr int C_PAD = C_PACKS * PACK;
    constexpr int LD = D_PACKS % 2 ? D_PAD : D_PAD + PACK;  // odd number of packs: fewer bank conflicts
    constexpr int ITEMS = D_PACKS * C_PACKS;                // PACK x PACK pieces of the gradient
    constexpr int FIT = THREADS / ITEMS;
    constexpr int SLICES = FIT < 1 ? 1 : FIT < ROWS ? FIT : ROWS;  // of rows, where pieces are fewer than threads
    constexpr int PER_THREAD = (ITEMS + THREADS - 1) / THREADS;
    static_assert(TILE_ROWS % ROWS == 0 && C <= THREADS, "unsupported shape");

    extern __shared__ __align__(16) unsigned char dynamic_shared[];
    real* shared_w = reinterpret_cast<real*>(dynamic_shared);  // D_PAD x C_PAD, zero padded
    real* shared_x = shared_w + D_PAD * C_PAD;                 // ROWS x LD, zero padded
    real* shared_g = shared_x + ROWS * LD;                     // ROWS x C_PAD: logits, then residual; pads never leave
    __shared__ double row_loss[P * TILE_ROWS];

    const int t = threadIdx.x;
    const bool aligned = ld_x % PACK == 0 && reinterpret_cast<unsigned long long>(x) % 16 == 0;
    for (int i = t; i < D_PAD * C_PAD; i += THREADS) {
        const int d = i / C_PAD, c = i % C_PAD;
        shared_w[i] = d < D && c < C ? w[d * C + c] : real(0);
    }

    real sum[PER_THREAD][PACK][PACK] = {};
    real bias_sum = 0;

    for (long long tile = blockIdx.x; tile * TILE_ROWS < rows; tile += gridDim.x) {
        for (int first = 0; first < TILE_ROWS; first += ROWS) {
            const long long row0 = tile * TILE_ROWS + first;
            __syncthreads();  // shared_w is ready; the previous round has finished with x and g

            for (int i = t; i < ROWS * D_PACKS; i += THREADS) {
                const int r = i / D_PACKS, d = i % D_PACKS * PACK;
                real value[PACK] = {};
                if (row0 + r < rows) {
                    const real* source = x + (row0 + r) * ld_x + d;
                    if (aligned && d + PACK <= D) {
                        load_pack(source, value);
                    } else {
#pragma unroll
                        for (int p = 0; p < PACK; ++p)
                            if (d + p < D) value[p] = source[p];
                    }
                }
                store_pack(shared_x + r * LD + d, value);
            }
            __syncthreads();

            for (int i = t; i < ROWS * C_PACKS; i += THREADS) {  // logits of one row, PACK columns
                const int r = i / C_PACKS, c = i % C_PACKS * PACK;
                real logit[PACK] = {};
#pragma unroll 2
                for (int d = 0; d < D_PAD; d += PACK) {
                    real xs[PACK];
                    load_pack(shared_x + r * LD + d, xs);
#pragma unroll
                    for (int a = 0; a < PACK; ++a) {
                        real ws[PACK];
                        load_pack(shared_w + (d + a) * C_PAD + c, ws);
#pragma unroll
                        for (int b = 0; b < PACK; ++b) logit[b] += xs[a] * ws[b];
                    }
                }
                store_pack(shared_g + r * C_PAD + c, logit);
            }
            __syncthreads();

            for (int i = t; i < ROWS * P; i += THREADS) {  // softmax and residual of one row and problem
                const int r = i / P, problem = i % P;
                real* g = shared_g + r * C_PAD + problem * K;
                const bool live = row0 + r < rows;
                const long long row = live ? row0 + r : 0;
                const Targets<real> target(labels, targets, ld_t, row, K, label_smoothing);
                const real weight = weights ? weights[row * weight_row_stride + problem * weight_problem_stride] : real(1);
                real top = Limits<real>::lowest();
                for (int k = 0; k < K; ++k) {
                    const real logit = g[k] + (bias ? bias[problem * K + k] : real(0));
                    g[k] = logit;
                    top = max(top, logit);
                }
                real rest = 0, ties = 0, expected = 0;
                for (int k = 0; k < K; ++k) {
                    const real difference = g[k] - top;
                    const real e = exp(difference);
                    const real wanted = target.at(k).first;
                    if (e == real(1)) ties += real(1);
                    else rest += e;
                    if (wanted != real(0)) expected += wanted * difference;
                    g[k] = e;
                }
                rest += ties - real(1);
                const real inverse = real(1) / (real(1) + rest);
                for (int k = 0; k < K; ++k)
                    g[k] = live ? weight * residual_value(g[k], rest, inverse, target.at(k)) : real(0);
                row_loss[problem * TILE_ROWS + first + r] =
                    live ? (double)weight * ((double)log1p(rest) - (double)expected) : 0.0;
            }
            __syncthreads();

#pragma unroll
            for (int q = 0; q < PER_THREAD; ++q) {  // add XᵀG of this round
                const int slot = t + q * THREADS;
                if (slot < ITEMS * SLICES) {
                    const int item = slot % ITEMS, slice = slot / ITEMS;
                    const int d = item / C_PACKS * PACK, c = item % C_PACKS * PACK;
                    for (int r = slice; r < ROWS; r += SLICES) {
                        real xs[PACK], gs[PACK];
                        load_pack(shared_x + r * LD + d, xs);
                        load_pack(shared_g + r * C_PAD + c, gs);
#pragma unroll
                        for (int a = 0; a < PACK; ++a)
#pragma unroll
                            for (int b = 0; b < PACK; ++b) sum[q][a][b] += xs[a] * gs[b];
                    }
                }
            }
            if (t < C)
                for (int r = 0; r < ROWS; ++r) bias_sum += shared_g[r * C_PAD + t];
        }
        for (int problem = t / 32; problem < P; problem += WARPS) {  // complete since the barrier before XᵀG
            const double* losses = row_loss + problem * TILE_ROWS + t % 32;
            const double loss = tile_sum(losses[0], losses[32]);
            if (t % 32 == 0) tile_loss[problem * tile_stride + tile] = loss;
        }
    }

    // Add the row slices in order, in the space of shared_w.
    for (int slice = 0; slice < SLICES; ++slice) {
        __syncthreads();
#pragma unroll
        for (int q = 0; q < PER_THREAD; ++q) {
            const int slot = t + q * THREADS;
            if (slot < ITEMS * SLICES && slot / ITEMS == slice) {
                const int item = slot % ITEMS;
                real* target = shared_w + item / C_PACKS * PACK * C_PAD + item % C_PACKS * PACK;
#pragma unroll
                for (int a = 0; a < PACK; ++a) {
                    real old[PACK] = {};
                    if (slice > 0) load_pack(target + a * C_PAD, old);
#pragma unroll
                    for (int b = 0; b < PACK; ++b) old[b] += sum[q][a][b];
                    store_pack(target + a * C_PAD, old);
                }
            }
        }
    }
    __syncthreads();
    real* part = gradient_parts + (long long)blockIdx.x * (D + 1) * C;
    for (int i = t; i < D * C; i += THREADS) part[i] = shared_w[i / C * C_PAD + i % C];
    if (t < C) part[D * C + t] = bias_sum;
}
