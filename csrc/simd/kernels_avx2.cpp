// The kernels for AVX2 with FMA.
#define TTENGINE_ISA avx2
#include "simd/kernels_impl.h"

namespace ttengine {

extern const Kernels k_avx2_kernels;
const Kernels k_avx2_kernels = avx2::make_kernels(Isa::avx2);

}  // namespace ttengine
