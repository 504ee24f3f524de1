/*
 * edgekit_decode.h: class logits at low resolution -> label map at full resolution, exactly. One file, C99 or C++11,
 * no dependency, no allocation. Part of edgekit. SPDX-License-Identifier: Apache-2.0. Copy it into your app.
 *
 * WHAT IT GIVES
 *
 * The labels of a bilinear resize with half-pixel centres (PyTorch's interpolate(mode="bilinear",
 * align_corners=False)) followed by an argmax whose ties go to the lowest class, without ever making the resized
 * logits: 19 classes at 128x256 become a 1024x2048 map in one or two milliseconds on one core.
 *
 * HOW TO USE IT
 *
 * Include it wherever you call it. In exactly one C or C++ file say before that
 *
 *     #define EDGEKIT_DECODE_IMPLEMENTATION
 *     #include "edgekit_decode.h"
 *
 * and, where the logits are (float32 [1, 19, 128, 256] here, as PyTorch, ONNX, Core ML and TensorRT give them):
 *
 *     edgekit_decode_logits logits = edgekit_decode_planar(pointer, EDGEKIT_DECODE_FLOAT32, 19, 128, 256);
 *     edgekit_decode_labels labels = { label_map, 1024, 2048, 2048 };       // pointer, height, width, bytes per row
 *     size_t size = edgekit_decode_scratch_bytes(&logits, &labels);         // once
 *     void *scratch = malloc(size);                                         // once, one for each thread
 *     ...
 *     int status = edgekit_decode(&logits, &labels, 0, 1024, scratch, size);  // every frame
 *     if (status != EDGEKIT_DECODE_OK) puts(edgekit_decode_status_text(status));
 *
 * edgekit_decode_interleaved() describes [1, 128, 256, 19] (TensorFlow Lite, OpenVINO). Any other layout, rows with
 * padding for one, is read in place too: fill in the strides of edgekit_decode_logits yourself.
 *
 * To use several threads, give each its own scratch memory and its own rows: edgekit_decode(..., 0, 512, ...) and
 * edgekit_decode(..., 512, 1024, ...). There is no other state. The map is the same for every division of the rows.
 *
 * WHAT IT TAKES
 *
 * - 1..256 classes; all sides 1..65536. Any ratio of the sizes, whole or not; a smaller map than the logits too (then
 *   as PyTorch without antialias: most logits are never looked at).
 * - float32; float16 as its 16 bits; int8 and uint8. Quantized logits must have one scale (positive) and one zero point
 *   for all classes: then neither changes which class leads, and neither is asked for. Logits with a scale for each
 *   class must be dequantized first.
 * - Logits that are not finite: each is first limited to -1e38..1e38, and a NaN counts as -1e38. So a class masked by
 *   -infinity never leads where another class has a number.
 *
 * HOW EXACT IT IS
 *
 * The source position of an output pixel is computed in integers, so each weight is the nearest float32. A pixel's
 * value is top * w + bottom * w' on the left and on the right, then left * w + right * w', in float32, each product and
 * each sum rounded. Classes whose true values differ by more than some 1e-7 of the logits around them are told apart;
 * equal logits tie, and the lowest class wins. With logits that are small whole numbers (int8, uint8) and ratios that
 * are powers of two nothing is rounded at all. In a thread that flushes subnormal numbers (-ffast-math, PyTorch's
 * set_flush_denormal) logits below 1.2e-38 count as zero.
 *
 * Plain C, SSE2, AVX2, AVX-512 and NEON give the same labels, bit for bit, as long as the compiler does not fuse
 * products and sums: never with clang's defaults nor in the SIMD code; GCC's plain C (EDGEKIT_DECODE_NO_SIMD) needs
 * -ffp-contract=off or -std=c99 where the processor has fused instructions. Fused, near ties may fall otherwise.
 *
 * WHY IT IS FAST
 *
 * Between four neighbouring source points every interpolated value is a convex combination of the four corners. So a
 * class that leads at all four leads everywhere between them, and that cell is filled. In the other cells, a class that
 * lies below one and the same other class at all four corners can win nowhere; what remains, two or three classes as a
 * rule, is interpolated.
 *
 * OPTIONS, as macros before the implementation
 *
 *     EDGEKIT_DECODE_NO_SIMD     plain C only. Otherwise AVX-512, AVX2, SSE2 or NEON as the compiler's target has it.
 *     EDGEKIT_DECODE_FUNCTION    what stands before each public function; `static` keeps them in one file.
 */
#ifndef EDGEKIT_DECODE_H
#define EDGEKIT_DECODE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#ifndef EDGEKIT_DECODE_FUNCTION
#define EDGEKIT_DECODE_FUNCTION extern
#endif

/** The largest side and the most classes that are supported. */
#define EDGEKIT_DECODE_MAXIMUM_SIDE 65536
#define EDGEKIT_DECODE_MAXIMUM_CLASSES 256

/** Types of logits. */
enum {
    EDGEKIT_DECODE_FLOAT32 = 0,
    EDGEKIT_DECODE_INT8 = 1,
    EDGEKIT_DECODE_UINT8 = 2,
    EDGEKIT_DECODE_FLOAT16 = 3 /* IEEE binary16, read as uint16_t */
};

/** What edgekit_decode() returns. */
enum {
    EDGEKIT_DECODE_OK = 0,
    EDGEKIT_DECODE_NULL_POINTER = -1,      /* an argument, the logits, the labels or the scratch memory */
    EDGEKIT_DECODE_UNKNOWN_TYPE = -2,      /* none of the types above */
    EDGEKIT_DECODE_UNALIGNED = -3,         /* the logits' address is no multiple of their type's size */
    EDGEKIT_DECODE_CLASSES = -4,           /* fewer than 1 or more than 256 */
    EDGEKIT_DECODE_SIDES = -5,             /* a side is below 1 or above 65536 */
    EDGEKIT_DECODE_LABEL_ROW_STRIDE = -6,  /* shorter than a row of labels */
    EDGEKIT_DECODE_ROWS = -7,              /* not 0 <= first_row <= end_row <= height of the labels */
    EDGEKIT_DECODE_SCRATCH_TOO_SMALL = -8  /* less than edgekit_decode_scratch_bytes() */
};

/** Where logits lie: that of class c at row y and column x is data[c*class_stride + y*row_stride + x*column_stride].
 *  Strides count elements, not bytes, and may be negative or zero. */
typedef struct edgekit_decode_logits {
    const void *data;
    int32_t type;
    int32_t classes;
    int32_t height;
    int32_t width;
    ptrdiff_t class_stride;
    ptrdiff_t row_stride;
    ptrdiff_t column_stride;
} edgekit_decode_logits;

/** Where labels go: one byte a pixel, row_stride bytes from row to row. Bytes between the rows are not touched. */
typedef struct edgekit_decode_labels {
    uint8_t *data;
    int32_t height;
    int32_t width;
    ptrdiff_t row_stride;
} edgekit_decode_labels;

/** Logits [classes, height, width] without gaps (NCHW). */
EDGEKIT_DECODE_FUNCTION edgekit_decode_logits edgekit_decode_planar(const void *data, int32_t type, int32_t classes,
                                                                    int32_t height, int32_t width);

/** Logits [height, width, classes] without gaps (NHWC). */
EDGEKIT_DECODE_FUNCTION edgekit_decode_logits edgekit_decode_interleaved(const void *data, int32_t type,
                                                                         int32_t classes, int32_t height,
                                                                         int32_t width);

/** Bytes of scratch memory that edgekit_decode() needs for these sizes; no pointer inside is looked at. 0 for types,
 *  classes and sides that edgekit_decode() refuses. The memory needs no alignment and no initial contents. */
EDGEKIT_DECODE_FUNCTION size_t edgekit_decode_scratch_bytes(const edgekit_decode_logits *logits,
                                                            const edgekit_decode_labels *labels);

/** Write rows first_row <= y < end_row of the label map. Returns EDGEKIT_DECODE_OK, or a negative number and writes
 *  nothing. Calls with different rows and different scratch memory may run at the same time. */
EDGEKIT_DECODE_FUNCTION int edgekit_decode(const edgekit_decode_logits *logits, const edgekit_decode_labels *labels,
                                           int32_t first_row, int32_t end_row, void *scratch, size_t scratch_bytes);

/** One English sentence for what edgekit_decode() returned. */
EDGEKIT_DECODE_FUNCTION const char *edgekit_decode_status_text(int status);

/** Which instructions the implementation was compiled for: "avx512", "avx2", "sse2", "neon" or "scalar". */
EDGEKIT_DECODE_FUNCTION const char *edgekit_decode_instructions(void);

#ifdef __cplusplus
}
#endif

#endif /* EDGEKIT_DECODE_H */

#if defined(EDGEKIT_DECODE_IMPLEMENTATION) && !defined(EDGEKIT_DECODE_IMPLEMENTED)
#define EDGEKIT_DECODE_IMPLEMENTED

#include <string.h>

#if !defined(EDGEKIT_DECODE_NO_SIMD)
#if defined(__AVX512F__) && defined(__AVX512VL__) && defined(__AVX512BW__)
#define EDGEKIT_DECODE_AVX512 1
#include <immintrin.h>
#elif defined(__AVX2__)
#define EDGEKIT_DECODE_AVX2 1
#include <immintrin.h>
#elif defined(__SSE2__)
#define EDGEKIT_DECODE_SSE2 1
#include <emmintrin.h>
#elif defined(__aarch64__) && defined(__ARM_NEON)
#define EDGEKIT_DECODE_NEON 1
#include <arm_neon.h>
#endif
#endif

#if defined(__GNUC__) || defined(__clang__) || defined(_MSC_VER)
#define EDGEKIT_DECODE_RESTRICT __restrict
#else
#define EDGEKIT_DECODE_RESTRICT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* How many columns are interpolated together, and how many rows. */
#define EDGEKIT_DECODE_LANES 8
#define EDGEKIT_DECODE_ROW_BLOCK 16

/* The largest magnitude of a logit: interpolating never overflows, so no NaN can arise after loading. */
#define EDGEKIT_DECODE_LIMIT 1e38f

/* ---- eight lanes ------------------------------------------------------------------------------------------------
 *
 * edgekit_decode_lanes is eight floats, edgekit_decode_lane_labels the class of each.
 */

/* Keeps GCC, which may fuse even intrinsics, from fusing a product with the sum that follows. It costs nothing. */
#if defined(__GNUC__) && !defined(__clang__) && (defined(__FMA__) || defined(__aarch64__))
#if defined(__aarch64__)
#define EDGEKIT_DECODE_ROUNDED(product) __asm__("" : "+w"(product))
#else
#define EDGEKIT_DECODE_ROUNDED(product) __asm__("" : "+v"(product))
#endif
#else
#define EDGEKIT_DECODE_ROUNDED(product) ((void)0)
#endif

#if defined(EDGEKIT_DECODE_AVX512) || defined(EDGEKIT_DECODE_AVX2)

typedef __m256 edgekit_decode_lanes;

static inline edgekit_decode_lanes edgekit_decode_load(const float *from) { return _mm256_loadu_ps(from); }

static inline void edgekit_decode_store(float *to, edgekit_decode_lanes lanes) { _mm256_storeu_ps(to, lanes); }

static inline edgekit_decode_lanes edgekit_decode_repeat(const float *from) { return _mm256_broadcast_ss(from); }

static inline edgekit_decode_lanes edgekit_decode_limited(edgekit_decode_lanes lanes) {
    /* of a NaN and a number, max gives its second argument */
    lanes = _mm256_max_ps(lanes, _mm256_set1_ps(-EDGEKIT_DECODE_LIMIT));
    return _mm256_min_ps(lanes, _mm256_set1_ps(EDGEKIT_DECODE_LIMIT));
}

static inline edgekit_decode_lanes edgekit_decode_mix(edgekit_decode_lanes a, edgekit_decode_lanes weight_a,
                                                      edgekit_decode_lanes b, edgekit_decode_lanes weight_b) {
    edgekit_decode_lanes first = _mm256_mul_ps(a, weight_a), second = _mm256_mul_ps(b, weight_b);
    EDGEKIT_DECODE_ROUNDED(first);
    EDGEKIT_DECODE_ROUNDED(second);
    return _mm256_add_ps(first, second);
}

/* A bit for each of eight classes from `first` on that lies below class `leader` at all four corners. */
static inline unsigned edgekit_decode_below(const float *const *corners, size_t first, size_t leader) {
#ifdef EDGEKIT_DECODE_AVX512
    __mmask8 below = _mm256_cmp_ps_mask(edgekit_decode_load(corners[0] + first),
                                        edgekit_decode_repeat(corners[0] + leader), _CMP_LT_OQ);
    for (int corner = 1; corner < 4; corner++)
        below = _mm256_mask_cmp_ps_mask(below, edgekit_decode_load(corners[corner] + first),
                                        edgekit_decode_repeat(corners[corner] + leader), _CMP_LT_OQ);
    return (unsigned)below;
#else
    __m256 below = _mm256_cmp_ps(edgekit_decode_load(corners[0] + first), edgekit_decode_repeat(corners[0] + leader),
                                 _CMP_LT_OQ);
    for (int corner = 1; corner < 4; corner++)
        below = _mm256_and_ps(below, _mm256_cmp_ps(edgekit_decode_load(corners[corner] + first),
                                                   edgekit_decode_repeat(corners[corner] + leader), _CMP_LT_OQ));
    return (unsigned)_mm256_movemask_ps(below);
#endif
}

/* Row i of the result is column i of the eight rows of lanes. */
static inline void edgekit_decode_transpose(edgekit_decode_lanes *rows) {
    const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpackhi_ps(rows[0], rows[1]);
    const __m256 c = _mm256_unpacklo_ps(rows[2], rows[3]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
    const __m256 e = _mm256_unpacklo_ps(rows[4], rows[5]), f = _mm256_unpackhi_ps(rows[4], rows[5]);
    const __m256 g = _mm256_unpacklo_ps(rows[6], rows[7]), h = _mm256_unpackhi_ps(rows[6], rows[7]);
    const __m256 ac0 = _mm256_shuffle_ps(a, c, 0x44), ac1 = _mm256_shuffle_ps(a, c, 0xee);
    const __m256 bd0 = _mm256_shuffle_ps(b, d, 0x44), bd1 = _mm256_shuffle_ps(b, d, 0xee);
    const __m256 eg0 = _mm256_shuffle_ps(e, g, 0x44), eg1 = _mm256_shuffle_ps(e, g, 0xee);
    const __m256 fh0 = _mm256_shuffle_ps(f, h, 0x44), fh1 = _mm256_shuffle_ps(f, h, 0xee);
    rows[0] = _mm256_permute2f128_ps(ac0, eg0, 0x20);
    rows[1] = _mm256_permute2f128_ps(ac1, eg1, 0x20);
    rows[2] = _mm256_permute2f128_ps(bd0, fh0, 0x20);
    rows[3] = _mm256_permute2f128_ps(bd1, fh1, 0x20);
    rows[4] = _mm256_permute2f128_ps(ac0, eg0, 0x31);
    rows[5] = _mm256_permute2f128_ps(ac1, eg1, 0x31);
    rows[6] = _mm256_permute2f128_ps(bd0, fh0, 0x31);
    rows[7] = _mm256_permute2f128_ps(bd1, fh1, 0x31);
}

#ifdef EDGEKIT_DECODE_AVX512

typedef __m128i edgekit_decode_lane_labels; /* one byte each */

static inline edgekit_decode_lane_labels edgekit_decode_repeat_label(int32_t label) {
    return _mm_set1_epi8((char)label);
}

/* Where `value` is above `best` it becomes the best, and `label` the label. */
static inline void edgekit_decode_lead(edgekit_decode_lanes *best, edgekit_decode_lane_labels *labels,
                                       edgekit_decode_lanes value, edgekit_decode_lane_labels label) {
    *labels = _mm_mask_mov_epi8(*labels, (__mmask16)_mm256_cmp_ps_mask(value, *best, _CMP_GT_OQ), label);
    *best = _mm256_max_ps(value, *best);
}

static inline void edgekit_decode_store_labels(uint8_t *to, edgekit_decode_lane_labels labels) {
    _mm_storel_epi64((__m128i *)(void *)to, labels);
}

#else

typedef __m256i edgekit_decode_lane_labels; /* 32 bits each, as wide as the comparison's masks */

static inline edgekit_decode_lane_labels edgekit_decode_repeat_label(int32_t label) {
    return _mm256_set1_epi32(label);
}

static inline void edgekit_decode_lead(edgekit_decode_lanes *best, edgekit_decode_lane_labels *labels,
                                       edgekit_decode_lanes value, edgekit_decode_lane_labels label) {
    *labels = _mm256_blendv_epi8(*labels, label, _mm256_castps_si256(_mm256_cmp_ps(value, *best, _CMP_GT_OQ)));
    *best = _mm256_max_ps(value, *best);
}

static inline void edgekit_decode_store_labels(uint8_t *to, edgekit_decode_lane_labels labels) {
    __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(labels), _mm256_extracti128_si256(labels, 1));
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

#endif

#elif defined(EDGEKIT_DECODE_SSE2)

typedef struct { __m128 low, high; } edgekit_decode_lanes;
typedef struct { __m128i low, high; } edgekit_decode_lane_labels;

static inline edgekit_decode_lanes edgekit_decode_load(const float *from) {
    edgekit_decode_lanes lanes;
    lanes.low = _mm_loadu_ps(from);
    lanes.high = _mm_loadu_ps(from + 4);
    return lanes;
}

static inline void edgekit_decode_store(float *to, edgekit_decode_lanes lanes) {
    _mm_storeu_ps(to, lanes.low);
    _mm_storeu_ps(to + 4, lanes.high);
}

static inline edgekit_decode_lanes edgekit_decode_repeat(const float *from) {
    edgekit_decode_lanes lanes;
    lanes.low = lanes.high = _mm_set1_ps(*from);
    return lanes;
}

static inline edgekit_decode_lanes edgekit_decode_limited(edgekit_decode_lanes lanes) {
    const __m128 lowest = _mm_set1_ps(-EDGEKIT_DECODE_LIMIT), highest = _mm_set1_ps(EDGEKIT_DECODE_LIMIT);
    lanes.low = _mm_min_ps(_mm_max_ps(lanes.low, lowest), highest); /* of a NaN and a number, the second argument */
    lanes.high = _mm_min_ps(_mm_max_ps(lanes.high, lowest), highest);
    return lanes;
}

static inline edgekit_decode_lanes edgekit_decode_mix(edgekit_decode_lanes a, edgekit_decode_lanes weight_a,
                                                      edgekit_decode_lanes b, edgekit_decode_lanes weight_b) {
    a.low = _mm_mul_ps(a.low, weight_a.low);
    a.high = _mm_mul_ps(a.high, weight_a.high);
    b.low = _mm_mul_ps(b.low, weight_b.low);
    b.high = _mm_mul_ps(b.high, weight_b.high);
    EDGEKIT_DECODE_ROUNDED(a.low);
    EDGEKIT_DECODE_ROUNDED(a.high);
    EDGEKIT_DECODE_ROUNDED(b.low);
    EDGEKIT_DECODE_ROUNDED(b.high);
    a.low = _mm_add_ps(a.low, b.low);
    a.high = _mm_add_ps(a.high, b.high);
    return a;
}

static inline unsigned edgekit_decode_below(const float *const *corners, size_t first, size_t leader) {
    edgekit_decode_lanes lanes = edgekit_decode_load(corners[0] + first);
    edgekit_decode_lanes other = edgekit_decode_repeat(corners[0] + leader);
    __m128 low = _mm_cmplt_ps(lanes.low, other.low), high = _mm_cmplt_ps(lanes.high, other.high);
    for (int corner = 1; corner < 4; corner++) {
        lanes = edgekit_decode_load(corners[corner] + first);
        other = edgekit_decode_repeat(corners[corner] + leader);
        low = _mm_and_ps(low, _mm_cmplt_ps(lanes.low, other.low));
        high = _mm_and_ps(high, _mm_cmplt_ps(lanes.high, other.high));
    }
    return (unsigned)_mm_movemask_ps(low) | (unsigned)_mm_movemask_ps(high) << 4;
}

static inline void edgekit_decode_transpose_four(__m128 *a, __m128 *b, __m128 *c, __m128 *d) {
    const __m128 ab0 = _mm_unpacklo_ps(*a, *b), ab1 = _mm_unpackhi_ps(*a, *b);
    const __m128 cd0 = _mm_unpacklo_ps(*c, *d), cd1 = _mm_unpackhi_ps(*c, *d);
    *a = _mm_movelh_ps(ab0, cd0);
    *b = _mm_movehl_ps(cd0, ab0);
    *c = _mm_movelh_ps(ab1, cd1);
    *d = _mm_movehl_ps(cd1, ab1);
}

/* Row i of the result is column i of the eight rows of lanes. */
static inline void edgekit_decode_transpose(edgekit_decode_lanes *rows) {
    for (int i = 0; i < 4; i++) {
        const __m128 lower = rows[i + 4].low; /* the upper right and the lower left quarter change places */
        rows[i + 4].low = rows[i].high;
        rows[i].high = lower;
    }
    for (int half = 0; half < 8; half += 4) {
        edgekit_decode_transpose_four(&rows[half].low, &rows[half + 1].low, &rows[half + 2].low, &rows[half + 3].low);
        edgekit_decode_transpose_four(&rows[half].high, &rows[half + 1].high, &rows[half + 2].high,
                                      &rows[half + 3].high);
    }
}

static inline edgekit_decode_lane_labels edgekit_decode_repeat_label(int32_t label) {
    edgekit_decode_lane_labels labels;
    labels.low = labels.high = _mm_set1_epi32(label);
    return labels;
}

/* SSE2 has no blend: a label changes where its difference to the new one is let through. */
static inline void edgekit_decode_lead(edgekit_decode_lanes *best, edgekit_decode_lane_labels *labels,
                                       edgekit_decode_lanes value, edgekit_decode_lane_labels label) {
    __m128i low = _mm_castps_si128(_mm_cmpgt_ps(value.low, best->low));
    __m128i high = _mm_castps_si128(_mm_cmpgt_ps(value.high, best->high));
    labels->low = _mm_xor_si128(labels->low, _mm_and_si128(low, _mm_xor_si128(labels->low, label.low)));
    labels->high = _mm_xor_si128(labels->high, _mm_and_si128(high, _mm_xor_si128(labels->high, label.high)));
    best->low = _mm_max_ps(value.low, best->low);
    best->high = _mm_max_ps(value.high, best->high);
}

static inline void edgekit_decode_store_labels(uint8_t *to, edgekit_decode_lane_labels labels) {
    __m128i words = _mm_packs_epi32(labels.low, labels.high);
    _mm_storel_epi64((__m128i *)(void *)to, _mm_packus_epi16(words, words));
}

#elif defined(EDGEKIT_DECODE_NEON)

typedef struct { float32x4_t low, high; } edgekit_decode_lanes;
typedef struct { uint32x4_t low, high; } edgekit_decode_lane_labels;

static inline edgekit_decode_lanes edgekit_decode_load(const float *from) {
    edgekit_decode_lanes lanes;
    lanes.low = vld1q_f32(from);
    lanes.high = vld1q_f32(from + 4);
    return lanes;
}

static inline void edgekit_decode_store(float *to, edgekit_decode_lanes lanes) {
    vst1q_f32(to, lanes.low);
    vst1q_f32(to + 4, lanes.high);
}

static inline edgekit_decode_lanes edgekit_decode_repeat(const float *from) {
    edgekit_decode_lanes lanes;
    lanes.low = lanes.high = vld1q_dup_f32(from);
    return lanes;
}

static inline edgekit_decode_lanes edgekit_decode_limited(edgekit_decode_lanes lanes) {
    const float32x4_t lowest = vdupq_n_f32(-EDGEKIT_DECODE_LIMIT), highest = vdupq_n_f32(EDGEKIT_DECODE_LIMIT);
    lanes.low = vbslq_f32(vcgtq_f32(lanes.low, lowest), lanes.low, lowest); /* a NaN is not above: max would keep it */
    lanes.high = vbslq_f32(vcgtq_f32(lanes.high, lowest), lanes.high, lowest);
    lanes.low = vminq_f32(lanes.low, highest);
    lanes.high = vminq_f32(lanes.high, highest);
    return lanes;
}

static inline edgekit_decode_lanes edgekit_decode_mix(edgekit_decode_lanes a, edgekit_decode_lanes weight_a,
                                                      edgekit_decode_lanes b, edgekit_decode_lanes weight_b) {
    a.low = vmulq_f32(a.low, weight_a.low);
    a.high = vmulq_f32(a.high, weight_a.high);
    b.low = vmulq_f32(b.low, weight_b.low);
    b.high = vmulq_f32(b.high, weight_b.high);
    EDGEKIT_DECODE_ROUNDED(a.low);
    EDGEKIT_DECODE_ROUNDED(a.high);
    EDGEKIT_DECODE_ROUNDED(b.low);
    EDGEKIT_DECODE_ROUNDED(b.high);
    a.low = vaddq_f32(a.low, b.low);
    a.high = vaddq_f32(a.high, b.high);
    return a;
}

static inline unsigned edgekit_decode_below(const float *const *corners, size_t first, size_t leader) {
    static const uint8_t bits[8] = {1, 2, 4, 8, 16, 32, 64, 128};
    edgekit_decode_lanes lanes = edgekit_decode_load(corners[0] + first);
    edgekit_decode_lanes other = edgekit_decode_repeat(corners[0] + leader);
    uint32x4_t low = vcltq_f32(lanes.low, other.low), high = vcltq_f32(lanes.high, other.high);
    for (int corner = 1; corner < 4; corner++) {
        lanes = edgekit_decode_load(corners[corner] + first);
        other = edgekit_decode_repeat(corners[corner] + leader);
        low = vandq_u32(low, vcltq_f32(lanes.low, other.low));
        high = vandq_u32(high, vcltq_f32(lanes.high, other.high));
    }
    return vaddv_u8(vand_u8(vmovn_u16(vcombine_u16(vmovn_u32(low), vmovn_u32(high))), vld1_u8(bits)));
}

static inline void edgekit_decode_transpose_four(float32x4_t *a, float32x4_t *b, float32x4_t *c, float32x4_t *d) {
    const float32x4x2_t ab = vtrnq_f32(*a, *b), cd = vtrnq_f32(*c, *d);
    *a = vcombine_f32(vget_low_f32(ab.val[0]), vget_low_f32(cd.val[0]));
    *b = vcombine_f32(vget_low_f32(ab.val[1]), vget_low_f32(cd.val[1]));
    *c = vcombine_f32(vget_high_f32(ab.val[0]), vget_high_f32(cd.val[0]));
    *d = vcombine_f32(vget_high_f32(ab.val[1]), vget_high_f32(cd.val[1]));
}

/* Row i of the result is column i of the eight rows of lanes. */
static inline void edgekit_decode_transpose(edgekit_decode_lanes *rows) {
    for (int i = 0; i < 4; i++) {
        const float32x4_t lower = rows[i + 4].low; /* the upper right and the lower left quarter change places */
        rows[i + 4].low = rows[i].high;
        rows[i].high = lower;
    }
    for (int half = 0; half < 8; half += 4) {
        edgekit_decode_transpose_four(&rows[half].low, &rows[half + 1].low, &rows[half + 2].low, &rows[half + 3].low);
        edgekit_decode_transpose_four(&rows[half].high, &rows[half + 1].high, &rows[half + 2].high,
                                      &rows[half + 3].high);
    }
}

static inline edgekit_decode_lane_labels edgekit_decode_repeat_label(int32_t label) {
    edgekit_decode_lane_labels labels;
    labels.low = labels.high = vdupq_n_u32((uint32_t)label);
    return labels;
}

static inline void edgekit_decode_lead(edgekit_decode_lanes *best, edgekit_decode_lane_labels *labels,
                                       edgekit_decode_lanes value, edgekit_decode_lane_labels label) {
    labels->low = vbslq_u32(vcgtq_f32(value.low, best->low), label.low, labels->low);
    labels->high = vbslq_u32(vcgtq_f32(value.high, best->high), label.high, labels->high);
    best->low = vmaxq_f32(value.low, best->low);
    best->high = vmaxq_f32(value.high, best->high);
}

static inline void edgekit_decode_store_labels(uint8_t *to, edgekit_decode_lane_labels labels) {
    vst1_u8(to, vmovn_u16(vcombine_u16(vmovn_u32(labels.low), vmovn_u32(labels.high))));
}

#else /* plain C, in loops of eight that compilers vectorize */

typedef struct { float lane[EDGEKIT_DECODE_LANES]; } edgekit_decode_lanes;
typedef struct { int32_t lane[EDGEKIT_DECODE_LANES]; } edgekit_decode_lane_labels;

static inline float edgekit_decode_limited_float(float value) {
    value = value > -EDGEKIT_DECODE_LIMIT ? value : -EDGEKIT_DECODE_LIMIT;
    return value < EDGEKIT_DECODE_LIMIT ? value : EDGEKIT_DECODE_LIMIT;
}

static inline edgekit_decode_lanes edgekit_decode_load(const float *from) {
    edgekit_decode_lanes lanes;
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) lanes.lane[i] = from[i];
    return lanes;
}

static inline void edgekit_decode_store(float *to, edgekit_decode_lanes lanes) {
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) to[i] = lanes.lane[i];
}

static inline edgekit_decode_lanes edgekit_decode_repeat(const float *from) {
    edgekit_decode_lanes lanes;
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) lanes.lane[i] = *from;
    return lanes;
}

static inline edgekit_decode_lanes edgekit_decode_limited(edgekit_decode_lanes lanes) {
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) lanes.lane[i] = edgekit_decode_limited_float(lanes.lane[i]);
    return lanes;
}

static inline edgekit_decode_lanes edgekit_decode_mix(edgekit_decode_lanes a, edgekit_decode_lanes weight_a,
                                                      edgekit_decode_lanes b, edgekit_decode_lanes weight_b) {
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) {
        const float first = a.lane[i] * weight_a.lane[i], second = b.lane[i] * weight_b.lane[i];
        a.lane[i] = first + second; /* a statement of its own: in one with the products, clang would fuse them */
    }
    return a;
}

static inline unsigned edgekit_decode_below(const float *const *corners, size_t first, size_t leader) {
    int32_t flags[EDGEKIT_DECODE_LANES];
    unsigned below = 0;
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) flags[i] = corners[0][first + (size_t)i] < corners[0][leader];
    for (int corner = 1; corner < 4; corner++)
        for (int i = 0; i < EDGEKIT_DECODE_LANES; i++)
            flags[i] &= corners[corner][first + (size_t)i] < corners[corner][leader];
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) below |= (unsigned)flags[i] << i;
    return below;
}

/* Row i of the result is column i of the eight rows of lanes. */
static inline void edgekit_decode_transpose(edgekit_decode_lanes *rows) {
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++)
        for (int k = 0; k < i; k++) {
            const float lower = rows[i].lane[k];
            rows[i].lane[k] = rows[k].lane[i];
            rows[k].lane[i] = lower;
        }
}

static inline edgekit_decode_lane_labels edgekit_decode_repeat_label(int32_t label) {
    edgekit_decode_lane_labels labels;
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) labels.lane[i] = label;
    return labels;
}

static inline void edgekit_decode_lead(edgekit_decode_lanes *best, edgekit_decode_lane_labels *labels,
                                       edgekit_decode_lanes value, edgekit_decode_lane_labels label) {
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) {
        const int above = value.lane[i] > best->lane[i];
        labels->lane[i] = above ? label.lane[i] : labels->lane[i];
        best->lane[i] = above ? value.lane[i] : best->lane[i];
    }
}

static inline void edgekit_decode_store_labels(uint8_t *to, edgekit_decode_lane_labels labels) {
    for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) to[i] = (uint8_t)labels.lane[i];
}

#endif

/* ---- loading ------------------------------------------------------------------------------------------------- */

/* IEEE binary16 -> binary32, exact, without a table and without float16 hardware. */
static inline float edgekit_decode_half(uint16_t half) {
    const uint32_t magnitude = (uint32_t)half & 0x7fffu;
    const float subnormal = (float)(int32_t)magnitude * (1.0f / 16777216.0f);
    /* exponent 31 (infinities and NaN) becomes 255, the others move from bias 15 to bias 127 */
    uint32_t bits = (magnitude << 13) + (magnitude >= 0x7c00u ? 0x70000000u : 0x38000000u);
    float value;
    memcpy(&value, &bits, sizeof value);
    value = magnitude < 0x0400u ? subnormal : value;
    return (half & 0x8000u) ? -value : value;
}

/* One source row as float32 at to[c * class_pitch + x * column_pitch]. One of the pitches is 1: column_pitch where the
 * source's columns lie beside one another, class_pitch elsewhere. */
#define EDGEKIT_DECODE_COPIER(NAME, TYPE, TO_FLOAT)                                                                    \
    static void NAME(const edgekit_decode_logits *logits, int32_t index, float *EDGEKIT_DECODE_RESTRICT to,            \
                     size_t class_pitch, size_t column_pitch) {                                                        \
        const ptrdiff_t column_stride = logits->column_stride, class_stride = logits->class_stride;                    \
        const TYPE *EDGEKIT_DECODE_RESTRICT row = (const TYPE *)logits->data + index * logits->row_stride;             \
        const int32_t width = logits->width, classes = logits->classes;                                                \
        if (column_pitch == 1) {                                                                                       \
            for (int32_t c = 0; c < classes; c++, to += class_pitch) {                                                 \
                const TYPE *EDGEKIT_DECODE_RESTRICT plane = row + c * class_stride;                                    \
                for (int32_t x = 0; x < width; x++) to[x] = TO_FLOAT(plane[x]);                                        \
            }                                                                                                          \
        } else if (class_stride == 1) { /* the loop below, with a step that the compiler knows */                      \
            for (int32_t x = 0; x < width; x++, to += column_pitch) {                                                  \
                const TYPE *EDGEKIT_DECODE_RESTRICT point = row + x * column_stride;                                   \
                for (int32_t c = 0; c < classes; c++) to[c] = TO_FLOAT(point[c]);                                      \
            }                                                                                                          \
        } else {                                                                                                       \
            for (int32_t x = 0; x < width; x++, to += column_pitch) {                                                  \
                const TYPE *EDGEKIT_DECODE_RESTRICT point = row + x * column_stride;                                   \
                for (int32_t c = 0; c < classes; c++) to[c] = TO_FLOAT(point[c * class_stride]);                       \
            }                                                                                                          \
        }                                                                                                              \
    }
#define EDGEKIT_DECODE_SAME(value) (value)
#define EDGEKIT_DECODE_FROM_INTEGER(value) ((float)(value))
EDGEKIT_DECODE_COPIER(edgekit_decode_copy_float32, float, EDGEKIT_DECODE_SAME)
EDGEKIT_DECODE_COPIER(edgekit_decode_copy_int8, int8_t, EDGEKIT_DECODE_FROM_INTEGER)
EDGEKIT_DECODE_COPIER(edgekit_decode_copy_uint8, uint8_t, EDGEKIT_DECODE_FROM_INTEGER)
EDGEKIT_DECODE_COPIER(edgekit_decode_copy_float16, uint16_t, edgekit_decode_half)

static void edgekit_decode_copy(const edgekit_decode_logits *logits, int32_t index, float *to, size_t class_pitch,
                                size_t column_pitch) {
    switch (logits->type) {
    case EDGEKIT_DECODE_FLOAT32: edgekit_decode_copy_float32(logits, index, to, class_pitch, column_pitch); break;
    case EDGEKIT_DECODE_INT8: edgekit_decode_copy_int8(logits, index, to, class_pitch, column_pitch); break;
    case EDGEKIT_DECODE_UINT8: edgekit_decode_copy_uint8(logits, index, to, class_pitch, column_pitch); break;
    default: edgekit_decode_copy_float16(logits, index, to, class_pitch, column_pitch); break;
    }
}

/* Read source row `index` into `points` (limited float32 [w, pitch], the classes of a point beside one another) and
 * find the class that leads at each point. */
static void edgekit_decode_load_row(const edgekit_decode_logits *logits, int32_t index, float *planes,
                                    size_t plane_pitch, float *points, size_t pitch, uint8_t *leaders) {
    const int by_planes = logits->column_stride == 1 && logits->class_stride != 1;
    if (by_planes)
        edgekit_decode_copy(logits, index, planes, plane_pitch, 1);
    else
        edgekit_decode_copy(logits, index, points, 1, pitch);
    for (int32_t x = 0; x < logits->width; x += EDGEKIT_DECODE_LANES) {
        const float below_all = -EDGEKIT_DECODE_LIMIT * 2.0f;
        edgekit_decode_lanes best = edgekit_decode_repeat(&below_all);
        edgekit_decode_lane_labels labels = edgekit_decode_repeat_label(0);
        for (int32_t c = 0; c < logits->classes; c += EDGEKIT_DECODE_LANES) {
            edgekit_decode_lanes block[EDGEKIT_DECODE_LANES];
            float *point = points + (size_t)x * pitch + c;
            const float *plane = planes + (size_t)c * plane_pitch + x;
            for (int i = 0; i < EDGEKIT_DECODE_LANES; i++)
                block[i] = edgekit_decode_limited(
                    edgekit_decode_load(by_planes ? plane + (size_t)i * plane_pitch : point + (size_t)i * pitch));
            if (by_planes) {
                for (int i = 0; i < EDGEKIT_DECODE_LANES; i++)
                    edgekit_decode_lead(&best, &labels, block[i], edgekit_decode_repeat_label(c + i));
                edgekit_decode_transpose(block);
            }
            for (int i = 0; i < EDGEKIT_DECODE_LANES; i++) edgekit_decode_store(point + (size_t)i * pitch, block[i]);
            if (!by_planes) {
                edgekit_decode_transpose(block);
                for (int i = 0; i < EDGEKIT_DECODE_LANES; i++)
                    edgekit_decode_lead(&best, &labels, block[i], edgekit_decode_repeat_label(c + i));
            }
        }
        edgekit_decode_store_labels(leaders + x, labels);
    }
}

/* ---- one call's memory --------------------------------------------------------------------------------------- */

/* The parts of the scratch memory. Every part begins at a multiple of 64 bytes. */
typedef struct edgekit_decode_memory {
    size_t pitch;        /* classes, rounded up to whole lanes */
    size_t plane_pitch;  /* the logits' width, rounded up and padded */
    float *left_weight;  /* [W + lanes] of the source column left of each output column */
    float *right_weight; /* [W + lanes] */
    int32_t *starts;     /* [w + 1] first output column of each source column */
    int32_t *cells;      /* [w] source columns of the cells that no class leads at all corners */
    float *planes;       /* [pitch, plane_pitch] a source row whose columns lie beside one another, as it came */
    float *points[2];    /* [w + lanes, pitch] the source rows with an even and with an odd number */
    uint8_t *leaders[2]; /* [w + lanes] */
    int32_t *candidates; /* [C] the classes that can win in a cell, ascending */
    float *sides;        /* [C, 2, ROW_BLOCK] each candidate's values on the left and the right edge of a cell */
    size_t bytes;
} edgekit_decode_memory;

static size_t edgekit_decode_place(size_t *bytes, size_t count, size_t each) {
    const size_t begin = *bytes;
    *bytes = (begin + count * each + 63) / 64 * 64;
    return begin;
}

/* Without `scratch`, only the sizes. */
static edgekit_decode_memory edgekit_decode_lay_out(const edgekit_decode_logits *logits,
                                                    const edgekit_decode_labels *labels, void *scratch) {
    const size_t classes = (size_t)logits->classes, width = (size_t)logits->width + EDGEKIT_DECODE_LANES;
    const size_t columns = (size_t)labels->width + EDGEKIT_DECODE_LANES;
    edgekit_decode_memory memory;
    size_t left, right, starts, cells, planes, points, odd_points, leaders, odd_leaders, candidates, sides;
    size_t bytes = 0;
    uint8_t *base = (uint8_t *)scratch;
    memset(&memory, 0, sizeof memory);
    memory.pitch = (classes + EDGEKIT_DECODE_LANES - 1) / EDGEKIT_DECODE_LANES * EDGEKIT_DECODE_LANES;
    /* one line more than needed: planes at a power of two would fall on the same cache sets */
    memory.plane_pitch = (width + 15) / 16 * 16 + 16;
    left = edgekit_decode_place(&bytes, columns, sizeof(float));
    right = edgekit_decode_place(&bytes, columns, sizeof(float));
    starts = edgekit_decode_place(&bytes, width, sizeof(int32_t));
    cells = edgekit_decode_place(&bytes, width, sizeof(int32_t));
    planes = edgekit_decode_place(&bytes, memory.pitch * memory.plane_pitch, sizeof(float));
    points = edgekit_decode_place(&bytes, width * memory.pitch, sizeof(float));
    odd_points = edgekit_decode_place(&bytes, width * memory.pitch, sizeof(float));
    leaders = edgekit_decode_place(&bytes, width, 1);
    odd_leaders = edgekit_decode_place(&bytes, width, 1);
    candidates = edgekit_decode_place(&bytes, classes, sizeof(int32_t));
    sides = edgekit_decode_place(&bytes, classes * 2 * EDGEKIT_DECODE_ROW_BLOCK, sizeof(float));
    memory.bytes = bytes + 63; /* for memory that begins anywhere */
    if (base == NULL) return memory;
    base += (64 - (uintptr_t)base % 64) % 64;
    memory.left_weight = (float *)(void *)(base + left);
    memory.right_weight = (float *)(void *)(base + right);
    memory.starts = (int32_t *)(void *)(base + starts);
    memory.cells = (int32_t *)(void *)(base + cells);
    memory.planes = (float *)(void *)(base + planes);
    memory.points[0] = (float *)(void *)(base + points);
    memory.points[1] = (float *)(void *)(base + odd_points);
    memory.leaders[0] = base + leaders;
    memory.leaders[1] = base + odd_leaders;
    memory.candidates = (int32_t *)(void *)(base + candidates);
    memory.sides = (float *)(void *)(base + sides);
    return memory;
}

/* Everything that is read without being loaded: classes that are not there lie below all others, points beyond the
 * width are whatever, but numbers. */
static void edgekit_decode_clear(const edgekit_decode_logits *logits, const edgekit_decode_memory *memory) {
    const size_t width = (size_t)logits->width, classes = (size_t)logits->classes, pitch = memory->pitch;
    const float below_all = -EDGEKIT_DECODE_LIMIT * 2.0f;
    for (size_t c = 0; c < pitch; c++)
        for (size_t x = c < classes ? width : 0; x < memory->plane_pitch; x++)
            memory->planes[c * memory->plane_pitch + x] = below_all;
    for (size_t x = 0; x < width + EDGEKIT_DECODE_LANES; x++)
        for (size_t c = x < width ? classes : 0; c < pitch; c++)
            memory->points[0][x * pitch + c] = memory->points[1][x * pitch + c] = below_all;
}

/* ---- interpolation ------------------------------------------------------------------------------------------- */

/* Where output position `index` of `target` lies among `length` source points: returns the point before it, with that
 * point's weight and the next one's. In integers but for the last divisions, so the weights are the nearest floats. */
static inline int32_t edgekit_decode_position(int32_t index, int32_t length, int32_t target, float *weight,
                                              float *next_weight) {
    const int32_t whole = 2 * target;
    int64_t position = (2 * (int64_t)index + 1) * length - target;
    int32_t rest;
    if (position < 0) position = 0;
    rest = (int32_t)(position % whole);
    *weight = (float)(whole - rest) / (float)whole;
    *next_weight = (float)rest / (float)whole;
    return (int32_t)(position / whole);
}

/* Weights of all output columns, and the first output column of each source column. */
static void edgekit_decode_columns(const edgekit_decode_logits *logits, const edgekit_decode_labels *labels,
                                   const edgekit_decode_memory *memory) {
    int32_t x, source = 0;
    memory->starts[0] = 0;
    for (x = 0; x < labels->width; x++) {
        const int32_t left = edgekit_decode_position(x, logits->width, labels->width, &memory->left_weight[x],
                                                     &memory->right_weight[x]);
        while (source < left) memory->starts[++source] = x;
    }
    while (source < logits->width) memory->starts[++source] = labels->width;
    for (x = labels->width; x < labels->width + EDGEKIT_DECODE_LANES; x++) /* read by the last lanes, never used */
        memory->left_weight[x] = memory->right_weight[x] = 0.0f;
}

/* Write `leaders` over their cells in one output row, and list the cells that no class leads at all four corners. */
static int32_t edgekit_decode_fill(const edgekit_decode_memory *memory, int32_t width, const uint8_t *top,
                                   const uint8_t *bottom, uint8_t *row) {
    const int32_t last = width - 1;
    int32_t begin = 0, count = 0;
    for (int32_t x = 0; x < width; x++) {
        const int32_t right = x < last ? x + 1 : last;
        const int32_t differs = (top[x] ^ top[right]) | (top[x] ^ bottom[x]) | (top[x] ^ bottom[right]);
        memory->cells[count] = x;
        count += differs != 0;
        if (top[x] != top[right] || x == last) { /* a run of equal leaders ends */
            const int32_t from = memory->starts[begin], to = memory->starts[x + 1];
            memset(row + from, top[x], (size_t)(to - from));
            begin = x + 1;
        }
    }
    return count;
}

/* The classes that can win in a cell: those that no corner's leader exceeds at all four corners. Returns how many. */
static int32_t edgekit_decode_candidates(const edgekit_decode_memory *memory, int32_t classes,
                                         const float *const *corners, const uint8_t *leaders) {
    int32_t count = 0, distinct = 1;
    uint8_t different[4];
    different[0] = leaders[0];
    different[distinct] = leaders[1];
    distinct += leaders[1] != leaders[0];
    different[distinct] = leaders[2];
    distinct += (leaders[2] != leaders[0]) & (leaders[2] != leaders[1]);
    different[distinct] = leaders[3];
    distinct += (leaders[3] != leaders[0]) & (leaders[3] != leaders[1]) & (leaders[3] != leaders[2]);
    for (int32_t first = 0; first < classes; first += EDGEKIT_DECODE_LANES) {
        const int32_t left = classes - first;
        unsigned kept = left < EDGEKIT_DECODE_LANES ? (1u << left) - 1u : 255u;
        for (int32_t k = 0; k < distinct; k++) kept &= ~edgekit_decode_below(corners, (size_t)first, different[k]);
#if defined(__GNUC__) || defined(__clang__)
        for (; kept != 0; kept &= kept - 1u) memory->candidates[count++] = first + __builtin_ctz(kept);
#else
        for (int32_t c = first; kept != 0; kept >>= 1, c++)
            if (kept & 1u) memory->candidates[count++] = c;
#endif
    }
    return count;
}

/* Interpolate `count` candidates over one cell and write the labels: `rows` rows, columns begin <= x < end. */
static void edgekit_decode_cell(const edgekit_decode_memory *memory, int32_t count, const float *const *corners,
                                const float *top_weight, const float *bottom_weight, int32_t rows, int32_t begin,
                                int32_t end, uint8_t *to, ptrdiff_t stride) {
    const size_t side = EDGEKIT_DECODE_ROW_BLOCK;
    for (int32_t i = 0; i < count; i++) {
        const int32_t c = memory->candidates[i];
        float *sides = memory->sides + (size_t)i * 2 * side;
        const edgekit_decode_lanes top_left = edgekit_decode_repeat(corners[0] + c);
        const edgekit_decode_lanes top_right = edgekit_decode_repeat(corners[1] + c);
        const edgekit_decode_lanes bottom_left = edgekit_decode_repeat(corners[2] + c);
        const edgekit_decode_lanes bottom_right = edgekit_decode_repeat(corners[3] + c);
        for (int32_t y = 0; y < rows; y += EDGEKIT_DECODE_LANES) {
            const edgekit_decode_lanes top = edgekit_decode_load(top_weight + y);
            const edgekit_decode_lanes bottom = edgekit_decode_load(bottom_weight + y);
            edgekit_decode_store(sides + y, edgekit_decode_mix(top_left, top, bottom_left, bottom));
            edgekit_decode_store(sides + side + y, edgekit_decode_mix(top_right, top, bottom_right, bottom));
        }
    }
    for (int32_t x = begin; x < end; x += EDGEKIT_DECODE_LANES) {
        const edgekit_decode_lanes left = edgekit_decode_load(memory->left_weight + x);
        const edgekit_decode_lanes right = edgekit_decode_load(memory->right_weight + x);
        const int32_t columns = end - x;
        uint8_t *row = to + x;
        for (int32_t y = 0; y < rows; y++, row += stride) {
            const float *sides = memory->sides + y;
            edgekit_decode_lanes best =
                edgekit_decode_mix(edgekit_decode_repeat(sides), left, edgekit_decode_repeat(sides + side), right);
            edgekit_decode_lane_labels labels = edgekit_decode_repeat_label(memory->candidates[0]);
            for (int32_t i = 1; i < count; i++) {
                sides += 2 * side;
                edgekit_decode_lead(&best, &labels,
                                    edgekit_decode_mix(edgekit_decode_repeat(sides), left,
                                                       edgekit_decode_repeat(sides + side), right),
                                    edgekit_decode_repeat_label(memory->candidates[i]));
            }
            if (columns >= EDGEKIT_DECODE_LANES) {
                edgekit_decode_store_labels(row, labels);
            } else { /* no byte beyond the cell may change: it may be decided already, or lie outside the map */
                uint8_t decided[EDGEKIT_DECODE_LANES];
                const uint8_t *from = decided;
                uint8_t *end_of_row = row;
                edgekit_decode_store_labels(decided, labels);
                if (columns & 4) { memcpy(end_of_row, from, 4); end_of_row += 4; from += 4; }
                if (columns & 2) { memcpy(end_of_row, from, 2); end_of_row += 2; from += 2; }
                if (columns & 1) *end_of_row = *from;
            }
        }
    }
}

/* ---- the public functions ------------------------------------------------------------------------------------ */

static edgekit_decode_logits edgekit_decode_described(const void *data, int32_t type, int32_t classes, int32_t height,
                                                      int32_t width) {
    edgekit_decode_logits logits;
    logits.data = data;
    logits.type = type;
    logits.classes = classes;
    logits.height = height;
    logits.width = width;
    logits.class_stride = logits.row_stride = logits.column_stride = 1;
    return logits;
}

EDGEKIT_DECODE_FUNCTION edgekit_decode_logits edgekit_decode_planar(const void *data, int32_t type, int32_t classes,
                                                                    int32_t height, int32_t width) {
    edgekit_decode_logits logits = edgekit_decode_described(data, type, classes, height, width);
    logits.class_stride = (ptrdiff_t)height * width;
    logits.row_stride = width;
    return logits;
}

EDGEKIT_DECODE_FUNCTION edgekit_decode_logits edgekit_decode_interleaved(const void *data, int32_t type,
                                                                         int32_t classes, int32_t height,
                                                                         int32_t width) {
    edgekit_decode_logits logits = edgekit_decode_described(data, type, classes, height, width);
    logits.row_stride = (ptrdiff_t)width * classes;
    logits.column_stride = classes;
    return logits;
}

static int edgekit_decode_is_side(int32_t side) { return side >= 1 && side <= EDGEKIT_DECODE_MAXIMUM_SIDE; }

static int edgekit_decode_check(const edgekit_decode_logits *logits, const edgekit_decode_labels *labels) {
    if (logits == NULL || labels == NULL) return EDGEKIT_DECODE_NULL_POINTER;
    if (logits->type < EDGEKIT_DECODE_FLOAT32 || logits->type > EDGEKIT_DECODE_FLOAT16)
        return EDGEKIT_DECODE_UNKNOWN_TYPE;
    if (logits->classes < 1 || logits->classes > EDGEKIT_DECODE_MAXIMUM_CLASSES) return EDGEKIT_DECODE_CLASSES;
    if (!edgekit_decode_is_side(logits->height) || !edgekit_decode_is_side(logits->width) ||
        !edgekit_decode_is_side(labels->height) || !edgekit_decode_is_side(labels->width))
        return EDGEKIT_DECODE_SIDES;
    return EDGEKIT_DECODE_OK;
}

EDGEKIT_DECODE_FUNCTION size_t edgekit_decode_scratch_bytes(const edgekit_decode_logits *logits,
                                                            const edgekit_decode_labels *labels) {
    if (edgekit_decode_check(logits, labels) != EDGEKIT_DECODE_OK) return 0;
    return edgekit_decode_lay_out(logits, labels, NULL).bytes;
}

EDGEKIT_DECODE_FUNCTION int edgekit_decode(const edgekit_decode_logits *logits, const edgekit_decode_labels *labels,
                                           int32_t first_row, int32_t end_row, void *scratch, size_t scratch_bytes) {
    edgekit_decode_memory memory;
    float top_weight[EDGEKIT_DECODE_ROW_BLOCK] = {0}, bottom_weight[EDGEKIT_DECODE_ROW_BLOCK] = {0};
    int32_t loaded[2] = {-1, -1};
    int32_t y = first_row, rows;
    const int status = edgekit_decode_check(logits, labels);
    if (status != EDGEKIT_DECODE_OK) return status;
    if (logits->data == NULL || labels->data == NULL || scratch == NULL) return EDGEKIT_DECODE_NULL_POINTER;
    if ((logits->type == EDGEKIT_DECODE_FLOAT32 && (uintptr_t)logits->data % sizeof(float) != 0) ||
        (logits->type == EDGEKIT_DECODE_FLOAT16 && (uintptr_t)logits->data % sizeof(uint16_t) != 0))
        return EDGEKIT_DECODE_UNALIGNED;
    if (labels->row_stride < labels->width) return EDGEKIT_DECODE_LABEL_ROW_STRIDE;
    if (first_row < 0 || first_row > end_row || end_row > labels->height) return EDGEKIT_DECODE_ROWS;
    memory = edgekit_decode_lay_out(logits, labels, scratch);
    if (scratch_bytes < memory.bytes) return EDGEKIT_DECODE_SCRATCH_TOO_SMALL;

    edgekit_decode_columns(logits, labels, &memory);
    edgekit_decode_clear(logits, &memory);
    for (; y < end_row; y += rows) {
        /* output rows between the same two source rows, at most a block of them */
        const int32_t above =
            edgekit_decode_position(y, logits->height, labels->height, &top_weight[0], &bottom_weight[0]);
        const int32_t below = above + 1 < logits->height ? above + 1 : above;
        const int32_t between[2] = {above, below};
        uint8_t *to = labels->data + y * labels->row_stride;
        int32_t count, candidates;
        for (rows = 1; rows < EDGEKIT_DECODE_ROW_BLOCK && y + rows < end_row; rows++)
            if (edgekit_decode_position(y + rows, logits->height, labels->height, &top_weight[rows],
                                        &bottom_weight[rows]) != above)
                break;
        for (int i = 0; i < 2; i++) { /* neighbouring rows differ in parity: the one already loaded stays */
            const int slot = between[i] & 1;
            if (loaded[slot] == between[i]) continue;
            edgekit_decode_load_row(logits, between[i], memory.planes, memory.plane_pitch, memory.points[slot],
                                    memory.pitch, memory.leaders[slot]);
            loaded[slot] = between[i];
        }
        const float *top = memory.points[above & 1], *bottom = memory.points[below & 1];
        const uint8_t *top_leaders = memory.leaders[above & 1], *bottom_leaders = memory.leaders[below & 1];
        count = edgekit_decode_fill(&memory, logits->width, top_leaders, bottom_leaders, to);
        for (int32_t row = 1; row < rows; row++) memcpy(to + row * labels->row_stride, to, (size_t)labels->width);
        for (int32_t i = 0; i < count; i++) {
            const int32_t left = memory.cells[i], right = left + 1 < logits->width ? left + 1 : left;
            const int32_t begin = memory.starts[left], end = memory.starts[left + 1];
            const size_t left_point = (size_t)left * memory.pitch, right_point = (size_t)right * memory.pitch;
            const float *const corners[4] = {top + left_point, top + right_point, bottom + left_point,
                                             bottom + right_point};
            const uint8_t leaders[4] = {top_leaders[left], top_leaders[right], bottom_leaders[left],
                                        bottom_leaders[right]};
            if (begin == end) continue; /* a smaller map than the logits: no output pixel in this cell */
            candidates = edgekit_decode_candidates(&memory, logits->classes, corners, leaders);
            edgekit_decode_cell(&memory, candidates, corners, top_weight, bottom_weight, rows, begin, end, to,
                                labels->row_stride);
        }
    }
    return EDGEKIT_DECODE_OK;
}

EDGEKIT_DECODE_FUNCTION const char *edgekit_decode_status_text(int status) {
    switch (status) {
    case EDGEKIT_DECODE_OK: return "done";
    case EDGEKIT_DECODE_NULL_POINTER: return "an argument, the logits, the labels or the scratch memory is NULL";
    case EDGEKIT_DECODE_UNKNOWN_TYPE: return "the logits' type is none of float32, int8, uint8 and float16";
    case EDGEKIT_DECODE_UNALIGNED: return "the logits' address is no multiple of their type's size";
    case EDGEKIT_DECODE_CLASSES: return "there must be 1 to 256 classes";
    case EDGEKIT_DECODE_SIDES: return "every side of the logits and of the label map must be 1 to 65536";
    case EDGEKIT_DECODE_LABEL_ROW_STRIDE: return "the label map's row stride is shorter than its row";
    case EDGEKIT_DECODE_ROWS: return "the rows asked for do not lie in the label map";
    case EDGEKIT_DECODE_SCRATCH_TOO_SMALL:
        return "the scratch memory is smaller than edgekit_decode_scratch_bytes() says";
    default: return "unknown status";
    }
}

EDGEKIT_DECODE_FUNCTION const char *edgekit_decode_instructions(void) {
#if defined(EDGEKIT_DECODE_AVX512)
    return "avx512";
#elif defined(EDGEKIT_DECODE_AVX2)
    return "avx2";
#elif defined(EDGEKIT_DECODE_SSE2)
    return "sse2";
#elif defined(EDGEKIT_DECODE_NEON)
    return "neon";
#else
    return "scalar";
#endif
}

#ifdef __cplusplus
}
#endif

#endif /* EDGEKIT_DECODE_IMPLEMENTATION */
