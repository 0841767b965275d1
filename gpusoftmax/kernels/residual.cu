// From logits to what is wanted of their softmax, for every row and problem, in place or into another matrix.
//
// Fuses: adding the bias, the row softmax, the loss, subtracting the targets, multiplying by the row's weight, and
// rounding to 16-bit storage.  One read and one write of the logits (the block kernel reads them again from cache).
// Never materialised: probabilities beside the logits, one-hot targets, smoothed targets.
//
// MODE                what is written (y = softmax(z + bias), s = weight, t = smoothed target)
//   GRADIENT            s (y - t), and the losses
//   LOSS                the losses alone; g is not touched
//   PROBABILITIES       y
//   LOG_PROBABILITIES   log y
//   HESSIAN             s (y v - y (y . v)) for a direction's logits v: the softmax's Hessian times v
//
// Conventions
//   z          rows x ld_z, row-major.  Problem p has the columns p * stride ... p * stride + classes - 1, stride =
//              classes rounded up to 16 bytes.  Base and row stride are multiples of 16 bytes.  Pad columns must hold
//              initialised numbers, which are ignored.
//   g          the output, rows x ld_g, in real, float16 or bfloat16, with a stride of its own type.  Pad columns become 0.
//              May be z or direction themselves where the type and ld are the same: a thread writes only the columns
//              that it alone has read.
//   direction  v, laid out like z; read in HESSIAN only.
//   bias, direction_bias   problems x stride, or null.
//   labels     one class index per row, 0 <= label < classes (the caller checks), or null: then
//   targets    soft targets, rows x ld_t, each row on the simplex, any alignment, the same for every problem.
//   weights    of row i and problem p at i * weight_row_stride + p * weight_problem_stride, or null for all ones.
//   loss       residual_rows: the weighted loss of problem p's tile of 64 rows at p * loss_stride + tile, in double.
//              residual_block: of a row, at p * loss_stride + row; tile_losses then adds them in the same order.
// Tiles are counted from the launch's first row: blocks whose size is a multiple of 64 give the same bits as one launch.
// No atomics; every sum has a fixed order.  Element indices are 64-bit.

enum Mode { GRADIENT, LOSS, PROBABILITIES, LOG_PROBABILITIES, HESSIAN };

constexpr __host__ __device__ bool has_targets(Mode mode) { return mode == GRADIENT || mode == LOSS; }
constexpr __host__ __device__ bool has_weights(Mode mode) { return has_targets(mode) || mode == HESSIAN; }

// Numbers of one type that fill `count` of them up to 16 bytes.
template <typename number> __device__ __forceinline__ int round_up(int count)
{
    constexpr int PACK = 16 / sizeof(number);
    return (count + PACK - 1) / PACK * PACK;
}

// Load a pack of logits with their bias; columns behind the classes become `beyond`.
template <typename real>
__device__ __forceinline__ void load_logits(const real* z, const real* bias, int column, int classes, real beyond,
                                            real* value)
{
    constexpr int PACK = 16 / sizeof(real);
    real added[PACK] = {};
    if (column < classes) {
        load_pack(z + column, value);
        if (bias) load_pack(bias + column, added);
    }
#pragma unroll
    for (int p = 0; p < PACK; ++p) value[p] = column + p < classes ? value[p] + added[p] : beyond;
}

// ---- K up to 512: LANES lanes share a row, which stays in registers ------------------------------
// grid: one block per tile and problem, problems of a tile side by side; block: min(256, 64 * LANES) threads; static
// shared memory only.  LANES * VALUES >= the output's stride; VALUES is a multiple of 16 / sizeof(real).
// The second launch bound: left to itself (0), ptxas gives some double kernels a register too few and spills.

template <typename real, typename out, Mode MODE, int LANES, int VALUES>
__global__ void __launch_bounds__(LANES < 4 ? 64 * LANES : 256, sizeof(real) == 4 ? 0 : VALUES < 16 ? 2 : 1)
residual_rows(const real* z, long long ld_z, out* g, long long ld_g, const real* direction, int rows, int classes,
              int problems, const real* __restrict__ bias, const real* __restrict__ direction_bias,
              const int* __restrict__ labels, const real* __restrict__ targets, long long ld_t, real label_smoothing,
              const real* __restrict__ weights, long long weight_row_stride, long long weight_problem_stride,
              double* __restrict__ loss, long long loss_stride)
{
    constexpr int PACK = 16 / sizeof(real);
    constexpr int THREADS = LANES < 4 ? 64 * LANES : 256;
    constexpr int GROUPS = THREADS / LANES;
    static_assert(VALUES % PACK == 0 && TILE_ROWS % GROUPS == 0, "unsupported shape");

    __shared__ double row_loss[TILE_ROWS];
    const int lane = threadIdx.x % LANES;
    const int group = threadIdx.x / LANES;
    const int problem = blockIdx.x % problems;
    const long long tile = blockIdx.x / problems;
    const int stride = round_up<real>(classes), stride_g = round_up<out>(classes);
    const long long first_column = (long long)problem * stride, first_column_g = (long long)problem * stride_g;
    if (bias) bias += first_column;
    if (direction_bias) direction_bias += first_column;

    for (int first = 0; first < TILE_ROWS; first += GROUPS) {
        const int in_tile = first + group;
        const bool live = tile * TILE_ROWS + in_tile < rows;
        const long long row = live ? tile * TILE_ROWS + in_tile : 0;
        const int live_classes = live ? classes : 0;
        const real* z_row = z + row * ld_z + first_column;
        out* g_row = g + row * ld_g + first_column_g;
        const Targets<real> target(labels, targets, ld_t, row, classes, label_smoothing);
        real weight = 1;
        if (has_weights(MODE) && weights)
            weight = weights[row * weight_row_stride + problem * weight_problem_stride];

        real value[VALUES];
        real top = Limits<real>::lowest();
#pragma unroll
        for (int j = 0; j < VALUES; j += PACK) {
            load_logits(z_row, bias, j * LANES + lane * PACK, live_classes, Limits<real>::minus_infinity(), value + j);
#pragma unroll
            for (int p = 0; p < PACK; ++p) top = max(top, value[j + p]);
        }
        top = lanes_max<LANES>(top);

        real rest = 0, ties = 0, expected = 0;  // expected: sum of t (z - top)
#pragma unroll
        for (int j = 0; j < VALUES; ++j) {
            const int column = j / PACK * PACK * LANES + lane * PACK + j % PACK;
            const real difference = value[j] - top;
            const real e = exp(difference);
            if (e == real(1)) ties += real(1);
            else rest += e;
            if (has_targets(MODE) && column < live_classes) {
                const real t = target.at(column).first;
                if (t != real(0)) expected += t * difference;
            }
            value[j] = MODE == LOG_PROBABILITIES ? difference : e;
        }
        ties = lanes_sum<LANES>(ties);
        rest = lanes_sum<LANES>(rest) + (ties - real(1));
        const real inverse = real(1) / (real(1) + rest);

        if (has_targets(MODE)) {
            expected = lanes_sum<LANES>(expected);
            const double row_value = (double)weight * ((double)log1p(rest) - (double)expected);
            if (lane == 0) row_loss[in_tile] = live ? row_value : 0.0;
        }

        if (MODE == HESSIAN) {
            // v is taken relative to its value at the largest logit: then v - y . v does not cancel there.
            real v[VALUES];
            real anchor = Limits<real>::lowest(), moment = 0;
#pragma unroll
            for (int j = 0; j < VALUES; j += PACK) {
                load_logits(direction + row * ld_z + first_column, direction_bias, j * LANES + lane * PACK,
                            live_classes, real(0), v + j);
#pragma unroll
                for (int p = 0; p < PACK; ++p)
                    if (value[j + p] == real(1)) anchor = max(anchor, v[j + p]);
            }
            anchor = lanes_max<LANES>(anchor);
#pragma unroll
            for (int j = 0; j < VALUES; ++j) {
                v[j] -= anchor;
                moment += value[j] * v[j];
            }
            const real mean = lanes_sum<LANES>(moment) * inverse;
#pragma unroll
            for (int j = 0; j < VALUES; ++j) value[j] = weight * (value[j] * inverse * (v[j] - mean));
        }

        if (MODE != LOSS) {
            const real log_sum = MODE == LOG_PROBABILITIES ? log1p(rest) : real(0);
#pragma unroll
            for (int j = 0; j < VALUES; j += PACK) {
                const int column = j * LANES + lane * PACK;
#pragma unroll
                for (int p = 0; p < PACK; ++p) {
                    real& v = value[j + p];
                    if (column + p >= live_classes) v = 0;
                    else if (MODE == GRADIENT) v = weight * residual_value(v, rest, inverse, target.at(column + p));
                    else if (MODE == PROBABILITIES) v = v * inverse;
                    else if (MODE == LOG_PROBABILITIES) v = v - log_sum;
                }
                if (live && column < stride_g) store_pack(g_row + column, value + j);
            }
        }
    }

    if (has_targets(MODE)) {
        __syncthreads();
        if (threadIdx.x < 32) {
            const double sum = tile_sum(row_loss[threadIdx.x], row_loss[threadIdx.x + 32]);
            if (threadIdx.x == 0) loss[problem * loss_stride + tile] = sum;
        }
    }
}

// ---- any K: one block per row and problem ---------------------------------------------------------
// grid: rows * problems blocks, problems of a row side by side; block: THREADS threads; static shared memory only.
// Two passes over the row (three in HESSIAN): a running maximum with the sums relative to it, then the output.

template <typename real, typename out, Mode MODE, int THREADS>
__global__ void __launch_bounds__(THREADS, sizeof(real) == 8 ? 3 : 4)  // see residual_rows
residual_block(const real* z, long long ld_z, out* g, long long ld_g, const real* direction, int rows, int classes,
               int problems, const real* __restrict__ bias, const real* __restrict__ direction_bias,
               const int* __restrict__ labels, const real* __restrict__ targets, long long ld_t, real label_smoothing,
               const real* __restrict__ weights, long long weight_row_stride, long long weight_problem_stride,
               double* __restrict__ loss, long long loss_stride)
{
    constexpr int PACK = 16 / sizeof(real);
    constexpr int WARPS = THREADS / 32;
    __shared__ real warp_top[WARPS];
    __shared__ real warp_rest[WARPS];
    __shared__ real warp_ties[WARPS];
    __shared__ real warp_sum[WARPS];
    __shared__ int warp_place[WARPS];

    const int problem = blockIdx.x % problems;
    const long long row = blockIdx.x / problems;
    if (row >= rows) return;
    const int stride = round_up<real>(classes), stride_g = round_up<out>(classes);
    const long long first_column = (long long)problem * stride;
    const real* z_row = z + row * ld_z + first_column;
    const real* v_row = direction + row * ld_z + first_column;
    out* g_row = g + row * ld_g + (long long)problem * stride_g;
    if (bias) bias += first_column;
    if (direction_bias) direction_bias += first_column;
    const Targets<real> target(labels, targets, ld_t, row, classes, label_smoothing);
    real weight = 1;
    if (has_weights(MODE) && weights) weight = weights[row * weight_row_stride + problem * weight_problem_stride];

    // Pass 1: the maximum so far, where it was, and the sums relative to it.
    real top = Limits<real>::lowest(), rest = 0, ties = 0;
    int place = 0;
    for (int column = threadIdx.x * PACK; column < classes; column += THREADS * PACK) {
        real value[PACK];
        load_logits(z_row, bias, column, classes, Limits<real>::minus_infinity(), value);
        real largest = top;
#pragma unroll
        for (int p = 0; p < PACK; ++p) {
            if (value[p] > largest) {
                largest = value[p];
                place = column + p;
            }
        }
        if (largest > top) {
            rest = (rest + ties) * exp(top - largest);
            ties = 0;
            top = largest;
        }
#pragma unroll
        for (int p = 0; p < PACK; ++p) {
            const real e = exp(value[p] - top);
            if (e == real(1)) ties += real(1);
            else rest += e;
        }
    }
    const real own_top = top;
    top = lanes_max<32>(top);
    const bool holds_top = own_top == top;
    rest = lanes_sum<32>(holds_top ? rest : (rest + ties) * exp(own_top - top));
    ties = lanes_sum<32>(holds_top ? ties : real(0));
    if (MODE == HESSIAN) place = lanes_max<32>(holds_top ? place : 0);
    if (threadIdx.x % 32 == 0) {
        warp_top[threadIdx.x / 32] = top;
        warp_rest[threadIdx.x / 32] = rest;
        warp_ties[threadIdx.x / 32] = ties;
        if (MODE == HESSIAN) warp_place[threadIdx.x / 32] = place;
    }
    __syncthreads();
    top = warp_top[0];
#pragma unroll
    for (int i = 1; i < WARPS; ++i) top = max(top, warp_top[i]);
    rest = 0;
    ties = 0;
#pragma unroll
    for (int i = 0; i < WARPS; ++i) {
        const bool is_top = warp_top[i] == top;
        rest += is_top ? warp_rest[i] : (warp_rest[i] + warp_ties[i]) * exp(warp_top[i] - top);
        ties += is_top ? warp_ties[i] : real(0);
        if (MODE == HESSIAN && is_top) place = warp_place[i];
    }
    rest += ties - real(1);
    const real inverse = real(1) / (real(1) + rest);

    real anchor = 0, mean = 0;
    if (MODE == HESSIAN) {  // relative to v at the largest logit: then v - y . v does not cancel there
        anchor = v_row[place] + (direction_bias ? direction_bias[place] : real(0));
        for (int column = threadIdx.x * PACK; column < classes; column += THREADS * PACK) {
            real value[PACK], v[PACK];
            load_logits(z_row, bias, column, classes, Limits<real>::minus_infinity(), value);
            load_logits(v_row, direction_bias, column, classes, real(0), v);
#pragma unroll
            for (int p = 0; p < PACK; ++p) mean += exp(value[p] - top) * (v[p] - anchor);
        }
        mean = block_sum<WARPS>(mean, warp_sum) * inverse;  // its barrier: every thread has read the anchor
    }

    // Pass 2: the output, and the sum of t (z - top).
    const real log_sum = has_targets(MODE) || MODE == LOG_PROBABILITIES ? log1p(rest) : real(0);
    real expected = 0;
    for (int column = threadIdx.x * PACK; column < stride_g; column += THREADS * PACK) {
        real value[PACK], v[PACK];
        load_logits(z_row, bias, column, classes, Limits<real>::minus_infinity(), value);
        if (MODE == HESSIAN) load_logits(v_row, direction_bias, column, classes, real(0), v);
#pragma unroll
        for (int p = 0; p < PACK; ++p) {
            const real difference = value[p] - top;
            const real e = exp(difference);
            if (column + p >= classes) {
                value[p] = 0;
            } else if (has_targets(MODE)) {
                const Pair<real> t = target.at(column + p);
                if (t.first != real(0)) expected += t.first * difference;
                value[p] = weight * residual_value(e, rest, inverse, t);
            } else if (MODE == PROBABILITIES) {
                value[p] = e * inverse;
            } else if (MODE == LOG_PROBABILITIES) {
                value[p] = difference - log_sum;
            } else {
                value[p] = weight * (e * inverse * (v[p] - anchor - mean));
            }
        }
        if (MODE != LOSS) store_pack(g_row + column, value);
    }
    if (has_targets(MODE)) {
        expected = block_sum<WARPS>(expected, warp_sum);
        if (threadIdx.x == 0)
            loss[problem * loss_stride + row] = (double)weight * ((double)log_sum - (double)expected);
    }
}
