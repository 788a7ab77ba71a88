// The kernel family that is being compiled, which is also the namespace of all that is compiled for
// it: yocobit::YOCOBIT_TARGET. CMake defines it, with the compiler flags of the instruction set.
// Everything in that namespace has internal linkage, so that the linker never takes a function
// compiled for one instruction set into another.
#pragma once

#ifndef YOCOBIT_TARGET
#define YOCOBIT_TARGET scalar
#endif

#define YOCOBIT_INLINE [[gnu::always_inline]] inline
