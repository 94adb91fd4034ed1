/* See pool.h.
 *
 * A parallel loop is cut into as many parts as there are threads. Whoever comes first takes the next part, the caller
 * too: if a thread sleeps or the system runs something else on its core, the others do its part. Threads without work
 * spin for a moment, because the next kernel of a model follows within microseconds, and then sleep. */
#define _POSIX_C_SOURCE 200809L
#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { ALIGNMENT = 64, BLOCKS = 16, ERROR_BYTES = 512, SPIN_NS = 50000, SPINS_PER_LOOK = 32 };

typedef struct {
  void *data;
  uint64_t bytes;
  bool used;
} Block;

/* One thread's own memory for temporary arrays: blocks are kept, so that after the first run nothing is allocated. */
typedef struct {
  Pool *pool;
  Block blocks[BLOCKS];
  bool busy; /* inside a part: a loop within it runs on this thread alone */
} Worker;

struct Pool {
  /* The loop that is being run: generation << 32 | parts << 16 | next part. One word, so that a part is taken of the
   * loop that was looked at; task and data change only while no part is left to take. */
  _Atomic uint64_t loop;
  _Atomic(KernelTask) task;
  _Atomic(void *) data;
  atomic_int unfinished, failed;
  atomic_int sleepers;
  atomic_bool caller_waits, stopping;
  pthread_mutex_t lock;
  pthread_cond_t work, done;
  int threads;
  Worker *workers; /* the first one is the caller */
  pthread_t *handles;
  char error[ERROR_BYTES];
};

static _Thread_local Worker *self;

static int64_t now_ns(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (int64_t)time.tv_sec * 1000000000 + time.tv_nsec;
}

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* The number of a part that is now ours, or -1. */
static int take(Pool *pool, KernelTask *task, void **data, int *parts) {
  uint64_t loop = atomic_load_explicit(&pool->loop, memory_order_acquire);
  for (;;) {
    int next = (int)(loop & 0xffff);
    *parts = (int)(loop >> 16 & 0xffff);
    if (next >= *parts) return -1;
    *task = atomic_load_explicit(&pool->task, memory_order_relaxed);
    *data = atomic_load_explicit(&pool->data, memory_order_relaxed);
    if (atomic_compare_exchange_weak_explicit(&pool->loop, &loop, loop + 1, memory_order_acq_rel, memory_order_acquire))
      return next;
  }
}

static void finish_part(Pool *pool, int failed) {
  if (failed) atomic_store(&pool->failed, failed);
  if (atomic_fetch_sub(&pool->unfinished, 1) == 1 && atomic_load(&pool->caller_waits)) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_signal(&pool->done);
    pthread_mutex_unlock(&pool->lock);
  }
}

/* Do parts until none is left; whether there was one. */
static bool work_on(Pool *pool) {
  KernelTask task;
  void *data;
  int part, parts;
  bool any = false;
  while ((part = take(pool, &task, &data, &parts)) >= 0) {
    KernelShare share = {NULL, parts};
    self->busy = true;
    int failed = task(part, &share, data);
    self->busy = false;
    finish_part(pool, failed);
    any = true;
  }
  return any;
}

static bool parts_left(Pool *pool) {
  uint64_t loop = atomic_load(&pool->loop);
  return (loop & 0xffff) < (loop >> 16 & 0xffff);
}

static void sleep_until_work(Pool *pool) {
  pthread_mutex_lock(&pool->lock);
  atomic_fetch_add(&pool->sleepers, 1); /* before the look: whoever offers work looks here afterwards */
  while (!parts_left(pool) && !atomic_load(&pool->stopping)) pthread_cond_wait(&pool->work, &pool->lock);
  atomic_fetch_sub(&pool->sleepers, 1);
  pthread_mutex_unlock(&pool->lock);
}

static void *worker_main(void *argument) {
  self = argument;
  Pool *pool = self->pool;
  int64_t idle_since = now_ns();
  while (!atomic_load_explicit(&pool->stopping, memory_order_relaxed)) {
    for (int spin = 0; spin < SPINS_PER_LOOK && !parts_left(pool); ++spin) relax();
    if (work_on(pool)) {
      idle_since = now_ns();
    } else if (now_ns() - idle_since > SPIN_NS) {
      sleep_until_work(pool);
      idle_since = now_ns();
    }
  }
  return NULL;
}

static void wait_for_parts(Pool *pool) {
  int64_t since = now_ns();
  while (atomic_load_explicit(&pool->unfinished, memory_order_acquire)) {
    for (int spin = 0; spin < SPINS_PER_LOOK && atomic_load(&pool->unfinished); ++spin) relax();
    if (now_ns() - since <= SPIN_NS) continue;
    pthread_mutex_lock(&pool->lock);
    atomic_store(&pool->caller_waits, true);
    while (atomic_load(&pool->unfinished)) pthread_cond_wait(&pool->done, &pool->lock);
    atomic_store(&pool->caller_waits, false);
    pthread_mutex_unlock(&pool->lock);
  }
}

static int launch(KernelTask task, void *data, int wanted) {
  if (!self || self->busy || self->pool->threads == 1) {
    KernelShare whole = {NULL, 1};
    return task(0, &whole, data);
  }
  Pool *pool = self->pool;
  uint64_t parts = (uint64_t)(wanted > 0 && wanted < pool->threads ? wanted : pool->threads);
  atomic_store_explicit(&pool->task, task, memory_order_relaxed);
  atomic_store_explicit(&pool->data, data, memory_order_relaxed);
  atomic_store_explicit(&pool->failed, 0, memory_order_relaxed);
  atomic_store_explicit(&pool->unfinished, (int)parts, memory_order_relaxed);
  uint64_t generation = (atomic_load_explicit(&pool->loop, memory_order_relaxed) >> 32) + 1;
  atomic_store(&pool->loop, generation << 32 | parts << 16);
  if (atomic_load(&pool->sleepers)) {
    pthread_mutex_lock(&pool->lock);
    pthread_cond_broadcast(&pool->work);
    pthread_mutex_unlock(&pool->lock);
  }
  work_on(pool);
  wait_for_parts(pool);
  return atomic_load(&pool->failed);
}

static void *allocate(int device_type, int device_id, uint64_t bytes, int code, int bits) {
  (void)device_type, (void)device_id, (void)code, (void)bits;
  Block *free_block = NULL;
  for (int i = 0; self && i < BLOCKS; ++i) {
    Block *block = &self->blocks[i];
    if (block->used) continue;
    if (!free_block || (free_block->bytes < bytes && block->bytes > free_block->bytes)) free_block = block;
    if (free_block->bytes >= bytes) break;
  }
  if (!free_block) return NULL;
  if (free_block->bytes < bytes) {
    free(free_block->data);
    uint64_t rounded = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    free_block->data = aligned_alloc(ALIGNMENT, rounded);
    free_block->bytes = free_block->data ? rounded : 0;
  }
  free_block->used = free_block->data != NULL;
  return free_block->data;
}

static int release(int device_type, int device_id, void *data) {
  (void)device_type, (void)device_id;
  for (int i = 0; self && i < BLOCKS; ++i)
    if (self->blocks[i].data == data) self->blocks[i].used = false;
  return 0;
}

/* Kernels call through these three slots, which their object file has empty and weak. */
void *__TVMBackendParallelLaunch = (void *)launch;
void *__TVMBackendAllocWorkspace = (void *)allocate;
void *__TVMBackendFreeWorkspace = (void *)release;

/* A kernel's words about why it failed. Only the first words of a run are kept. */
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  if (!self) return;
  Pool *pool = self->pool;
  pthread_mutex_lock(&pool->lock);
  if (!pool->error[0]) {
    size_t at = (size_t)snprintf(pool->error, ERROR_BYTES, "%s: ", kind);
    for (int32_t i = 0; i < count && at < ERROR_BYTES; ++i)
      if (parts[i]) at += (size_t)snprintf(pool->error + at, ERROR_BYTES - at, "%s", parts[i]);
  }
  pthread_mutex_unlock(&pool->lock);
}

void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) {
  TVMFFIErrorSetRaisedFromCStrParts(kind, &message, 1);
}

const char *pool_error(const Pool *pool) { return pool->error; }
void pool_clear_error(Pool *pool) { pool->error[0] = 0; }

void pool_enter(Pool *pool) { self = &pool->workers[0]; }

void pool_leave(Pool *pool) {
  (void)pool;
  self = NULL;
}

static void stop(Pool *pool, int started) {
  pthread_mutex_lock(&pool->lock);
  atomic_store(&pool->stopping, true);
  pthread_cond_broadcast(&pool->work);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 1; i < started; ++i) pthread_join(pool->handles[i], NULL);
  for (int i = 0; i < pool->threads; ++i)
    for (int j = 0; j < BLOCKS; ++j) free(pool->workers[i].blocks[j].data);
  pthread_cond_destroy(&pool->work);
  pthread_cond_destroy(&pool->done);
  pthread_mutex_destroy(&pool->lock);
  free(pool->workers);
  free(pool->handles);
  free(pool);
}

Pool *pool_create(int threads) {
  Pool *pool = calloc(1, sizeof *pool);
  if (!pool) return NULL;
  pool->threads = threads;
  pool->workers = calloc((size_t)threads, sizeof *pool->workers);
  pool->handles = calloc((size_t)threads, sizeof *pool->handles);
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->work, NULL);
  pthread_cond_init(&pool->done, NULL);
  bool memory = pool->workers && pool->handles;
  if (!memory) pool->threads = 0;
  for (int i = 0; i < pool->threads; ++i) pool->workers[i].pool = pool;
  int started = 1;
  while (started < pool->threads &&
         !pthread_create(&pool->handles[started], NULL, worker_main, &pool->workers[started]))
    ++started;
  if (memory && started == threads) return pool;
  stop(pool, started);
  return NULL;
}

void pool_destroy(Pool *pool) { stop(pool, pool->threads); }
