# Cross-compiles for 64-bit ARM Linux with GCC, and runs the tests in qemu where that is installed.
# Static: the programs need no ARM libraries at run time, wherever a distribution keeps them.
set(CMAKE_SYSTEM_NAME Linux)
set(CMAKE_SYSTEM_PROCESSOR aarch64)
set(CMAKE_CXX_COMPILER aarch64-linux-gnu-g++)
set(CMAKE_EXE_LINKER_FLAGS_INIT -static)
find_program(TTENGINE_QEMU NAMES qemu-aarch64 qemu-aarch64-static)
if(TTENGINE_QEMU)
  set(CMAKE_CROSSCOMPILING_EMULATOR ${TTENGINE_QEMU})
endif()
