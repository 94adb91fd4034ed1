/* Each tile instruction against a plain reading of the manual, and every condition under which it faults.
 *
 * Runs on silicon with AMX as it is, elsewhere with the emulator beside it. Prints "ok", or what went wrong. */
#define _GNU_SOURCE
#include <immintrin.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

typedef struct { uint8_t palette, start_row, reserved[14]; uint16_t bytes[16]; uint8_t rows[16]; } Block;

static sigjmp_buf back;
static volatile int failures;

static void on_fault(int number) { siglongjmp(back, number); }

static void expect(int right, const char *what) {
  if (!right) printf("wrong: %s\n", what), failures = 1;
}

/* `action` ends with this signal; 0: with none. */
#define FAULTS(number, action) \
  do { \
    volatile int found = sigsetjmp(back, 1); \
    if (!found) { action; } \
    if (found != (number)) printf("wrong: %s ended with signal %d, not %d\n", #action, found, number), failures = 1; \
  } while (0)

/* Tile 0: sums of m x n; 1: m x 4k bytes; 2: k x 4n bytes; 3: whole. */
static Block shapes(int m, int k, int n) {
  Block block = {.palette = 1, .bytes = {4 * n, 4 * k, 4 * n, 64}, .rows = {m, m, k, 16}};
  return block;
}

static int random_byte(void) { return rand() >> 7 & 255; }

enum { MOST = 64 };
static uint8_t a[16][80], b[16][MOST]; /* rows of `a` are further apart than they are long */
static int32_t sums[16][16], found[16][16];

static void fill(void) {
  for (int i = 0; i < 16; ++i) {
    for (int j = 0; j < 80; ++j) a[i][j] = random_byte();
    for (int j = 0; j < MOST; ++j) b[i][j] = random_byte();
    for (int j = 0; j < 16; ++j) sums[i][j] = rand() * 2;
  }
}

static int32_t reference(int row, int column, int inner, int signed_a, int signed_b) {
  uint32_t sum = (uint32_t)sums[row][column];
  for (int k = 0; k < inner; ++k)
    for (int i = 0; i < 4; ++i) {
      int x = a[row][4 * k + i], y = b[k][4 * column + i];
      sum += (uint32_t)((signed_a ? (int8_t)x : x) * (signed_b ? (int8_t)y : y));
    }
  return (int32_t)sum;
}

static void check_bytes(int m, int k, int n) {
  static const char *const NAMES[] = {"tdpbuud", "tdpbusd", "tdpbsud", "tdpbssd"};
  Block block = shapes(m, k, n);
  for (int kind = 0; kind < 4; ++kind) {
    fill();
    memset(found, 0x55, sizeof found);
    _tile_loadconfig(&block);
    _tile_loadd(0, sums, sizeof sums[0]);
    _tile_stream_loadd(1, a, sizeof a[0]);
    _tile_loadd(2, b, sizeof b[0]);
    if (kind == 0) _tile_dpbuud(0, 1, 2);
    if (kind == 1) _tile_dpbusd(0, 1, 2);
    if (kind == 2) _tile_dpbsud(0, 1, 2);
    if (kind == 3) _tile_dpbssd(0, 1, 2);
    _tile_stored(0, found, sizeof found[0]);
    _tile_release();
    for (int i = 0; i < 16; ++i)
      for (int j = 0; j < 16; ++j) {
        int32_t wanted = i < m && j < n ? reference(i, j, k, kind & 2, kind & 1) : 0x55555555;
        if (found[i][j] == wanted) continue;
        printf("wrong: %s of %d x %d x %d at %d, %d: %d, not %d\n", NAMES[kind], m, k, n, i, j, found[i][j], wanted);
        failures = 1;
        return;
      }
  }
}

static uint16_t bfloat16(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return (uint16_t)(bits >> 16);
}

/* Small integers, whose sums are exact; then a subnormal number, which is zero, as input and as result. */
static void check_bfloat16(int m, int k, int n) {
  static uint16_t left[16][32], right[16][32];
  static float start[16][16], result[16][16];
  Block block = shapes(m, k, n);
  for (int i = 0; i < 16; ++i)
    for (int j = 0; j < 32; ++j) {
      left[i][j] = bfloat16((float)(random_byte() - 128)), right[i][j] = bfloat16((float)(random_byte() - 128));
      start[i][j / 2] = (float)random_byte();
    }
  _tile_loadconfig(&block);
  _tile_loadd(0, start, sizeof start[0]);
  _tile_loadd(1, left, sizeof left[0]);
  _tile_loadd(2, right, sizeof right[0]);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, result, sizeof result[0]);
  for (int i = 0; i < m; ++i)
    for (int j = 0; j < n; ++j) {
      double sum = start[i][j];
      for (int p = 0; p < 2 * k; ++p) {
        uint32_t x = (uint32_t)left[i][p] << 16, y = (uint32_t)right[p / 2][2 * j + p % 2] << 16;
        float fx, fy;
        memcpy(&fx, &x, 4), memcpy(&fy, &y, 4);
        sum += (double)fx * fy;
      }
      expect(result[i][j] == sum, "tdpbf16ps");
    }
  memset(left, 0, sizeof left), memset(right, 0, sizeof right), memset(start, 0, sizeof start);
  left[0][0] = 1, right[0][0] = bfloat16(1e30f);                  /* a subnormal input */
  left[0][1] = bfloat16(1e-30f), right[0][1] = bfloat16(1e-10f); /* a subnormal product */
  _tile_loadd(0, start, sizeof start[0]);
  _tile_loadd(1, left, sizeof left[0]);
  _tile_loadd(2, right, sizeof right[0]);
  _tile_dpbf16ps(0, 1, 2);
  _tile_stored(0, result, sizeof result[0]);
  expect(result[0][0] == 0, "tdpbf16ps takes subnormal numbers for zero");
  _tile_release();
}

static void check_configuration(void) {
  Block block = shapes(3, 5, 7), stored, none = {0};
  _tile_loadconfig(&block);
  _tile_storeconfig(&stored);
  expect(!memcmp(&stored, &block, sizeof block), "sttilecfg stores what ldtilecfg loaded");
  fill();
  _tile_loadd(0, sums, sizeof sums[0]);
  _tile_loadconfig(&block);
  _tile_stored(0, found, sizeof found[0]);
  expect(found[0][0] == 0 && found[2][6] == 0, "ldtilecfg clears tiles");
  _tile_loadd(0, sums, sizeof sums[0]);
  _tile_zero(0);
  _tile_stored(0, found, sizeof found[0]);
  expect(found[0][0] == 0 && found[2][6] == 0, "tilezero");
  _tile_release();
  _tile_storeconfig(&stored);
  expect(!memcmp(&stored, &none, sizeof none), "sttilecfg stores zeros after tilerelease");
}

/* As `_tile_dpbusd`, of registers that the assembler refuses, because two of them are one. */
#define PRODUCT(to, a, b) \
  __asm__ volatile(".byte 0xc4, 0xe2, %c0, 0x5e, %c1" : : "i"((~(b)&15) << 3 | 1), "i"(0xc0 | (to) << 3 | (a)))

#define REFUSED(change) \
  do { \
    Block block = shapes(3, 5, 7); \
    change; \
    FAULTS(SIGSEGV, _tile_loadconfig(&block)); \
  } while (0)

static void check_faults(void) {
  REFUSED(block.palette = 2);
  REFUSED(block.reserved[0] = 1);
  REFUSED(block.reserved[13] = 1);
  REFUSED(block.bytes[0] = 65);
  REFUSED(block.bytes[8] = 4);
  REFUSED(block.rows[1] = 17);
  REFUSED(block.rows[8] = 1);
  REFUSED(block.rows[2] = 0);
  REFUSED(block.bytes[2] = 0);
  _tile_release();
  FAULTS(SIGILL, _tile_zero(0));
  FAULTS(SIGILL, _tile_loadd(0, sums, 64));
  FAULTS(SIGILL, _tile_stored(0, found, 64));
  FAULTS(SIGILL, _tile_dpbusd(0, 1, 2));
  Block block = shapes(3, 5, 7);
  _tile_loadconfig(&block);
  FAULTS(0, PRODUCT(0, 1, 2));
  FAULTS(SIGILL, _tile_zero(4));
  FAULTS(SIGILL, _tile_loadd(5, sums, 64));
  FAULTS(SIGILL, PRODUCT(0, 1, 1));
  FAULTS(SIGILL, PRODUCT(1, 1, 2));
  FAULTS(SIGILL, PRODUCT(2, 1, 2));
  FAULTS(SIGILL, _tile_dpbusd(3, 1, 2));
  FAULTS(SIGILL, _tile_dpbusd(0, 3, 2));
  FAULTS(SIGILL, _tile_dpbusd(0, 1, 3));
  FAULTS(SIGILL, _tile_dpbf16ps(0, 1, 4));
  FAULTS(SIGILL, __builtin_trap()); /* what is no instruction stays none */
  block.bytes[1] = 18;
  _tile_loadconfig(&block);
  FAULTS(SIGILL, _tile_dpbusd(0, 1, 2));
  _tile_release();
}

int main(void) {
  syscall(SYS_arch_prctl, 0x1023, 18);
  struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_NODEFER};
  sigaction(SIGILL, &action, NULL);
  sigaction(SIGSEGV, &action, NULL);
  static const int SIZES[][3] = {{16, 16, 16}, {1, 1, 1}, {3, 5, 7}, {16, 1, 9}, {7, 16, 2}, {11, 13, 16}};
  for (unsigned i = 0; i < sizeof SIZES / sizeof *SIZES; ++i) {
    check_bytes(SIZES[i][0], SIZES[i][1], SIZES[i][2]);
    check_bfloat16(SIZES[i][0], SIZES[i][1], SIZES[i][2]);
  }
  check_configuration();
  check_faults();
  if (!failures) puts("ok");
  return failures;
}
