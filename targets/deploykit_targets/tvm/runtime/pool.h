/* The threads of one model: they share the parallel loops of its kernels, and each has memory for the kernels' own
 * temporary arrays. A pool serves one caller at a time. */
#ifndef DEPLOYKIT_POOL_H
#define DEPLOYKIT_POOL_H
#include "kernel_abi.h"

typedef struct Pool Pool;

/* `threads` with the caller's; NULL where they cannot be had. */
Pool *pool_create(int threads);
void pool_destroy(Pool *pool);

/* Between these two calls, kernels that the calling thread runs use `pool`. */
void pool_enter(Pool *pool);
void pool_leave(Pool *pool);

/* What a kernel said when it failed, in this thread or another; "" where it said nothing. */
const char *pool_error(const Pool *pool);
void pool_clear_error(Pool *pool);
#endif
