/* Shows a process another kind of x86-64 CPU: its CPUID instructions are trapped, and answer without some features.

   cc -O2 -shared -fPIC -o mask.so cpuid_mask.c -ldl
   MASK=avx2 LD_PRELOAD=$PWD/mask.so python ...        avx2 (default): no AVX-512, VNNI, AMX; avx512: AVX-512 without
                                                       VNNI; avx-vnni: AVX2 with VNNI
   Software then chooses the kernels of such a CPU, and runs them at this one's speed; what it executes regardless of
   CPUID still works, as it would not on such a CPU. Linux on a CPU with CPUID faulting; elsewhere it exits with 97,
   unless MASK_PATCHED=1 says that `cpuid_patch.py` has made copies of the packages in which each CPUID instruction is
   an `int 0x81`, which faults on every CPU: only these are masked then. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

#define ARCH_SET_CPUID 0x1012
#define BIT(n) (1u << (n))

typedef int (*sigaction_function)(int, const struct sigaction *, struct sigaction *);

static int keeps_avx512, keeps_avx_vnni;

static int real_sigaction(int signal_number, const struct sigaction *new, struct sigaction *old) {
  return ((sigaction_function)dlsym(RTLD_NEXT, "sigaction"))(signal_number, new, old);
}

/* Bits as in Intel's manual, volume 2, CPUID. */
static void mask(uint32_t leaf, uint32_t subleaf, uint32_t *r) {
  if (leaf == 7 && subleaf == 0) {
    uint32_t avx512 = BIT(16) | BIT(17) | BIT(28) | BIT(30) | BIT(31); /* f dq cd bw vl */
    r[1] &= ~(BIT(21) | BIT(26) | BIT(27) | (keeps_avx512 ? 0 : avx512));
    r[2] &= ~(BIT(1) | BIT(6) | BIT(8) | BIT(11) | BIT(12) | BIT(14)); /* vbmi vbmi2 gfni vnni bitalg vpopcntdq */
    r[3] &= ~(BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25)); /* AMX, avx512_fp16 */
  }
  if (leaf == 7 && subleaf == 1) {
    r[0] &= ~(BIT(5) | BIT(21) | BIT(23) | (keeps_avx_vnni ? 0 : BIT(4)));
    r[3] &= ~(BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19));
  }
  if (leaf == 0xd && subleaf == 0) r[0] &= keeps_avx512 ? 0xe7 : 0x7;
}

static void on_fault(int signal_number, siginfo_t *info, void *context) {
  greg_t *g = ((ucontext_t *)context)->uc_mcontext.gregs;
  const uint8_t *instruction = (const uint8_t *)g[REG_RIP];
  int trapped = instruction[0] == 0x0f && instruction[1] == 0xa2, patched = instruction[0] == 0xcd && instruction[1] == 0x81;
  if (info->si_code != SI_KERNEL || !(trapped || patched)) { /* a fault of its own */
    struct sigaction plain;
    memset(&plain, 0, sizeof plain);
    plain.sa_handler = SIG_DFL;
    real_sigaction(signal_number, &plain, 0);
    return;
  }
  uint32_t leaf = g[REG_RAX], subleaf = g[REG_RCX], r[4];
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 1);
  __asm__ volatile("cpuid" : "=a"(r[0]), "=b"(r[1]), "=c"(r[2]), "=d"(r[3]) : "a"(leaf), "c"(subleaf));
  syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0);
  mask(leaf, subleaf, r);
  g[REG_RAX] = r[0], g[REG_RBX] = r[1], g[REG_RCX] = r[2], g[REG_RDX] = r[3];
  g[REG_RIP] += 2;
}

/* Programs that install a handler of their own for SIGSEGV (compilers, Python's faulthandler) keep ours. */
int sigaction(int signal_number, const struct sigaction *new, struct sigaction *old) {
  return real_sigaction(signal_number, signal_number == SIGSEGV ? 0 : new, old);
}

sighandler_t signal(int signal_number, sighandler_t handler) {
  if (signal_number == SIGSEGV) return SIG_DFL;
  return ((sighandler_t(*)(int, sighandler_t))dlsym(RTLD_NEXT, "signal"))(signal_number, handler);
}

__attribute__((constructor(101))) static void start(void) {
  const char *kind = getenv("MASK");
  keeps_avx512 = kind && !strcmp(kind, "avx512");
  keeps_avx_vnni = kind && !strcmp(kind, "avx-vnni");
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  real_sigaction(SIGSEGV, &action, 0);
  if (syscall(SYS_arch_prctl, ARCH_SET_CPUID, 0) && !getenv("MASK_PATCHED")) {
    fprintf(stderr, "this CPU, or its hypervisor, has no CPUID faulting; see cpuid_patch.py\n");
    _exit(97);
  }
}
