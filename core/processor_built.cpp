#include "norma/core/processor.h"

// Data, no code: compiled like every other source, so that the compiler's macros tell what it used.
namespace norma::detail {

constinit const ProcessorFeatures features_built_for = 0
#ifdef __SSE4_2__
                                                       | 1u << 0
#endif
#ifdef __POPCNT__
                                                       | 1u << 1
#endif
#ifdef __AVX__
                                                       | 1u << 2
#endif
#ifdef __AVX2__
                                                       | 1u << 3
#endif
#ifdef __FMA__
                                                       | 1u << 4
#endif
#ifdef __BMI__
                                                       | 1u << 5
#endif
#ifdef __BMI2__
                                                       | 1u << 6
#endif
#ifdef __AVX512F__
                                                       | 1u << 7
#endif
#ifdef __AVX512BW__
                                                       | 1u << 8
#endif
#ifdef __AVX512CD__
                                                       | 1u << 9
#endif
#ifdef __AVX512DQ__
                                                       | 1u << 10
#endif
#ifdef __AVX512VL__
                                                       | 1u << 11
#endif
#ifdef __AVX512VNNI__
                                                       | 1u << 12
#endif
#ifdef __AVX512VBMI__
                                                       | 1u << 13
#endif
    ;

}  // namespace norma::detail
