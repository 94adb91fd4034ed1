/* Many short parallel loops on one pool: every part runs once, what parts wrote is seen afterwards, failures arrive,
 * temporary memory is each thread's own. Usage: pool_stress THREADS LOOPS; prints "ok" or what went wrong. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "pool.h"

extern void *__TVMBackendParallelLaunch, *__TVMBackendAllocWorkspace, *__TVMBackendFreeWorkspace;
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message);
typedef int (*Launch)(KernelTask, void *, int);
typedef void *(*Allocate)(int, int, uint64_t, int, int);
typedef int (*Release)(int, int, void *);

enum { MOST = 64, BYTES = 4096 };
typedef struct { int ran[MOST], seed, inner; } Loop; /* plain integers: the pool must order them */

static int fill_own_memory(int number, int seed) {
  unsigned char *own = ((Allocate)__TVMBackendAllocWorkspace)(1, 0, BYTES, 0, 8);
  unsigned char *second = ((Allocate)__TVMBackendAllocWorkspace)(1, 0, BYTES / 2, 0, 8);
  if (!own || !second || own == second || (size_t)own % 64) return -2;
  memset(own, number + seed, BYTES);
  memset(second, 255, BYTES / 2);
  for (int i = 0; i < BYTES; ++i) if (own[i] != (unsigned char)(number + seed)) return -3;
  ((Release)__TVMBackendFreeWorkspace)(1, 0, second);
  ((Release)__TVMBackendFreeWorkspace)(1, 0, own);
  return 0;
}

static int part(int number, KernelShare *share, void *data) {
  Loop *loop = data;
  loop->ran[number] += share->num_task;
  return fill_own_memory(number, loop->seed);
}

static int failing(int number, KernelShare *share, void *data) {
  (void)data;
  if (number == share->num_task - 1) {
    TVMFFIErrorSetRaisedFromCStr("ValueError", "meant to fail");
    return 7;
  }
  return 0;
}

static int nested(int number, KernelShare *share, void *data) {
  (void)share;
  Loop inner = {{0}, number, 0};
  int code = ((Launch)__TVMBackendParallelLaunch)(part, &inner, 0);
  ((Loop *)data)->ran[number] = inner.ran[0]; /* a loop within a part has one part */
  return code;
}

static int wrong(const char *what) {
  printf("%s\n", what);
  return 1;
}

int main(int argc, char **argv) {
  int threads = atoi(argv[argc - 2]), loops = atoi(argv[argc - 1]);
  Launch launch = (Launch)__TVMBackendParallelLaunch;
  Pool *pool = pool_create(threads);
  if (!pool) return wrong("no pool");
  pool_enter(pool);
  for (int i = 0; i < loops; ++i) {
    Loop loop = {{0}, i, 0};
    if (launch(part, &loop, 0)) return wrong("a part failed");
    for (int p = 0; p < threads; ++p)
      if (loop.ran[p] != threads) return wrong("a part did not run exactly once");
    if (i % 100 == 0) { /* long enough for the threads to fall asleep */
      struct timespec pause = {0, 300000};
      nanosleep(&pause, NULL);
    }
  }
  Loop outer = {{0}, 0, 0};
  if (launch(nested, &outer, 0)) return wrong("a nested loop failed");
  for (int p = 0; p < threads; ++p) if (outer.ran[p] != 1) return wrong("a nested loop was shared");
  if (launch(failing, NULL, 0) != 7) return wrong("a failure got lost");
  if (strcmp(pool_error(pool), "ValueError: meant to fail")) return wrong("the words of a failure got lost");
  pool_clear_error(pool);
  if (*pool_error(pool) || launch(part, &(Loop){{0}, 1, 0}, 0)) return wrong("a failure stayed");
  pool_leave(pool);
  pool_destroy(pool);
  puts("ok");
  return 0;
}
