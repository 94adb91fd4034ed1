/* What this CPU can do, asked before a kernel runs: an instruction that is missing would end the process. */
#ifndef DEPLOYKIT_CPU_H
#define DEPLOYKIT_CPU_H

/* Whether the CPU has a feature, in LLVM's spelling; a name that is not known counts as missing. */
int cpu_has(const char *feature);
#endif
