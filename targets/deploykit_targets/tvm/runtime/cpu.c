/* See cpu.h. The names that are asked for are those of `features.py`. */
#define _GNU_SOURCE /* syscall */
#include "cpu.h"

#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Tile registers: the CPU has them (leaf 7 of CPUID, bits of EDX), and Linux keeps their state for this process, which
 * has to ask for it (Documentation/arch/x86/xstate.rst); elsewhere there is no such call, and so no tiles. */
static int has_tiles(unsigned int bit) {
#ifdef __linux__
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
  unsigned int a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d >> bit & 1)) return 0;
  return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
  return 0;
#endif
}

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
  ASK("avx512bf16");
  ASK("avxvnni");
  if (!strcmp(feature, "amx-tile")) return has_tiles(24);
  if (!strcmp(feature, "amx-int8")) return has_tiles(25);
  if (!strcmp(feature, "amx-bf16")) return has_tiles(22);
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
