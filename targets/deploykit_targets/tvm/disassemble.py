"""Which instructions a kernel really consists of, read in the assembly that TVM's LLVM made of it.

A layer is claimed to run in int8 by the lowering; here that claim meets the machine code. A kernel is its function and
all local functions that it mentions: TVM puts the body of a parallel loop into one of its own.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum

from deploykit.contract.errors import ConversionError
from deploykit_targets.tvm.program import Program, Step


class Product(StrEnum):
    """How a kernel multiplies, best first."""

    BFLOAT16 = "bfloat16 dot products"  # two or four products summed into a float32
    DOT = "integer dot products"  # several 8- or 16-bit products summed into 32 bits by one instruction
    INTEGER = "integer multiplications"  # widening products and sums (plain NEON, depthwise on Arm)
    FLOAT = "float multiplications"
    NONE = "no multiplications"


# What the vector units of both architectures have; AVX forms carry a `v`.
_DOT = r"[su]dot|usdot|[su]mmla|usmmla|vpdpbusds?|vpdpwssds?|vpmaddwd|vpmaddubsw|tdpb[su][su]d"
_INTEGER = r"[su]ml[as]l2?|[su]mull2?|[su]adalp|vpmull[wdq]|vpmulh\w*"
_BFLOAT16 = r"bfdot|bfmmla|vdpbf16ps|tdpbf16ps"
_FLOAT = r"fml[as]|fmadd|fmsub|fmul|vf(?:n?m)(?:add|sub)\d+[ps][sd]|vmul[ps][sd]"
_KINDS = (
    (Product.BFLOAT16, re.compile(_BFLOAT16)),
    (Product.DOT, re.compile(_DOT)),
    (Product.INTEGER, re.compile(_INTEGER)),
    (Product.FLOAT, re.compile(_FLOAT)),
)
_FUNCTION = re.compile(r"^\s+\.type\s+([.\w$]+),\s*[@%]function", re.MULTILINE)
# AVX-VNNI's instructions have a prefix, as AVX-512 spells them alike.
# Arm spells scalar and vector products alike: `umull x8, w9, w10` divides an address and is no product of data.
_INSTRUCTION = re.compile(r"^\s+(?:\{vex\}\s+)?([a-z][a-z0-9]*)(?:\.[a-z0-9]+)?\s+(?![wx]\d)", re.MULTILINE)
_NAME = re.compile(r"[.\w$]+")
_PREFIX = "__tvm_ffi_"


@dataclass(frozen=True)
class Instructions:
    """The instructions of a kernel.

    Attributes:
        mnemonics: how often each multiplying instruction stands in the code (not: how often it runs).
    """

    mnemonics: Mapping[str, int]

    @property
    def product(self) -> Product:
        """How it multiplies; scaling an integer sum back takes float multiplications, too, which do not count then."""
        for kind, pattern in _KINDS:
            if any(pattern.fullmatch(name) for name in self.mnemonics):
                return kind
        return Product.NONE

    @property
    def integer(self) -> bool:
        """Whether it multiplies integers in its vectors."""
        return self.product in (Product.DOT, Product.INTEGER)

    def __str__(self) -> str:
        return ", ".join(f"{count} {name}" for name, count in sorted(self.mnemonics.items())) or "no multiplications"


def code_of(assembly: str, symbol: str) -> list[str]:
    """The bodies of all functions of a kernel, as text.

    Raises:
        ConversionError: the symbol is not in the assembly.
    """
    return list(functions_of(assembly, symbol).values())


def functions_of(assembly: str, symbol: str) -> dict[str, str]:
    """Body of each function of a kernel by its name.

    Raises:
        ConversionError: the symbol is not in the assembly.
    """
    functions = _functions(assembly)
    names = _reachable(_entry(symbol, functions), _mentioned(functions))
    return {name: body for name, body in functions.items() if name in names}


def kernels_in(assembly: str, symbols: Iterable[str]) -> dict[str, Instructions]:
    """The instructions of each kernel.

    Args:
        assembly: `inspect_source("asm")` of TVM's module.
        symbols: the symbols of the program's steps.
    Raises:
        ConversionError: a symbol is not in the assembly.
    """
    functions = _functions(assembly)
    mentioned = _mentioned(functions)
    own = {name: _multiplications(body) for name, body in functions.items()}
    found = {}
    for symbol in dict.fromkeys(symbols):
        names = _reachable(_entry(symbol, functions), mentioned)
        found[symbol] = Instructions(sum((own[name] for name in names), Counter()))
    return found


def confirm(assembly: str, program: Program, *, bfloat16: frozenset[str] = frozenset()) -> dict[str, Instructions]:
    """The instructions of every layer with multiply-accumulates, by node.

    Args:
        bfloat16: the instructions one of which each product of bfloat16 has, but for depthwise layers, which are
            widened; none where all are.
    Raises:
        ConversionError: a step claims to multiply integers, or bfloat16, and its kernel has no such instruction. A
            defect.
    """
    counted = [step for step in program.steps if step.macs]
    kernels = kernels_in(assembly, (step.symbol for step in counted))
    for step in counted:
        _check_claim(step, kernels[step.symbol], bfloat16)
    return {step.node: kernels[step.symbol] for step in counted}


def _check_claim(step: Step, found: Instructions, bfloat16: frozenset[str]) -> None:
    narrow = bool(bfloat16) and step.computes == "bfloat16" and step.kind != "depthwise"
    if (step.integer and not found.integer) or (narrow and not bfloat16 & found.mnemonics.keys()):
        raise ConversionError(
            f"tvm: {step.node} is to run in {'bfloat16' if narrow else 'integers'}, and the machine code of"
            f" {step.symbol} has {found}",
            hint="this is a defect of deploykit's kernels; please report it",
        )


def _functions(assembly: str) -> dict[str, str]:
    """Body of each function by its name."""
    found = {}
    for match in _FUNCTION.finditer(assembly):
        name = match.group(1)
        end = assembly.find(f".size\t{name},", match.end())  # what follows the last one names all functions
        found[name] = assembly[match.start() : end if end >= 0 else len(assembly)]
    return found


def _entry(symbol: str, functions: Mapping[str, str]) -> str:
    if _PREFIX + symbol not in functions:
        raise ConversionError(f"tvm: the assembly has no function of kernel {symbol}")
    return _PREFIX + symbol


def _mentioned(functions: Mapping[str, str]) -> dict[str, set[str]]:
    """Function to the functions that its body names."""
    return {name: set(_NAME.findall(body)) & functions.keys() for name, body in functions.items()}


def _multiplications(body: str) -> Counter[str]:
    names = _INSTRUCTION.findall(body)
    return Counter(name for name in names if any(pattern.fullmatch(name) for _, pattern in _KINDS))


def _reachable(first: str, mentioned: Mapping[str, set[str]]) -> set[str]:
    seen: set[str] = set()
    waiting = [first]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += mentioned[name]
    return seen
