"""The compiled kernels: find, load and call them. They are optional, because building them needs a C++ compiler."""

import ctypes
import os
from collections.abc import Callable, Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from pathlib import Path
from typing import Any, NamedTuple

import torch  # first, because its OpenMP runtime is the one that the library must find loaded
from torch import Tensor

from seqbatch._torch import keep_out_of_graphs
from seqbatch.errors import SeqbatchValueError

_SUFFIX = ".abi3.so"  # of modules by the limited API, on Linux and macOS
_NAME = f"library{_SUFFIX}"
_INTERFACE = 1  # of what Python and the module pass to each other, as in module.cpp
_INSTRUCTION_SETS = ("baseline", "avx2", "avx512")  # a position is the number that recurrent.h and library.cpp use


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
    library: Any = None  # its C functions, by ctypes
    module: Any = None  # the same file as a module of Python: the functions of module.cpp, for recurrent layers


_ADDRESS, _NUMBER = ctypes.c_void_p, ctypes.c_int64
# What the functions of the library take; rows.h has the meaning of the numbers and addresses.
_ARGUMENTS: dict[str, list[Any]] = {
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
    if _SUFFIX not in EXTENSION_SUFFIXES:
        return Kernels("not loaded, because this Python has no limited API, as if it is free-threaded")
    places = [Path(folder) for folder in folders]
    paths = [path for folder in places if (path := folder / _NAME).exists()]
    if not paths:
        for folder in places:
            if (folder / "recurrent.cpp").exists():  # which no wheel has
                remedy = "run Python in another folder, where it imports the installed seqbatch"
                return Kernels(f"not built in the checkout {folder.parents[1]}: {remedy}")
        remedy = "install them (GCC or Clang; python3-dev on Debian), and then seqbatch again"
        reason = "there was no C++ compiler with OpenMP, or no headers of Python, at installation"
        return Kernels(f"not built, because {reason}: {remedy}")
    try:
        library = ctypes.CDLL(str(paths[0]))
        sizes = library.seqbatch_attention_size(), library.seqbatch_rows_size()
        best = library.seqbatch_isa()
        for name, arguments in _ARGUMENTS.items():
            getattr(library, name).argtypes = arguments
        module = _load_module(str(paths[0]))
    except (OSError, AttributeError, ImportError) as error:  # AttributeError: a function is missing, in another version
        return Kernels(f"not loaded, because of the error: {error}")
    # A checkout may hold a library that was built before the sources changed.
    known = _INTERFACE, *map(ctypes.sizeof, (Attention, Rows))
    if (getattr(module, "INTERFACE", None), *sizes) != known:
        return Kernels("not loaded, because the library was built from other sources: install seqbatch again")
    isa = _INSTRUCTION_SETS.index(choice) if choice else best
    if isa > best:
        raise SeqbatchValueError(
            f"The environment variable SEQBATCH_KERNELS must be at most {_INSTRUCTION_SETS[best]}, which is the best "
            f"instruction set of this processor in the library; got {choice}."
        )
    return Kernels("", isa, library, module)


def _load_module(path: str) -> Any:
    """Import the library as a module of Python."""
    loader = ExtensionFileLoader(f"{__name__}.library", path)
    module = module_from_spec(ModuleSpec(loader.name, loader, origin=path))
    loader.exec_module(module)
    return module


_kernels = load(__path__, os.environ.get("SEQBATCH_KERNELS", ""))

MISSING = _kernels.missing
IS_THERE = not MISSING
ISA_NUMBER = _kernels.isa  # the position in _INSTRUCTION_SETS
ISA = _INSTRUCTION_SETS[ISA_NUMBER] if IS_THERE else ""


def forward(
    form: Sequence[Any], tensors: Sequence[Tensor], *, keep: bool, isa: int | None = None
) -> tuple[Tensor, ...]:
    """Run one layer over all sequences. Requires `IS_THERE`.

    Args:
        form: the layer, a `LayerForm` of _engines/_stack.py.
        tensors: its tensors, as described there: on the CPU, dense, and all float32 or all float64.
        keep: whether to keep what the backward pass needs.
        isa: the number of an instruction set, by default that in use.

    Returns:
        outputs, final states, and what the backward pass needs, which is empty unless it is kept.
    """
    is_double, isa = tensors[0].dtype is torch.float64, ISA_NUMBER if isa is None else isa
    results: tuple[Tensor, ...] | None
    results = _kernels.module.forward(form, tensors, keep, is_double, torch.get_num_threads(), isa)
    if results is None:
        raise _lack_of_memory("run a recurrent layer")
    return results


def backward(
    form: Sequence[Any],
    output: Tensor,
    saved: Tensor,
    tensors: Sequence[Tensor],
    gradients: Sequence[Tensor | None],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Compute the gradients of the tensors of one layer, with None for those that are not wanted. Requires `IS_THERE`.

    Args:
        form: as for `forward`.
        output: the outputs, as `forward` returned them.
        saved: what it kept.
        tensors: as for `forward`.
        gradients: those of the outputs and of each final state, or None for zeros.
        wanted: for each tensor, whether to compute its gradient; those of the initial states are always computed.
    """
    is_double, threads = tensors[0].dtype is torch.float64, torch.get_num_threads()
    of_tensors: list[Tensor | None] | None
    of_tensors = _kernels.module.backward(
        form, output, saved, tensors, gradients, wanted, is_double, threads, ISA_NUMBER
    )
    if of_tensors is None:
        raise _lack_of_memory("run a recurrent layer")
    return of_tensors


for _function in (forward, backward):
    keep_out_of_graphs(_function, "seqbatch: compiled kernels cannot be traced")


def configure_shortcut(
    objects: dict[str, Any], layer_types: list[tuple[type, Any, int, bool]]
) -> Callable[[Any, Any, Any], tuple[Any, Any] | None]:
    """Set what the shortcut reads, and return it: `(layer, batch, state) -> (batch, state)`, or None for unusual calls.

    `_encoders/recurrent_shortcut.py` has the meaning of the arguments. Requires `IS_THERE`.
    """
    _kernels.module.configure(objects, layer_types)
    run: Callable[[Any, Any, Any], tuple[Any, Any] | None] = _kernels.module.run
    return run


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
        raise _lack_of_memory(what)


def _lack_of_memory(what: str) -> MemoryError:
    return MemoryError(f"There is not enough memory to {what}. Run fewer sequences at once.")
