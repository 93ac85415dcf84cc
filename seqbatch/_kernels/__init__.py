"""The compiled kernels: find, load and call them. They are optional, because building them needs a C++ compiler."""

import ctypes
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import torch  # noqa: F401  # first, because its OpenMP runtime is the one that the library must find loaded

from seqbatch.errors import SeqbatchValueError

_NAME = "libseqbatch.kernels.so"  # on Linux and macOS
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # a position is the number that recurrent.h and library.cpp use
_WEIGHTS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")


class Direction(ctypes.Structure):
    """Addresses of one direction of one layer; recurrent.h has their shapes. None is a null pointer."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            *_WEIGHTS,
            *("hidden", "cell", "out", "saved", "final_hidden", "final_cell"),
            *("grad_out", "grad_final_hidden", "grad_final_cell", "grad_gates", "grad_hidden", "grad_cell"),
            *(f"grad_{name}" for name in _WEIGHTS),
        )
    ]


class Call(ctypes.Structure):
    """What one call of a kernel reads; recurrent.h has the meaning of each field."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("kind", "directions", "threads", "isa")),
        *(
            (name, ctypes.c_int64)
            for name in ("sequences", "steps", "input_size", "hidden_size", "projection", "out_stride")
        ),
        *((name, ctypes.c_void_p) for name in ("starts", "lengths", "index", "x", "grad_x")),
        ("direction", Direction * 2),
    ]


class Rows(ctypes.Structure):
    """What one copy of rows between layouts reads; rows.h has the meaning of each field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("flat", "other", "fill", "lengths", "places", "sizes")),
        *((name, ctypes.c_int64) for name in ("sequences", "time", "row", "element", "sequence_stride", "step_stride")),
        *((name, ctypes.c_int32) for name in ("is_left", "into_flat", "threads")),
    ]


class Attention(ctypes.Structure):
    """What one call of attention reads; attention.h has the meaning of each field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "weight", "out", "log_sums", "grad_out")),
        *((name, ctypes.c_void_p) for name in ("grad_query", "grad_key", "grad_value", "grad_weight")),
        *((name, ctypes.c_void_p) for name in ("query_starts", "key_starts")),
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "size", "value_size")),
        *((name, ctypes.c_int64) for name in ("query_stride", "key_stride", "value_stride", "out_stride")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("is_causal", "threads", "isa")),
    ]


class Kernels(NamedTuple):
    """What loading the library resulted in."""

    missing: str  # why the kernels are not in use; empty if they are
    isa: int = 0
    library: Any = None


_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
# What the functions of the library take; rows.h has the meaning of the numbers and addresses.
_ARGUMENTS: dict[str, list[Any]] = {
    "seqbatch_forward_float": [ctypes.POINTER(Call)],
    "seqbatch_forward_double": [ctypes.POINTER(Call)],
    "seqbatch_backward_float": [ctypes.POINTER(Call)],
    "seqbatch_backward_double": [ctypes.POINTER(Call)],
    "seqbatch_attend_float": [ctypes.POINTER(Attention)],
    "seqbatch_attend_double": [ctypes.POINTER(Attention)],
    "seqbatch_attend_backward_float": [ctypes.POINTER(Attention)],
    "seqbatch_attend_backward_double": [ctypes.POINTER(Attention)],
    "seqbatch_copy": [ctypes.POINTER(Rows)],
    "seqbatch_measure": [_ADDRESS, _NUMBER, _ADDRESS],
    "seqbatch_sort": [_ADDRESS, _NUMBER, _NUMBER, _ADDRESS, _ADDRESS, _ADDRESS],
    "seqbatch_unpack": [_ADDRESS, _NUMBER, _ADDRESS, _ADDRESS, _NUMBER, _NUMBER, _ADDRESS],
}


def load(folders: Iterable[str], choice: str) -> Kernels:
    """Load the library from the first folder that has it.

    `choice` is the value of SEQBATCH_KERNELS: "0" for no kernels, the name of an instruction set, or empty for the best
    one of this processor.
    """
    if choice not in ("", "0", *_INSTRUCTION_SETS):
        allowed = ", ".join(("0", *_INSTRUCTION_SETS))
        raise SeqbatchValueError(f"The environment variable SEQBATCH_KERNELS must be one of {allowed}; got {choice!r}.")
    if choice == "0":
        return Kernels("switched off by SEQBATCH_KERNELS=0")
    places = [Path(folder) for folder in folders]
    paths = [path for folder in places if (path := folder / _NAME).exists()]
    if not paths:
        for folder in places:
            if (folder / "recurrent.cpp").exists():  # which no wheel has
                remedy = "run Python in another folder, where it imports the installed seqbatch"
                return Kernels(f"not built in the checkout {folder.parents[1]}: {remedy}")
        remedy = "install GCC or Clang, and then seqbatch again"
        return Kernels(f"not built, because there was no C++ compiler with OpenMP at installation: {remedy}")
    try:
        library = ctypes.CDLL(str(paths[0]))
        sizes = library.seqbatch_call_size(), library.seqbatch_attention_size(), library.seqbatch_rows_size()
        best = library.seqbatch_isa()
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
    except (OSError, AttributeError) as error:  # AttributeError: a function is missing, in a library of another version
        return Kernels(f"not loaded, because of the error: {error}")
    # A checkout may hold a library that was built before the sources changed.
    if sizes != tuple(ctypes.sizeof(structure) for structure in (Call, Attention, Rows)):
        return Kernels("not loaded, because the library was built from other sources: install seqbatch again")
    isa = _INSTRUCTION_SETS.index(choice) if choice else best
    if isa > best:
        raise SeqbatchValueError(
            f"The environment variable SEQBATCH_KERNELS must be at most {_INSTRUCTION_SETS[best]}, which is the best "
            f"instruction set of this processor in the library; got {choice}."
        )
    return Kernels("", isa, library)


_kernels = load(__path__, os.environ.get("SEQBATCH_KERNELS", ""))

MISSING = _kernels.missing
IS_THERE = not MISSING
ISA_NUMBER = _kernels.isa  # for `Call.isa`
ISA = _INSTRUCTION_SETS[ISA_NUMBER] if IS_THERE else ""


def forward(call: Call, is_double: bool) -> None:
    """Run one layer over all sequences. Requires `IS_THERE`; the caller has checked all sizes and addresses."""
    library = _kernels.library
    run = library.seqbatch_forward_double if is_double else library.seqbatch_forward_float
    _raise_if_failed(run(call), "run a recurrent layer")


def backward(call: Call, is_double: bool) -> None:
    """Compute the gradients of gates, inputs, weights and initial states. Requires `IS_THERE`, as `forward`."""
    library = _kernels.library
    run = library.seqbatch_backward_double if is_double else library.seqbatch_backward_float
    _raise_if_failed(run(call), "run a recurrent layer")


def compute_attention(call: Attention, is_double: bool) -> None:
    """Compute attention. Requires `IS_THERE`, as `forward`."""
    library = _kernels.library
    run = library.seqbatch_attend_double if is_double else library.seqbatch_attend_float
    _raise_if_failed(run(call), "compute attention")


def compute_attention_gradients(call: Attention, is_double: bool) -> None:
    """Compute the gradients of attention. Requires `IS_THERE`, as `forward`."""
    library = _kernels.library
    run = library.seqbatch_attend_backward_double if is_double else library.seqbatch_attend_backward_float
    _raise_if_failed(run(call), "compute the gradients of attention")


def copy(rows: Rows) -> None:
    """Copy rows between layouts. Requires `IS_THERE`, as `forward`."""
    _raise_if_failed(_kernels.library.seqbatch_copy(rows), "copy sequences")


def measure(lengths: int, sequences: int) -> list[int] | None:
    """Compute the least length, the greatest and their sum, or None if one is negative or the sum too large.

    Requires `IS_THERE`; rows.h has the arguments here and below.
    """
    found = (ctypes.c_int64 * 3)()
    return list(found) if _kernels.library.seqbatch_measure(lengths, sequences, found) else None


def sort(*arguments: int) -> None:
    """Sort sequences by length. Requires `IS_THERE`."""
    _kernels.library.seqbatch_sort(*arguments)


def unpack(*arguments: int) -> bool:
    """Compute lengths, and return True if the parts of a PackedSequence fit each other. Requires `IS_THERE`."""
    return bool(_kernels.library.seqbatch_unpack(*arguments))


def _raise_if_failed(result: int, what: str) -> None:
    if result:
        raise MemoryError(f"There is not enough memory to {what}. Run fewer sequences at once.")
