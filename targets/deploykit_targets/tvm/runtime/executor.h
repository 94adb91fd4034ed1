/* Runs a compiled model: the steps of a generated table (`table.py`), one after another.
 * Nothing of TVM, no compiler and no Python is needed. */
#ifndef DEPLOYKIT_EXECUTOR_H
#define DEPLOYKIT_EXECUTOR_H
#include <stddef.h>
#include <stdint.h>

#include "kernel_abi.h"

/* -- the table, one per library ------------------------------------------------------------------------------ */

enum { CONSTANTS, ARENA };

typedef struct {
  int32_t region;
  KernelDataType dtype;
  int64_t offset, elements;
} Operand;
typedef struct {
  const char *symbol;
  Kernel kernel;
  int32_t first, count; /* of `operands` */
} Step;
typedef struct { int64_t offset, bytes; } Port;
typedef struct {
  const char *name;         /* the instruction set of its kernels */
  const char *const *needs; /* CPU features, ended by NULL */
  const Operand *operands;
  const Step *steps;
  const Port *inputs, *outputs;
  int32_t operand_count, step_count, input_count, output_count;
  int64_t constant_bytes, arena_bytes;
} Program;

/* One program per instruction set, best first, ended by NULL. All read the same file of constants. */
extern const Program *const deploykit_programs[];

/* -- the interface ------------------------------------------------------------------------------------------- */

typedef struct Model Model;

/* Open the model of this library, with the first of its programs whose instruction sets this CPU has.
 *   constants: path of the file with the packed weights.
 *   threads: 1 or more.
 *   error: takes a sentence where NULL is returned: the CPU lacks a feature, the file is missing or has another size,
 *          or memory or threads cannot be had. */
Model *deploykit_create(const char *constants, int32_t threads, char *error, size_t capacity);
void deploykit_destroy(Model *model);

/* The same with the program of that name, or the best one where it is NULL. */
Model *deploykit_create_variant(const char *name, const char *constants, int32_t threads, char *error, size_t capacity);

/* The name of the program that was opened. */
const char *deploykit_variant(const Model *model);

/* Where to write an input, or read an output. Inputs must be written before every run: their memory is reused. */
void *deploykit_input(Model *model, int32_t index);
const void *deploykit_output(const Model *model, int32_t index);

/* Run once.
 *   step_us: NULL, or room for the microseconds of every step.
 * Returns 0, or -1: `deploykit_error` then says which step failed and how. One caller at a time. */
int32_t deploykit_run(Model *model, double *step_us);
const char *deploykit_error(const Model *model);
#endif
