/* See executor.h. All memory is taken when the model is opened; a run only calls kernels. */
#define _POSIX_C_SOURCE 200809L
#include "executor.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "cpu.h"
#include "pool.h"

#define EXPORTED __attribute__((visibility("default")))
enum { ALIGNMENT = 64, MESSAGE_BYTES = 768 };

struct Model {
  const Program *program;
  Pool *pool;
  char *constants, *arena;
  KernelTensor *tensors;
  KernelArgument *arguments;
  int64_t *shapes;
  pid_t owner;
  char error[MESSAGE_BYTES];
};

/* -- opening ------------------------------------------------------------------------------------------------- */

static int check_cpu(const Program *program, char *error, size_t capacity) {
  size_t at = 0;
  for (const char *const *need = program->needs; *need; ++need)
    if (!cpu_has(*need) && at < capacity)
      at += (size_t)snprintf(error + at, capacity - at, "%s%s", at ? ", " : "this CPU has no ", *need);
  return at ? -1 : 0;
}

/* The first program that this CPU can run, of that name where there is one; else NULL, and what the last one lacks. */
static const Program *choose(const char *name, char *error, size_t capacity) {
  snprintf(error, capacity, "the library has no kernels for %s", name ? name : "any CPU");
  for (const Program *const *each = deploykit_programs; *each; ++each)
    if ((!name || !strcmp(name, (*each)->name)) && !check_cpu(*each, error, capacity)) return *each;
  return NULL;
}

static int map_constants(Model *model, const char *path, char *error, size_t capacity) {
  const Program *program = model->program;
  int file = open(path, O_RDONLY | O_CLOEXEC);
  struct stat found;
  if (file < 0 || fstat(file, &found)) {
    snprintf(error, capacity, "%s cannot be read: %s", path, strerror(errno));
    if (file >= 0) close(file);
    return -1;
  }
  if (found.st_size != program->constant_bytes) {
    snprintf(error, capacity, "%s has %lld bytes, the library wants %lld", path, (long long)found.st_size,
             (long long)program->constant_bytes);
    close(file);
    return -1;
  }
  if (program->constant_bytes) { /* shared by all who open the same file */
    void *data = mmap(NULL, (size_t)program->constant_bytes, PROT_READ, MAP_PRIVATE, file, 0);
    if (data == MAP_FAILED) snprintf(error, capacity, "%s cannot be mapped: %s", path, strerror(errno));
    model->constants = data == MAP_FAILED ? NULL : data;
  }
  close(file);
  return program->constant_bytes && !model->constants ? -1 : 0;
}

static int take_memory(Model *model, char *error, size_t capacity) {
  const Program *program = model->program;
  size_t bytes = ((size_t)program->arena_bytes + ALIGNMENT) / ALIGNMENT * ALIGNMENT;
  size_t count = (size_t)program->operand_count + 1; /* never 0 */
  model->arena = aligned_alloc(ALIGNMENT, bytes);
  model->tensors = calloc(count, sizeof *model->tensors);
  model->arguments = calloc(count, sizeof *model->arguments);
  model->shapes = calloc(count, sizeof *model->shapes);
  if (!model->arena || !model->tensors || !model->arguments || !model->shapes) {
    snprintf(error, capacity, "there is no memory for %zu bytes", bytes);
    return -1;
  }
  memset(model->arena, 0, bytes); /* what no kernel writes is the same in every run */
  return 0;
}

static void describe_operands(Model *model) {
  const Program *program = model->program;
  for (int32_t i = 0; i < program->operand_count; ++i) {
    const Operand *operand = &program->operands[i];
    char *base = operand->region == ARENA ? model->arena : model->constants;
    model->shapes[i] = operand->elements;
    model->tensors[i] = (KernelTensor){
        base + operand->offset, {DEVICE_CPU, 0}, 1, operand->dtype, &model->shapes[i], NULL, 0};
    model->arguments[i] = (KernelArgument){ARGUMENT_TENSOR, 0, {.pointer = &model->tensors[i]}};
  }
}

EXPORTED Model *deploykit_create_variant(const char *name, const char *constants, int32_t threads, char *error,
                                         size_t capacity) {
  const Program *program = choose(name, error, capacity);
  if (!program) return NULL;
  Model *model = calloc(1, sizeof *model);
  if (!model) {
    snprintf(error, capacity, "there is no memory");
    return NULL;
  }
  model->program = program;
  model->owner = getpid();
  if (map_constants(model, constants, error, capacity) || take_memory(model, error, capacity)) {
    deploykit_destroy(model);
    return NULL;
  }
  model->pool = pool_create(threads);
  if (!model->pool) {
    snprintf(error, capacity, "%d threads cannot be started", threads);
    deploykit_destroy(model);
    return NULL;
  }
  describe_operands(model);
  return model;
}

EXPORTED Model *deploykit_create(const char *constants, int32_t threads, char *error, size_t capacity) {
  return deploykit_create_variant(NULL, constants, threads, error, capacity);
}

EXPORTED const char *deploykit_variant(const Model *model) { return model->program->name; }

EXPORTED void deploykit_destroy(Model *model) {
  if (!model) return;
  if (model->pool && model->owner == getpid()) pool_destroy(model->pool); /* a fork has none of its threads */
  if (model->constants) munmap(model->constants, (size_t)model->program->constant_bytes);
  free(model->arena);
  free(model->tensors);
  free(model->arguments);
  free(model->shapes);
  free(model);
}

/* -- running ------------------------------------------------------------------------------------------------- */

EXPORTED void *deploykit_input(Model *model, int32_t index) {
  return model->arena + model->program->inputs[index].offset;
}

EXPORTED const void *deploykit_output(const Model *model, int32_t index) {
  return model->arena + model->program->outputs[index].offset;
}

EXPORTED const char *deploykit_error(const Model *model) { return model->error; }

static double now_us(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e6 + (double)time.tv_nsec * 1e-3;
}

static int32_t run_steps(Model *model, double *step_us) {
  const Program *program = model->program;
  double before = step_us ? now_us() : 0;
  for (int32_t i = 0; i < program->step_count; ++i) {
    const Step *step = &program->steps[i];
    KernelArgument result = {0, 0, {0}};
    int32_t code = step->kernel(NULL, model->arguments + step->first, step->count, &result);
    if (code) {
      const char *words = pool_error(model->pool);
      snprintf(model->error, sizeof model->error, "step %d (%s) failed with code %d%s%s", i, step->symbol, code,
               *words ? ": " : "", words);
      return -1;
    }
    if (step_us) {
      double after = now_us();
      step_us[i] = after - before;
      before = after;
    }
  }
  return 0;
}

EXPORTED int32_t deploykit_run(Model *model, double *step_us) {
  if (model->owner != getpid()) {
    snprintf(model->error, sizeof model->error, "the model was opened before this process was forked");
    return -1;
  }
  pool_enter(model->pool);
  pool_clear_error(model->pool);
  int32_t code = run_steps(model, step_us);
  pool_leave(model->pool);
  return code;
}
