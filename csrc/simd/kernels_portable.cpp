// The kernels for whatever the compiler's baseline is.
#define TTENGINE_ISA portable
#include "simd/kernels_impl.h"

namespace ttengine {

extern const Kernels k_portable_kernels;
const Kernels k_portable_kernels = portable::make_kernels(Isa::portable);

}  // namespace ttengine
