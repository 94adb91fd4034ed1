/* What stands before the data of each input and output in a frame; see `table.heads_source`. */
#ifndef DEPLOYKIT_HEADS_H
#define DEPLOYKIT_HEADS_H
#include <stddef.h>

typedef struct { const char *data; size_t bytes; } TensorHead;

extern const TensorHead deploykit_input_heads[], deploykit_output_heads[];
#endif
