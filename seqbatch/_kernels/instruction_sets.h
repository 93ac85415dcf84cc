// The instruction sets that kernels are compiled for, each in a namespace of its name; library.cpp picks one.
#pragma once

// Expands a macro once for each.
#if defined(__x86_64__)
#define SEQBATCH_FOR_EACH_ISA(macro) macro(baseline) macro(avx2) macro(avx512)
#else
#define SEQBATCH_FOR_EACH_ISA(macro) macro(baseline)
#endif
