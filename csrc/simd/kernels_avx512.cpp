// The kernels for AVX-512 (F, VL, DQ).
#define TTENGINE_ISA avx512
#include "simd/kernels_impl.h"

namespace ttengine {

extern const Kernels k_avx512_kernels;
const Kernels k_avx512_kernels = avx512::make_kernels(Isa::avx512);

}  // namespace ttengine
