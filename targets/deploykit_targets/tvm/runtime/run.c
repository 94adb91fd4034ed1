/* The program for boards: `run CONSTANTS THREADS` opens the model and answers frames on standard input, as
 * `deploykit/places/frames.py` describes them: HELLO, OPEN, RUN, PROFILE and CLOSE.
 * `run CONSTANTS THREADS INPUTS OUTPUTS [VARIANT]` runs it once on a file with the bytes of all inputs, one after
 * another; of several variants with the best that the CPU has, or with the one of that name.
 *
 * Memory is the machine's, little-endian as frames are. The names, types and shapes of inputs and outputs come as
 * bytes that stand before the data of their tensors (`table.heads_source`); what is before the data of an input must be
 * exactly those. What cannot be understood ends the program: there is no finding the next frame. */
#define _DEFAULT_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "executor.h"
#include "heads.h"

/* The variants of a library have inputs, outputs and steps alike (`build.py`). */
#define deploykit_program (*deploykit_programs[0])

enum { MESSAGE_BYTES = 768, EXIT_DEVICE = 10, EXIT_USAGE = 2 };
enum { VERSION = 1, HELLO = 1, OPEN = 3, RUN = 4, PROFILE = 5, CLOSE = 6, ANSWER = 64, ERROR = 65 };

typedef struct __attribute__((packed)) {
  char magic[4];
  uint8_t version, kind;
  uint16_t tensors;
  uint32_t runs, op_runs, text;
} Frame;

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

static void begin(uint8_t kind, uint16_t tensors, const char *text) {
  Frame frame = {{'d', 'k', 'p', 'f'}, VERSION, kind, tensors, 0, 0, (uint32_t)strlen(text)};
  fwrite(&frame, sizeof frame, 1, stdout);
  fputs(text, stdout);
}

static int fail(const char *sentence) {
  char text[6 * MESSAGE_BYTES + 64] = "{\"type\": \"DeviceError\", \"message\": \"";
  char *at = text + strlen(text);
  for (const unsigned char *c = (const unsigned char *)sentence; *c && at < text + 6 * MESSAGE_BYTES; ++c)
    if (*c < ' ' || *c == '"' || *c == '\\') at += sprintf(at, "\\u%04x", *c);
    else *at++ = (char)*c;
  strcpy(at, "\"}");
  begin(ERROR, 0, text);
  return fflush(stdout);
}

static void send_doubles(const char *name, const double *values, uint64_t count) {
  struct __attribute__((packed)) { uint16_t name; uint8_t dtype, axes; uint64_t bytes; } head =
      {(uint16_t)strlen(name), 3, 1, count * sizeof *values};
  fwrite(&head, sizeof head, 1, stdout);
  printf("%s<f8", name);
  fwrite(&count, sizeof count, 1, stdout);
  fwrite(values, sizeof *values, count, stdout);
}

static int send_outputs(const Model *model) {
  begin(ANSWER, (uint16_t)deploykit_program.output_count, "");
  for (int32_t i = 0; i < deploykit_program.output_count; ++i) {
    fwrite(deploykit_output_heads[i].data, 1, deploykit_output_heads[i].bytes, stdout);
    fwrite(deploykit_output(model, i), 1, (size_t)deploykit_program.outputs[i].bytes, stdout);
  }
  return fflush(stdout);
}

static int by_size(const void *one, const void *other) {
  double a = *(const double *)one, b = *(const double *)other;
  return (a > b) - (a < b);
}

/* The median of `count` values, which are put in order; 0 of none. */
static double median(double *values, size_t count) {
  if (!count) return 0;
  qsort(values, count, sizeof *values, by_size);
  return 0.5 * (values[(count - 1) / 2] + values[count / 2]);
}

/* Time `runs` runs, and the steps over `op_runs` more: one slow run in ten is no slower step, so medians are told. */
static int profile(Model *model, const char *inputs, uint32_t runs, uint32_t op_runs) {
  size_t steps = (size_t)deploykit_program.step_count;
  double *run_ms = calloc(runs + 2 * steps + 1, sizeof *run_ms), *median_us = run_ms + runs, *once = median_us + steps;
  double *step_us = calloc((size_t)op_runs * steps + 1, sizeof *step_us); /* the runs of one step lie together */
  double peak = 0;
  int failed = !run_ms || !step_us;
  for (uint32_t i = 0; !failed && i < runs; ++i) {
    double start = now_ms();
    failed = run_once(model, inputs, NULL);
    run_ms[i] = now_ms() - start;
  }
  for (uint32_t i = 0; !failed && i < op_runs; ++i) {
    failed = run_once(model, inputs, once);
    for (size_t s = 0; !failed && s < steps; ++s) step_us[s * op_runs + i] = once[s];
  }
  for (size_t s = 0; !failed && s < steps; ++s) median_us[s] = median(step_us + s * op_runs, op_runs);
  if (failed) fail(run_ms && step_us ? deploykit_error(model) : "there is not enough memory for that many runs");
  else {
    peak = peak_bytes();
    begin(ANSWER, 3, "");
    send_doubles("run_ms", run_ms, runs);
    send_doubles("op_us", median_us, op_runs ? steps : 0);
    send_doubles("peak_bytes", &peak, 1);
    fflush(stdout);
  }
  free(run_ms);
  free(step_us);
  return 0;
}

static int read_inputs(const Frame *frame, char *inputs) {
  if (frame->tensors != deploykit_program.input_count) return 0;
  for (int32_t i = 0; i < deploykit_program.input_count; ++i) {
    size_t bytes = (size_t)deploykit_program.inputs[i].bytes;
    for (size_t k = 0; k < deploykit_input_heads[i].bytes; ++k)
      if (getchar() != (unsigned char)deploykit_input_heads[i].data[k]) return 0;
    if (fread(inputs, 1, bytes, stdin) != bytes) return 0;
    inputs += bytes;
  }
  return 1;
}

/* `refused` says why there is no model. */
static int serve(Model *model, const char *refused, int threads, char *inputs, size_t in_bytes, size_t out_bytes) {
  Frame frame;
  while (fread(&frame, sizeof frame, 1, stdin) == 1 && !memcmp(frame.magic, "dkpf", 4) && frame.kind != CLOSE) {
    if (frame.version != VERSION) return fail("it speaks another version"), EXIT_USAGE;
    while (frame.text--)
      if (getchar() == EOF) return 0;
    if (frame.kind == HELLO) {
      begin(ANSWER, 0, "{\"version\": \"program\"}");
      fflush(stdout);
    } else if (!model) {
      return fail(refused), EXIT_DEVICE;
    } else if (frame.kind == OPEN) {
      char text[256];
      snprintf(text, sizeof text,
               "{\"input_bytes\": %zu, \"output_bytes\": %zu, \"steps\": %d, \"threads\": %d, \"variant\": \"%s\"}",
               in_bytes, out_bytes, deploykit_program.step_count, threads, deploykit_variant(model));
      begin(ANSWER, 0, text);
      fflush(stdout);
    } else if (frame.kind != RUN && frame.kind != PROFILE) {
      return fail("it knows no such request"), EXIT_USAGE;
    } else if (!read_inputs(&frame, inputs)) {
      return fail("the inputs are not those that the model takes"), EXIT_USAGE;
    } else if (frame.kind == PROFILE) {
      profile(model, inputs, frame.runs, frame.op_runs);
    } else if (run_once(model, inputs, NULL)) {
      fail(deploykit_error(model));
    } else {
      send_outputs(model);
    }
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
  if (argc < 3 || argc == 4 || argc > 6 || atoi(argv[2]) < 1) {
    fprintf(stderr, "usage: %s CONSTANTS THREADS [INPUTS OUTPUTS [VARIANT]]\n", argv[0]);
    return EXIT_USAGE;
  }
  char error[MESSAGE_BYTES] = "";
  Model *model = deploykit_create_variant(argc == 6 ? argv[5] : NULL, argv[1], atoi(argv[2]), error, sizeof error);
  if (!model) {
    if (argc == 3) return serve(NULL, error, 0, NULL, 0, 0);
    fprintf(stderr, "error: %s\n", error);
    return EXIT_DEVICE;
  }
  size_t input_bytes = total(deploykit_program.inputs, deploykit_program.input_count);
  size_t output_bytes = total(deploykit_program.outputs, deploykit_program.output_count);
  char *inputs = malloc(input_bytes + 1), *outputs = malloc(output_bytes + 1);
  int code = EXIT_DEVICE;
  if (inputs && outputs)
    code = argc == 3 ? serve(model, "", atoi(argv[2]), inputs, input_bytes, output_bytes)
                     : run_file(model, inputs, input_bytes, outputs, output_bytes, argv + 3);
  free(inputs);
  free(outputs);
  deploykit_destroy(model);
  return code;
}
