"""The compiled kernels: find, load and call them. They are optional, because building them needs a C++ compiler."""

import ctypes
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  # first, because its OpenMP runtime is the one that the library must find loaded

from seqbatch.errors import SeqbatchValueError

_NAME = "libseqbatch.kernels.so"  # on Linux and macOS
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # a position is the number that recurrent.h and library.cpp use


class Direction(ctypes.Structure):
    """Addresses of one direction of one layer; recurrent.h has their shapes. None is a null pointer."""

    _fields_ = [
        (name, ctypes.c_void_p)
        for name in (
            "weight_ih",
            "weight_hh",
            "bias_ih",
            "bias_hh",
            "weight_hr",
            "hidden",
            "cell",
            "out",
            "saved",
            "final_hidden",
            "final_cell",
            "grad_out",
            "grad_final_hidden",
            "grad_final_cell",
            "grad_gates",
            "grad_hidden",
            "grad_cell",
            "grad_weight_ih",
            "grad_weight_hh",
            "grad_bias_ih",
            "grad_bias_hh",
            "grad_weight_hr",
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
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "weight", "out", "query_starts", "key_starts")),
        *((name, ctypes.c_int64) for name in ("sequences", "heads", "size", "value_size")),
        *((name, ctypes.c_int64) for name in ("query_stride", "key_stride", "value_stride", "out_stride")),
        ("scale", ctypes.c_double),
        *((name, ctypes.c_int32) for name in ("is_causal", "threads", "isa")),
    ]


class Kernels(NamedTuple):
    """What loading the library resulted in."""

    missing: str  # why the kernels are not in use; empty if they are
    isa: int = 0
    forward: tuple[Callable[..., int], ...] = ()  # for float, double
    backward: tuple[Callable[..., int], ...] = ()
    attend: tuple[Callable[..., int], ...] = ()  # for float, double
    rows: tuple[Callable[..., int], ...] = ()  # copy, measure, sort, unpack


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
        forward = library.seqbatch_forward_float, library.seqbatch_forward_double
        backward = library.seqbatch_backward_float, library.seqbatch_backward_double
        attend = library.seqbatch_attend_float, library.seqbatch_attend_double
        copy, measure = library.seqbatch_copy, library.seqbatch_measure
        sort, unpack = library.seqbatch_sort, library.seqbatch_unpack
    except (OSError, AttributeError) as error:  # AttributeError: a function is missing, in a library of another version
        return Kernels(f"not loaded, because of the error: {error}")
    # A checkout may hold a library that was built before the sources changed.
    if sizes != tuple(ctypes.sizeof(structure) for structure in (Call, Attention, Rows)):
        return Kernels("not loaded, because the library was built from other sources: install seqbatch again")
    for function in (*forward, *backward):
        function.argtypes = [ctypes.POINTER(Call)]
    for function in attend:
        function.argtypes = [ctypes.POINTER(Attention)]
    address, number = ctypes.c_void_p, ctypes.c_int64
    copy.argtypes = [ctypes.POINTER(Rows)]
    measure.argtypes = [address, number, address]
    sort.argtypes = [address, number, number, address, address, address]
    unpack.argtypes = [address, number, address, address, number, number, address]
    isa = _INSTRUCTION_SETS.index(choice) if choice else best
    if isa > best:
        raise SeqbatchValueError(
            f"The environment variable SEQBATCH_KERNELS must be at most {_INSTRUCTION_SETS[best]}, which is the best "
            f"instruction set of this processor in the library; got {choice}."
        )
    return Kernels("", isa, forward, backward, attend, (copy, measure, sort, unpack))


_kernels = load(__path__, os.environ.get("SEQBATCH_KERNELS", ""))

MISSING = _kernels.missing
IS_THERE = not MISSING
ISA_NUMBER = _kernels.isa  # for `Call.isa`
ISA = _INSTRUCTION_SETS[ISA_NUMBER] if IS_THERE else ""


def forward(call: Call, is_double: bool) -> None:
    """Run one layer over all sequences. Requires `IS_THERE`; the caller has checked all sizes and addresses."""
    _raise_if_failed(_kernels.forward[is_double](call), "run a recurrent layer")


def backward(call: Call, is_double: bool) -> None:
    """Compute the gradients of gates, inputs, weights and initial states. Requires `IS_THERE`, as `forward`."""
    _raise_if_failed(_kernels.backward[is_double](call), "run a recurrent layer")


def compute_attention(call: Attention, is_double: bool) -> None:
    """Compute attention. Requires `IS_THERE`, as `forward`."""
    _raise_if_failed(_kernels.attend[is_double](call), "compute attention")


def copy(rows: Rows) -> None:
    """Copy rows between layouts. Requires `IS_THERE`, as `forward`."""
    _raise_if_failed(_kernels.rows[0](rows), "copy sequences")


def measure(lengths: int, sequences: int) -> list[int] | None:
    """Compute the least length, the greatest and their sum, or None if one is negative or the sum too large.

    Requires `IS_THERE`; rows.h has the arguments here and below.
    """
    found = (ctypes.c_int64 * 3)()
    return list(found) if _kernels.rows[1](lengths, sequences, found) else None


def sort(*arguments: int) -> None:
    """Sort sequences by length. Requires `IS_THERE`."""
    _kernels.rows[2](*arguments)


def unpack(*arguments: int) -> bool:
    """Compute lengths, and return True if the parts of a PackedSequence fit each other. Requires `IS_THERE`."""
    return bool(_kernels.rows[3](*arguments))


def _raise_if_failed(result: int, what: str) -> None:
    if result:
        raise MemoryError(f"There is not enough memory to {what}. Run fewer sequences at once.")
