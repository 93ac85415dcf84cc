"""CachedProperty: computed once, outside of torch.inference_mode, and refused while tracing."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from seqbatch._checks.tracing import refuse_in_a_graph
from seqbatch._torch import is_intercepted

T = TypeVar("T")


def outside_inference_mode(make: Callable[[], T]) -> T:
    """Compute outside `torch.inference_mode`, so that autograd can use the result; leaving the mode takes time."""
    if not torch.is_inference_mode_enabled():
        return make()
    with torch.inference_mode(False):
        return make()


class CachedProperty(Generic[T]):
    """A property that is computed once, outside `torch.inference_mode`, so that autograd can use it.

    While a transform or a mode intercepts operations, the value is computed at each access.

    `functools.cached_property` has a lock, which takes time and which `torch.compile` cannot trace.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, one: object, owner: type) -> T:
        refuse_in_a_graph(self._name)
        made = outside_inference_mode(lambda: self._compute(one))
        if not is_intercepted():  # because tensors made in a transform are invalid after it
            vars(one)[self._name] = made
        return made
