"""NotATensor: batches and states raise, and say what to do, where they are used as Tensors."""

from collections.abc import Callable
from typing import Any, ClassVar, NoReturn

from torch import Tensor

from seqbatch._checks.grammar import class_name, complaint, type_name
from seqbatch._torch import in_a_graph
from seqbatch.errors import SeqbatchTypeError


class NotATensorError(SeqbatchTypeError, AttributeError):
    """An attribute was read of a wrong object; it is an AttributeError too, so that `hasattr` returns False."""


class NotATensor:
    """Refuses functions of torch and NumPy, operators, and attributes of Tensor, none of which knows the lengths.

    The methods are set below and not defined here, because type checkers would then accept what calls them.
    """

    __slots__ = ()
    # What to call in place of a function of torch, and where the Tensors are.
    _instead: ClassVar[str]
    _contents: ClassVar[str]
    # The same for the shape and for a loss, empty where the two above say all.
    _sizes: ClassVar[str] = ""
    _in_a_loss: ClassVar[str] = ""
    _has_map: ClassVar[bool] = False

    def _parts_with(self, name: str) -> list[str]:
        """Return how to read an attribute of the parts that have it, such as `state.states[1].last`."""
        return []


class NotAnArray(NotATensor):
    """Refuses functions of NumPy too, which would stack sequences of equal length."""

    __slots__ = ()
    _has_map = True


_BINARY = {
    "add": ("+", "add"),
    "sub": ("-", "sub"),
    "mul": ("*", "mul"),
    "truediv": ("/", "div"),
    "floordiv": ("//", "floor_divide"),
    "mod": ("%", "remainder"),
    "pow": ("**", "pow"),
    "and": ("&", "bitwise_and"),
    "or": ("|", "bitwise_or"),
    "xor": ("^", "bitwise_xor"),
}
_LOSSES = ("loss", "cross_entropy", "cross_entropy_with_logits", "kl_div")  # how their names end
_COMPARISONS = {"lt": ("<", "lt"), "le": ("<=", "le"), "gt": (">", "gt"), "ge": (">=", "ge")}
_UNARY = {"neg": ("-", "neg"), "pos": ("+", "positive"), "abs": ("abs", "abs"), "invert": ("~", "bitwise_not")}


def _refusal(symbol: str, advice: str) -> Callable[..., Any]:
    """Make the method that refuses an operator; the advice is for classes that have `map`."""

    def refuse(self: NotATensor, *operands: object) -> Any:
        if operands and isinstance(operands[0], (list, tuple)):
            return NotImplemented  # so that `sequences += batch` extends a list
        remedy = advice if self._has_map else self._instead
        raise complaint(SeqbatchTypeError, symbol, "be applied to Tensors", type_name(self), remedy)

    return refuse


def _refuse_function(cls: type[NotATensor], function: Any, types: object, *arguments: object) -> NoReturn:
    """Refuse a function of torch, which is what layers call too; PyTorch goes on after it where `==` called it."""
    remedy = (function.__name__.endswith(_LOSSES) and cls._in_a_loss) or cls._instead
    raise complaint(SeqbatchTypeError, function.__name__, "be called with Tensors", class_name(cls), remedy)


def _refuse_conversion(self: NotATensor, *arguments: object, **options: object) -> NoReturn:
    """Refuse to become a Tensor or an array."""
    raise complaint(SeqbatchTypeError, "data", "be a Tensor, an array or numbers", type_name(self), self._contents)


def _refuse_ufunc(self: NotATensor, function: Any, *arguments: object, **options: object) -> NoReturn:
    """Refuse a function of NumPy and the operators of its arrays."""
    raise complaint(SeqbatchTypeError, function.__name__, "be called with arrays", type_name(self), self._contents)


def _refuse_attribute(self: NotATensor, name: str) -> NoReturn:
    """Refuse an attribute that is not there, which for most is what a layer or a function reads of a Tensor."""
    # `torch.compile` understands neither keyword arguments of an exception nor how NotATensorError is made.
    if hasattr(Tensor, name):
        must = "is an attribute of a Tensor, and a layer or function that reads it must be called with one"
        contents = (name in ("shape", "size") and self._sizes) or self._contents
        remedy = f"{self._instead} {contents}"
    elif parts := self._parts_with(name):
        must, remedy = "must be read from the state of one layer", f"Use {' or '.join(parts)}."
    else:
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
    text = f"`{name}` {must}; got {type_name(self)}. {remedy}"
    if in_a_graph():
        raise AttributeError(text)
    raise NotATensorError(text)


def _set_refusals() -> None:
    """Set the methods, whose names type checkers do not see."""
    refusals: dict[str, Any] = {
        "__torch_function__": classmethod(_refuse_function),
        "__dlpack__": _refuse_conversion,
        "__dlpack_device__": _refuse_conversion,
        "__getattr__": _refuse_attribute,
    }
    for name, (symbol, function) in {**_BINARY, **_COMPARISONS}.items():
        call = f"Call batch.map(torch.{function}, other) for another batch"
        refusals[f"__{name}__"] = _refusal(symbol, f"{call}, batch.map(lambda values: values {symbol} 1) for a number.")
        if name in _BINARY:
            refusals[f"__r{name}__"] = _refusal(
                symbol, f"Call batch.map(lambda values: 1 {symbol} values) for a number."
            )
    for name, (symbol, function) in _UNARY.items():
        refusals[f"__{name}__"] = _refusal(symbol, f"Call batch.map(torch.{function}).")
    refusals["__matmul__"] = _refusal("@", "Call batch.map(lambda values: values @ weight).")
    refusals["__rmatmul__"] = _refusal("@", "Call batch.map(lambda values: values @ weight.T).")
    for name, refusal in refusals.items():
        setattr(NotATensor, name, refusal)
    for name, refusal in (("__array__", _refuse_conversion), ("__array_ufunc__", _refuse_ufunc)):
        setattr(NotAnArray, name, refusal)


_set_refusals()
