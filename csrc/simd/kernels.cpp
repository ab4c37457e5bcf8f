// Which kernels this machine can run.
#include "simd/kernels.h"

namespace ttengine {

extern const Kernels k_portable_kernels;
#if TTENGINE_X86
extern const Kernels k_avx2_kernels;
extern const Kernels k_avx512_kernels;
#endif

const Kernels* find_kernels(Isa isa) {
  if (isa == Isa::portable) return &k_portable_kernels;
#if TTENGINE_X86
  if (isa == Isa::avx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return &k_avx2_kernels;
  if (isa == Isa::avx512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512dq")) {
    return &k_avx512_kernels;
  }
#endif
  return nullptr;
}

std::vector<Isa> available_isas() {
  std::vector<Isa> found;
  for (Isa isa : {Isa::avx512, Isa::avx2, Isa::portable}) {
    if (find_kernels(isa) != nullptr) found.push_back(isa);
  }
  return found;
}

const Kernels& best_kernels() { return *find_kernels(available_isas().front()); }

const char* isa_name(Isa isa) {
  switch (isa) {
    case Isa::avx512:
      return "avx512";
    case Isa::avx2:
      return "avx2";
    default:
      return "portable";
  }
}

}  // namespace ttengine
