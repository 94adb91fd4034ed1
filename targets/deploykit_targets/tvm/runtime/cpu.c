/* See cpu.h. The names that are asked for are those of `features.py`. */
#include "cpu.h"

#include <string.h>

#if defined(__x86_64__)
#define ASK(name) \
  if (!strcmp(feature, name)) return __builtin_cpu_supports(name) != 0

int cpu_has(const char *feature) {
  __builtin_cpu_init();
  ASK("avx2");
  ASK("fma");
  ASK("bmi2");
  ASK("avx512f");
  ASK("avx512bw");
  ASK("avx512cd");
  ASK("avx512dq");
  ASK("avx512vl");
  ASK("avx512vnni");
  return 0;
}

#elif defined(__aarch64__)
#include <sys/auxv.h>

/* Bits of the kernel's answer (arch/arm64/include/uapi/asm/hwcap.h), which older headers lack. */
static const struct { const char *name; unsigned long bit; int second; } BITS[] = {
    {"neon", 1ul << 1, 0},       {"lse", 1ul << 8, 0},  {"fullfp16", 1ul << 10, 0}, {"rdm", 1ul << 12, 0},
    {"dotprod", 1ul << 20, 0},   {"sve", 1ul << 22, 0}, {"sve2", 1ul << 1, 1},      {"i8mm", 1ul << 13, 1},
    {"bf16", 1ul << 14, 1},
};

int cpu_has(const char *feature) {
  for (unsigned i = 0; i < sizeof BITS / sizeof *BITS; ++i)
    if (!strcmp(feature, BITS[i].name)) return (getauxval(BITS[i].second ? AT_HWCAP2 : AT_HWCAP) & BITS[i].bit) != 0;
  return 0;
}

#else
#error "the executor knows x86-64 and aarch64"
#endif
