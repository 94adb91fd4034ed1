/* The program for boards: `run CONSTANTS THREADS` opens the model and answers requests on standard input.
 * `run CONSTANTS THREADS INPUTS OUTPUTS` runs it once on a file with the bytes of all inputs, one after another.
 *
 * First line out: "ready <bytes of all inputs> <bytes of all outputs> <steps>", or "error <sentence>" and exit code 10.
 * A request is four letters and a count (32 bits, the machine's order), then the bytes of all inputs:
 *   run   -> "okay" <bytes>, the bytes of all outputs;
 *   time  -> "okay" <bytes>, as doubles: milliseconds of `count` runs, mean microseconds of every step over
 *            STEP_RUNS runs, largest resident memory in bytes.
 * A run that fails answers "fail" <bytes> and a sentence. */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "executor.h"

enum { MESSAGE_BYTES = 768, STEP_RUNS = 5, WARM_UP_RUNS = 5, EXIT_DEVICE = 10, EXIT_USAGE = 2 };

static size_t total(const Port *ports, int32_t count) {
  size_t bytes = 0;
  for (int32_t i = 0; i < count; ++i) bytes += (size_t)ports[i].bytes;
  return bytes;
}

static int run_once(Model *model, const char *inputs, double *step_us) {
  for (int32_t i = 0; i < deploykit_program.input_count; ++i) {
    size_t bytes = (size_t)deploykit_program.inputs[i].bytes;
    memcpy(deploykit_input(model, i), inputs, bytes);
    inputs += bytes;
  }
  return deploykit_run(model, step_us);
}

static void answer(const char *word, const void *data, size_t bytes) {
  uint32_t count = (uint32_t)bytes;
  fwrite(word, 1, 4, stdout);
  fwrite(&count, sizeof count, 1, stdout);
  fwrite(data, 1, bytes, stdout);
  fflush(stdout);
}

static void collect(const Model *model, char *outputs) {
  for (int32_t i = 0; i < deploykit_program.output_count; ++i) {
    size_t bytes = (size_t)deploykit_program.outputs[i].bytes;
    memcpy(outputs, deploykit_output(model, i), bytes);
    outputs += bytes;
  }
}

static double now_ms(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec * 1e3 + (double)time.tv_nsec * 1e-6;
}

static double peak_bytes(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return (double)usage.ru_maxrss * 1024;
}

/* Fill `figures`: count run times, one mean per step, memory. */
static int measure(Model *model, const char *inputs, uint32_t count, double *figures) {
  int32_t steps = deploykit_program.step_count;
  double *mean_us = figures + count, *once = mean_us + steps + 1;
  for (int i = 0; i < WARM_UP_RUNS; ++i)
    if (run_once(model, inputs, NULL)) return -1;
  for (uint32_t i = 0; i < count; ++i) {
    double start = now_ms();
    if (run_once(model, inputs, NULL)) return -1;
    figures[i] = now_ms() - start;
  }
  for (int i = 0; i < STEP_RUNS; ++i) {
    if (run_once(model, inputs, once)) return -1;
    for (int32_t s = 0; s < steps; ++s) mean_us[s] += once[s] / STEP_RUNS;
  }
  mean_us[steps] = peak_bytes();
  return 0;
}

static int serve(Model *model, char *inputs, size_t input_bytes, char *outputs, size_t output_bytes) {
  char word[4];
  uint32_t count;
  printf("ready %zu %zu %d\n", input_bytes, output_bytes, deploykit_program.step_count);
  fflush(stdout);
  while (fread(word, 1, 4, stdin) == 4 && fread(&count, sizeof count, 1, stdin) == 1 &&
         fread(inputs, 1, input_bytes, stdin) == input_bytes) {
    int failed;
    if (!memcmp(word, "time", 4)) {
      size_t steps = (size_t)deploykit_program.step_count, figures = count + steps + 1;
      double *values = calloc(figures + steps, sizeof *values);
      failed = !values || measure(model, inputs, count, values);
      if (!failed) answer("okay", values, figures * sizeof *values);
      free(values);
    } else {
      failed = run_once(model, inputs, NULL);
      if (!failed) {
        collect(model, outputs);
        answer("okay", outputs, output_bytes);
      }
    }
    if (failed) answer("fail", deploykit_error(model), strlen(deploykit_error(model)));
  }
  return 0;
}

static int run_file(Model *model, char *inputs, size_t input_bytes, char *outputs, size_t output_bytes, char **paths) {
  FILE *source = fopen(paths[0], "rb");
  size_t found = source ? fread(inputs, 1, input_bytes, source) : 0;
  int more = source ? fgetc(source) != EOF : 0;
  if (source) fclose(source);
  if (found != input_bytes || more) {
    fprintf(stderr, "error: %s must hold the %zu bytes of all inputs\n", paths[0], input_bytes);
    return EXIT_USAGE;
  }
  if (run_once(model, inputs, NULL)) {
    fprintf(stderr, "error: %s\n", deploykit_error(model));
    return EXIT_DEVICE;
  }
  collect(model, outputs);
  FILE *destination = fopen(paths[1], "wb");
  int written = destination && fwrite(outputs, 1, output_bytes, destination) == output_bytes;
  if (destination && fclose(destination)) written = 0;
  if (!written) fprintf(stderr, "error: %s cannot be written\n", paths[1]);
  return written ? 0 : EXIT_USAGE;
}

int main(int argc, char **argv) {
  if ((argc != 3 && argc != 5) || atoi(argv[2]) < 1) {
    fprintf(stderr, "usage: %s CONSTANTS THREADS [INPUTS OUTPUTS]\n", argv[0]);
    return EXIT_USAGE;
  }
  char error[MESSAGE_BYTES] = "";
  Model *model = deploykit_create(argv[1], atoi(argv[2]), error, sizeof error);
  if (!model) {
    if (argc == 3) printf("error %s\n", error);
    fprintf(stderr, "error: %s\n", error);
    return EXIT_DEVICE;
  }
  size_t input_bytes = total(deploykit_program.inputs, deploykit_program.input_count);
  size_t output_bytes = total(deploykit_program.outputs, deploykit_program.output_count);
  char *inputs = malloc(input_bytes + 1), *outputs = malloc(output_bytes + 1);
  int code = EXIT_DEVICE;
  if (inputs && outputs)
    code = argc == 3 ? serve(model, inputs, input_bytes, outputs, output_bytes)
                     : run_file(model, inputs, input_bytes, outputs, output_bytes, argv + 3);
  free(inputs);
  free(outputs);
  deploykit_destroy(model);
  return code;
}
