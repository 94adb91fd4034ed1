/* Calls one TVM kernel on raw files, without TVM: what an emulated board runs.
 * Usage: run ELEMENTS DTYPE FILE [...], three words per flat array; the last one is written back. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int32_t device_type, device_id; } Device;
typedef struct { uint8_t code, bits; uint16_t lanes; } DataType;
typedef struct { void *data; Device device; int32_t ndim; DataType dtype; int64_t *shape, *strides; uint64_t byte_offset; } Tensor;
typedef struct { int32_t type_index; uint32_t padding; union { int64_t integer; void *pointer; } value; } Any;
typedef struct { void *sync_handle; int32_t num_task; } ParallelGroup;

enum { TENSOR = 7, CPU = 1, SIGNED = 0, UNSIGNED = 1, FLOATING = 2, MOST = 8 };

extern int32_t __tvm_ffi_main(void *self, const Any *arguments, int32_t count, Any *result);

int TVMBackendParallelLaunch(int (*task)(int, ParallelGroup *, void *), void *data, int count) {
  ParallelGroup group = {NULL, 2}; /* two shares, one after the other */
  (void)count;
  return task(0, &group, data) | task(1, &group, data);
}
void *TVMBackendAllocWorkspace(int type, int id, uint64_t bytes, int code, int bits) {
  (void)type, (void)id, (void)code, (void)bits;
  return aligned_alloc(64, (bytes + 63) / 64 * 64);
}
int TVMBackendFreeWorkspace(int type, int id, void *data) {
  (void)type, (void)id;
  free(data);
  return 0;
}
void TVMFFIErrorSetRaisedFromCStr(const char *kind, const char *message) { fprintf(stderr, "%s: %s\n", kind, message); }
void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
  fprintf(stderr, "%s: ", kind);
  for (int32_t i = 0; i < count; ++i) if (parts[i]) fputs(parts[i], stderr);
  fputc('\n', stderr);
}

/* Slots of the kernel's object that TVM's loader fills. */
__attribute__((weak)) void *__TVMBackendParallelLaunch, *__TVMBackendAllocWorkspace, *__TVMBackendFreeWorkspace;

static DataType parse(const char *name) {
  if (!strcmp(name, "uint8")) return (DataType){UNSIGNED, 8, 1};
  if (!strcmp(name, "int8")) return (DataType){SIGNED, 8, 1};
  if (!strcmp(name, "uint16")) return (DataType){UNSIGNED, 16, 1};
  if (!strcmp(name, "int16")) return (DataType){SIGNED, 16, 1};
  return (DataType){FLOATING, 32, 1};
}

int main(int argc, char **argv) {
  int count = (argc - 1) / 3;
  __TVMBackendParallelLaunch = (void *)TVMBackendParallelLaunch;
  __TVMBackendAllocWorkspace = (void *)TVMBackendAllocWorkspace;
  __TVMBackendFreeWorkspace = (void *)TVMBackendFreeWorkspace;
  Tensor tensors[MOST];
  Any arguments[MOST], result = {0};
  int64_t shapes[MOST];
  size_t bytes = 0;
  for (int i = 0; i < count && i < MOST; ++i) {
    char **words = argv + 1 + 3 * i;
    shapes[i] = atoll(words[0]);
    DataType type = parse(words[1]);
    bytes = (size_t)shapes[i] * type.bits / 8;
    void *data = aligned_alloc(64, (bytes + 63) / 64 * 64);
    FILE *file = fopen(words[2], "rb");
    if (!file || fread(data, 1, bytes, file) != bytes) return 3;
    fclose(file);
    tensors[i] = (Tensor){data, {CPU, 0}, 1, type, &shapes[i], NULL, 0};
    arguments[i] = (Any){TENSOR, 0, {.pointer = &tensors[i]}};
  }
  if (__tvm_ffi_main(NULL, arguments, count, &result)) return 4;
  FILE *file = fopen(argv[3 * count], "wb");
  if (!file || fwrite(tensors[count - 1].data, 1, bytes, file) != bytes) return 5;
  return fclose(file);
}
