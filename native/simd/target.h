// The kernel family that is being compiled, which is also the namespace of all that is compiled for
// it: yocobit::YOCOBIT_TARGET. CMake defines it, with the compiler flags of the instruction set,
// and YOCOBIT_LANES, the header of vector operations. Everything in that namespace has internal
// linkage, so that the linker never takes a function compiled for one instruction set into another.
#pragma once

#ifndef YOCOBIT_TARGET
#define YOCOBIT_TARGET scalar
#define YOCOBIT_LANES scalar
#endif

#define YOCOBIT_QUOTE_(name) #name
#define YOCOBIT_QUOTE(name) YOCOBIT_QUOTE_(name)

// KernelFamily::is_emulated. Emulated families are used only by name.
#ifdef YOCOBIT_EMULATED
#define YOCOBIT_IS_EMULATED true
#else
#define YOCOBIT_IS_EMULATED false
#endif

#define YOCOBIT_INLINE [[gnu::always_inline]] inline
