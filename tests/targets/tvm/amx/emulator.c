/* The tile instructions of AMX (AMX-TILE, AMX-INT8, AMX-BF16) on a CPU that has none: executed by a handler of SIGILL.
 *
 * What it is for: results, and the conditions under which silicon raises an exception. How long anything takes means
 * nothing. Source of both: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, of each instruction,
 * and its exception classes AMX-E1 to AMX-E6.
 *
 *   cc -std=gnu11 -O3 -mavx2 -shared -fPIC -o emulator.so emulator.c -ldl
 *
 * A process calls `amx_install` of the loaded library, or starts with LD_PRELOAD=emulator.so. In the latter case Linux
 * also grants the registers (arch_prctl), and a CPUID instruction that was overwritten by INVALID CPUID_MARK answers
 * that AMX is there. Registers are each thread's own. Instructions with a segment or address-size prefix are not known. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>
#include <xmmintrin.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64, BLOCK_BYTES = 64 };
enum { INVALID = 0x06, CPUID_MARK = 0xa2 }; /* PUSH ES, which 64-bit code cannot have, in place of CPUID's 0f a2 */
enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
enum { NONE, P66, PF3, PF2 }; /* VEX.pp */

/* #UD and #GP reach a program as SIGILL and SIGSEGV. */
typedef enum { EXECUTED, UNKNOWN, UNDEFINED, PROTECTION } Outcome;

typedef struct {
  int configured;
  uint8_t start_row;
  uint16_t bytes[TILES];
  uint8_t rows[TILES];
  uint8_t data[TILES][ROWS][ROW_BYTES];
} State;

typedef struct {
  int reg, rm, mod, vvvv, prefix, length;
  char *base;     /* with the displacement */
  int64_t offset; /* index << scale */
  int has_sib;
} Instruction;

static _Thread_local State state;
static struct sigaction previous;
static atomic_ulong products;

/* Products of tiles so far, of all threads. */
unsigned long amx_products(void) { return atomic_load(&products); }

/* -- decoding ------------------------------------------------------------------------------------------------- */

static const int NUMBERED[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                 REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};

static int32_t displacement(const uint8_t *at, int bytes) {
  int32_t wide;
  if (bytes == 1) return (int8_t)*at;
  memcpy(&wide, at, sizeof wide);
  return wide;
}

/* ModRM and what follows it; `at` is the byte after the opcode. */
static void decode_operands(Instruction *i, const uint8_t *at, const greg_t *g, int x, int b) {
  const uint8_t *first = at - 4; /* three bytes of VEX, opcode */
  i->mod = *at >> 6, i->reg |= *at >> 3 & 7, i->rm = *at & 7, ++at;
  if (i->mod == 3) {
    i->rm |= b << 3;
    i->length = (int)(at - first);
    return;
  }
  int bytes = i->mod == 1 ? 1 : i->mod == 2 ? 4 : 0, number = i->rm | b << 3, relative = 0;
  i->has_sib = i->rm == 4;
  if (i->has_sib) {
    int index = (*at >> 3 & 7) | x << 3;
    number = (*at & 7) | b << 3;
    if (index != 4) i->offset = (int64_t)((uint64_t)g[NUMBERED[index]] << (*at >> 6));
    ++at;
    if (!i->mod && (number & 7) == 5) bytes = 4, number = -1;
  } else if (!i->mod && i->rm == 5) {
    bytes = 4, number = -1, relative = 1;
  }
  uint64_t base = number < 0 ? 0 : (uint64_t)g[NUMBERED[number]];
  if (bytes) base += (uint64_t)(int64_t)displacement(at, bytes), at += bytes;
  if (relative) base += (uint64_t)at;
  i->base = (char *)base;
  i->length = (int)(at - first);
}

/* -- configuration -------------------------------------------------------------------------------------------- */

static int any(const uint8_t *bytes, int first, int end) {
  for (int i = first; i < end; ++i)
    if (bytes[i]) return 1;
  return 0;
}

static Outcome load_configuration(const uint8_t *block) {
  State fresh;
  memset(&fresh, 0, sizeof fresh);
  uint8_t copy[BLOCK_BYTES];
  memcpy(copy, block, sizeof copy);
  if (copy[0] > 1) return PROTECTION; /* palettes 0, which is the state after TILERELEASE, and 1 are there */
  if (copy[0] == 1) {
    if (any(copy, 2, 16) || any(copy, 32, 48) || any(copy, 56, 64)) return PROTECTION;
    fresh.configured = 1, fresh.start_row = copy[1];
    for (int t = 0; t < TILES; ++t) {
      memcpy(&fresh.bytes[t], copy + 16 + 2 * t, 2);
      fresh.rows[t] = copy[48 + t];
      if (fresh.bytes[t] > ROW_BYTES || fresh.rows[t] > ROWS || !fresh.bytes[t] != !fresh.rows[t]) return PROTECTION;
    }
  }
  state = fresh;
  return EXECUTED;
}

static void store_configuration(uint8_t *block) {
  memset(block, 0, BLOCK_BYTES);
  if (!state.configured) return;
  block[0] = 1, block[1] = state.start_row;
  memcpy(block + 16, state.bytes, sizeof state.bytes);
  memcpy(block + 48, state.rows, sizeof state.rows);
}

/* -- execution ------------------------------------------------------------------------------------------------ */

static int valid(int tile) { return state.configured && tile < TILES && state.rows[tile]; }

static Outcome configure(const Instruction *i) {
  if (i->vvvv) return UNDEFINED;
  if (i->mod == 3) {
    if (i->prefix == NONE && !i->reg && !i->rm) { /* TILERELEASE */
      memset(&state, 0, sizeof state);
      return EXECUTED;
    }
    if (i->prefix != PF2 || i->rm) return UNKNOWN;
    if (!valid(i->reg)) return UNDEFINED; /* TILEZERO */
    memset(state.data[i->reg], 0, sizeof state.data[i->reg]);
    state.start_row = 0;
    return EXECUTED;
  }
  if (i->reg || i->prefix > P66) return UNKNOWN;
  uint8_t *block = (uint8_t *)i->base + i->offset;
  if (i->prefix == NONE) return load_configuration(block);
  store_configuration(block);
  return EXECUTED;
}

/* TILELOADD, TILELOADDT1, TILESTORED: rows start at base + displacement + row * (index << scale). */
static Outcome move(const Instruction *i) {
  if (i->prefix == NONE || i->mod == 3) return UNKNOWN;
  if (!i->has_sib || i->vvvv || !valid(i->reg)) return UNDEFINED;
  uint8_t(*rows)[ROW_BYTES] = state.data[i->reg];
  size_t bytes = state.bytes[i->reg];
  for (int row = state.start_row; row < state.rows[i->reg]; ++row) {
    char *memory = i->base + row * i->offset;
    if (i->prefix == PF3) {
      memcpy(memory, rows[row], bytes);
    } else {
      memcpy(rows[row], memory, bytes);
      memset(rows[row] + bytes, 0, ROW_BYTES - bytes);
    }
  }
  if (i->prefix != PF3) memset(rows + state.rows[i->reg], 0, (size_t)(ROWS - state.rows[i->reg]) * ROW_BYTES);
  state.start_row = 0;
  return EXECUTED;
}

static inline __attribute__((always_inline)) void add_bytes(int32_t *sums, const uint8_t *a, const uint8_t *b,
                                                            int columns, int signed_a, int signed_b) {
  for (int n = 0; n < columns; ++n)
    for (int k = 0; k < 4; ++k)
      sums[n] = (int32_t)((uint32_t)sums[n] + (uint32_t)((signed_a ? (int8_t)a[k] : a[k]) *
                                                         (signed_b ? (int8_t)b[4 * n + k] : b[4 * n + k])));
}

/* One row of `to`; TDPBUUD, TDPBUSD, TDPBSUD, TDPBSSD in the order of VEX.pp. */
static void multiply_bytes(int32_t *sums, const uint8_t *a, uint8_t (*b)[ROW_BYTES], int inner, int columns, int kind) {
  for (int k = 0; k < inner; ++k) {
    if (kind == NONE) add_bytes(sums, a + 4 * k, b[k], columns, 0, 0);
    if (kind == P66) add_bytes(sums, a + 4 * k, b[k], columns, 0, 1);
    if (kind == PF3) add_bytes(sums, a + 4 * k, b[k], columns, 1, 0);
    if (kind == PF2) add_bytes(sums, a + 4 * k, b[k], columns, 1, 1);
  }
}

static float widened(const uint8_t *bfloat16) {
  uint8_t bytes[4] = {0, 0, bfloat16[0], bfloat16[1]};
  float value;
  memcpy(&value, bytes, sizeof value);
  return value;
}

/* One row of TDPBF16PS: even and odd products are summed apart, each by fused multiply-adds, then both are added; round
 * to nearest even, subnormal numbers are zero, whatever MXCSR says. `volatile` keeps the two modes around each. */
static void multiply_bfloat16(float *sums, const uint8_t *a, uint8_t (*b)[ROW_BYTES], int inner, int columns) {
  unsigned int mode = _mm_getcsr();
  _mm_setcsr(0x1f80 | 0x8040);
  for (int n = 0; n < columns; ++n) {
    volatile float even = 0, odd = 0;
    for (int k = 0; k < inner; ++k) {
      __m128 pair[2] = {_mm_set_ss(even), _mm_set_ss(odd)};
      for (int half = 0; half < 2; ++half) {
        __m128 left = _mm_set_ss(widened(a + 4 * k + 2 * half)), right = _mm_set_ss(widened(b[k] + 4 * n + 2 * half));
        __asm__ volatile("vfmadd231ss %2, %1, %0" : "+x"(pair[half]) : "x"(left), "x"(right));
      }
      even = _mm_cvtss_f32(pair[0]), odd = _mm_cvtss_f32(pair[1]);
    }
    volatile float both = even + odd;
    volatile float sum = sums[n] + both;
    sums[n] = sum;
  }
  _mm_setcsr(mode);
}

static Outcome multiply(const Instruction *i, int bfloat16) {
  int to = i->reg, a = i->rm, b = i->vvvv;
  if (i->mod != 3 || (bfloat16 && i->prefix != PF3)) return UNKNOWN;
  if (to == a || to == b || a == b || !valid(to) || !valid(a) || !valid(b)) return UNDEFINED;
  if ((state.bytes[to] | state.bytes[a] | state.bytes[b]) % 4) return UNDEFINED;
  if (state.rows[to] != state.rows[a] || state.bytes[a] / 4 != state.rows[b] || state.bytes[to] != state.bytes[b])
    return UNDEFINED;
  int inner = state.bytes[a] / 4, columns = state.bytes[to] / 4;
  for (int row = 0; row < state.rows[to]; ++row) {
    void *sums = state.data[to][row];
    if (bfloat16) multiply_bfloat16(sums, state.data[a][row], state.data[b], inner, columns);
    else multiply_bytes(sums, state.data[a][row], state.data[b], inner, columns, i->prefix);
    memset(state.data[to][row] + state.bytes[to], 0, ROW_BYTES - state.bytes[to]);
  }
  memset(state.data[to][state.rows[to]], 0, (size_t)(ROWS - state.rows[to]) * ROW_BYTES);
  state.start_row = 0;
  atomic_fetch_add_explicit(&products, 1, memory_order_relaxed);
  return EXECUTED;
}

static Outcome answer_cpuid(greg_t *g) {
  uint32_t leaf = (uint32_t)g[REG_RAX], subleaf = (uint32_t)g[REG_RCX], a, b, c, d;
  __asm__ volatile("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(leaf), "c"(subleaf));
  if (leaf == 7 && subleaf == 0) d |= 1u << 22 | 1u << 24 | 1u << 25; /* AMX-BF16, AMX-TILE, AMX-INT8 */
  g[REG_RAX] = a, g[REG_RBX] = b, g[REG_RCX] = c, g[REG_RDX] = d;
  g[REG_RIP] += 2;
  return EXECUTED;
}

static Outcome execute(greg_t *g) {
  const uint8_t *at = (const uint8_t *)g[REG_RIP];
  if (at[0] == INVALID && at[1] == CPUID_MARK) return answer_cpuid(g);
  if (at[0] != 0xc4 || (at[1] & 0x1f) != 2) return UNKNOWN; /* VEX of three bytes, map 0F38 */
  Instruction i = {.reg = at[1] & 0x80 ? 0 : 8, .vvvv = ~at[2] >> 3 & 15, .prefix = at[2] & 3};
  int opcode = at[3];
  if (opcode != 0x49 && opcode != 0x4b && opcode != 0x5c && opcode != 0x5e) return UNKNOWN;
  if (at[2] & 0x84) return UNDEFINED; /* VEX.W, VEX.L */
  decode_operands(&i, at + 4, g, !(at[1] & 0x40), !(at[1] & 0x20));
  Outcome outcome = opcode == 0x49 ? configure(&i) : opcode == 0x4b ? move(&i) : multiply(&i, opcode == 0x5c);
  if (outcome == EXECUTED) g[REG_RIP] += i.length;
  return outcome;
}

/* -- the process ---------------------------------------------------------------------------------------------- */

typedef int (*Sigaction)(int, const struct sigaction *, struct sigaction *);

static int real_sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  return ((Sigaction)dlsym(RTLD_NEXT, "sigaction"))(number, new, old);
}

static void on_illegal(int number, siginfo_t *info, void *context) {
  int kept = errno;
  Outcome outcome = execute(((ucontext_t *)context)->uc_mcontext.gregs);
  errno = kept;
  if (outcome == EXECUTED) return;
  if (outcome == PROTECTION) {
    raise(SIGSEGV);
  } else if (previous.sa_flags & SA_SIGINFO) {
    previous.sa_sigaction(number, info, context);
  } else if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
    previous.sa_handler(number);
  } else {
    real_sigaction(SIGILL, &previous, NULL); /* the instruction is tried again, and ends as it would have */
  }
}

void amx_install(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_illegal;
  action.sa_flags = SA_SIGINFO | SA_NODEFER;
  real_sigaction(SIGILL, &action, &previous);
}

/* What was there before. */
void amx_remove(void) { real_sigaction(SIGILL, &previous, NULL); }

/* Preloaded: programs that install a handler of their own (Python's faulthandler) keep ours in front of it. */
int sigaction(int number, const struct sigaction *new, struct sigaction *old) {
  if (number != SIGILL || !getenv("AMX_EMULATED")) return real_sigaction(number, new, old);
  if (old) *old = previous;
  if (new) previous = *new;
  return 0;
}

long syscall(long number, ...) {
  va_list list;
  long a[6];
  va_start(list, number);
  for (int i = 0; i < 6; ++i) a[i] = va_arg(list, long);
  va_end(list);
  if (number == SYS_arch_prctl && a[0] == ARCH_REQ_XCOMP_PERM && a[1] == XFEATURE_XTILEDATA && getenv("AMX_EMULATED"))
    return 0;
  register long r10 __asm__("r10") = a[3], r8 __asm__("r8") = a[4], r9 __asm__("r9") = a[5];
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a[0]), "S"(a[1]), "d"(a[2]), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  if (result < 0 && result > -4096) {
    errno = (int)-result;
    return -1;
  }
  return result;
}

__attribute__((constructor)) static void start(void) {
  if (getenv("AMX_EMULATED")) amx_install();
}
