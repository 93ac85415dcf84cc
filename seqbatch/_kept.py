"""Kept: a property that is computed once, outside of torch.inference_mode and of graphs."""

from collections.abc import Callable
from typing import Any, Generic, TypeVar

import torch

from seqbatch._modes import is_intercepted, refuse_in_a_graph

T = TypeVar("T")


def outside_inference_mode(make: Callable[[], T]) -> T:
    """Make something that is of use in training too; to leave the mode takes time, so only where it is on."""
    if not torch.is_inference_mode_enabled():
        return make()
    with torch.inference_mode(False):
        return make()


class Kept(Generic[T]):
    """A property that is computed once, and of use in training too if that was in `torch.inference_mode`.

    `functools.cached_property` has a lock, which takes time and which `torch.compile` does not understand.
    """

    def __init__(self, compute: Callable[[Any], T]) -> None:
        self._compute, self.__doc__ = compute, compute.__doc__

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, one: object, owner: type) -> T:
        refuse_in_a_graph(self._name)
        made = outside_inference_mode(lambda: self._compute(one))
        if not is_intercepted():  # by what the tensors end with
            vars(one)[self._name] = made
        return made
