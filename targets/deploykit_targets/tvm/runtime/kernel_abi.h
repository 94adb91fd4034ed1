/* What TVM's compiled kernels expect of the program around them; names and layout are TVM's (tvm/ffi/c_api.h,
 * dlpack.h, tvm/runtime/c_backend_api.h of TVM 0.27). */
#ifndef DEPLOYKIT_KERNEL_ABI_H
#define DEPLOYKIT_KERNEL_ABI_H
#include <stdint.h>

typedef struct { int32_t device_type, device_id; } KernelDevice;
typedef struct { uint8_t code, bits; uint16_t lanes; } KernelDataType;
typedef struct {
  void *data;
  KernelDevice device;
  int32_t ndim;
  KernelDataType dtype;
  int64_t *shape, *strides; /* no strides: dense */
  uint64_t byte_offset;
} KernelTensor;
typedef struct {
  int32_t type_index;
  uint32_t padding;
  union { int64_t integer; void *pointer; } value;
} KernelArgument;
typedef struct { void *sync_handle; int32_t num_task; } KernelShare;

enum { ARGUMENT_TENSOR = 7, DEVICE_CPU = 1 };

typedef int32_t (*Kernel)(void *self, const KernelArgument *arguments, int32_t count, KernelArgument *result);
/* One share of a parallel loop; it divides the loop itself by its number and `num_task`. */
typedef int (*KernelTask)(int number, KernelShare *share, void *data);
#endif
