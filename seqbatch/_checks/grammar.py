"""The one grammar of error messages: what must hold; what was found; the remedy."""

from typing import TypeVar

from torch import nn

from seqbatch._torch import in_a_graph
from seqbatch.errors import SeqbatchError

Error = TypeVar("Error", bound=SeqbatchError)


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


def counted(number: int, what: str) -> str:
    """Return a number with its noun: "1 sequence", "2 sequences"."""
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def describe(layer: nn.Module) -> str:
    """Name a layer with its sizes, in one line."""
    if in_a_graph():  # because `torch.compile` cannot trace the `extra_repr` of some layers
        return type(layer).__name__
    try:
        sizes = layer.extra_repr()
    except Exception:  # a fault in `extra_repr` must not replace the error that is being raised
        sizes = "..."
    return f"{type(layer).__name__}({sizes})"
