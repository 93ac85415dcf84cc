"""The one grammar of error messages: what must hold; what was found; the remedy."""

from typing import TypeVar

from torch import Tensor, nn

from seqbatch._torch import in_a_graph
from seqbatch.errors import SeqbatchError

Error = TypeVar("Error", bound=SeqbatchError)
# The most characters of a value in an error, which should stay one sentence.
MOST_SHOWN = 60


def complaint(error: type[Error], subject: str, must: str, found: object, remedy: str = "") -> Error:
    """Build the error "`subject` must ...; got ... Remedy." of the given class."""
    ending = f" {remedy}" if remedy else ""
    return error(f"`{subject}` must {must}; got {found}.{ending}")


def type_name(value: object) -> str:
    """Name the type of a value, with an article and its module."""
    return "None" if value is None else class_name(type(value))


def class_name(cls: type) -> str:
    """Name a class, with an article and its module."""
    where = "" if cls.__module__ == "builtins" else f"{cls.__module__}."
    name = f"{where}{cls.__qualname__}"
    return f"an {name}" if name[0] in "aeiouAEIOU" else f"a {name}"


def shown(value: object) -> str:
    """Return the `repr` of a value in one line, cut if it is long."""
    text = " ".join(repr(value).split("\n"))
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}..."


def traits(*tensors: Tensor) -> str:
    """Name the dtype and device of tensors, and whether gradients are recorded for one, as their `repr` does."""
    recorded = ", requires_grad=True" if any(tensor.requires_grad for tensor in tensors) else ""
    return f"{tensors[0].dtype}, {tensors[0].device}{recorded}"


def counted(number: int, what: str) -> str:
    """Return a number with its noun: "1 sequence", "2 sequences"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def describe(layer: nn.Module) -> str:
    """Name a layer with its sizes, in one line."""
    if in_a_graph():  # because `torch.compile` cannot trace the `extra_repr` of some layers
        return type(layer).__name__
    try:
        sizes = layer.extra_repr() or ("..." if [*layer.children()] else "")
    except Exception:  # a fault in `extra_repr` must not replace the error that is being raised
        sizes = "..."
    return f"{type(layer).__name__}({sizes})"
