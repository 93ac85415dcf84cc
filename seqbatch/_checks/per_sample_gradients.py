"""Refusal of layers with gradients per sample, such as those of opacus, because a step would count as a sample."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock, get_ident
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from seqbatch._checks.grammar import complaint, describe
from seqbatch._torch import EXPANDED_WEIGHTS, UnobservedHook, has_expanded_weights, hooks_after, skipped_in_graphs
from seqbatch.errors import UnsupportedLayerError


def require_no_samples(subject: str, layer: object) -> None:
    """Raise if gradients per sample are computed for a layer or one in it, because each step would pass for a sample.

    Neither opacus nor PyTorch's expanded weights are imported here. If no other code has imported them, this costs two
    look-ups.
    """
    if not _may_capture_samples() or not isinstance(layer, nn.Module):
        return
    for module in layer.modules():
        if _captures_samples(module) or has_expanded_weights(module):
            must = "not have gradients per sample, such as those of opacus, because each step would count as a sample"
            remedy = (
                "If it treats every step by itself, call it on batch.to_padded(batch_first=True), and go back by "
                "SequenceBatch.from_padded(outputs, batch.lengths, batch_first=True). In place of nn.LSTM, nn.GRU or "
                "nn.RNN call opacus.layers.DPLSTM, DPGRU or DPRNN, of one direction and batch_first=True, on the same."
            )
            raise complaint(UnsupportedLayerError, subject, must, describe(module), remedy)


@contextmanager
def samples_refused(subject: str) -> Iterator[None]:
    """Raise, within the block, if a layer is called for which `require_no_samples` raises, whatever calls it.

    Only a hook of every module shows which layers a function calls. It is registered if opacus or PyTorch's expanded
    weights are imported, for the time of the block. PyTorch warns of such hooks where it calls a compiled module.
    """
    if not _may_capture_samples():
        yield
        return
    with _registering:
        handle = register_module_forward_pre_hook(_SamplesRefused(subject))
    try:
        yield
    finally:
        handle.remove()


# Because PyTorch numbers hooks without a lock, two threads at once could get one number.
_registering = Lock()


class _SamplesRefused(UnobservedHook):
    """The hook, which runs in all threads, and looks at the layers of the one that registered it."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._thread = get_ident()

    @skipped_in_graphs  # because a compiled layer calls no hook of opacus, and its graph would break at `get_ident`
    def __call__(self, layer: nn.Module, arguments: tuple[Any, ...]) -> None:
        if get_ident() == self._thread:
            require_no_samples(self._subject, layer)


def _may_capture_samples() -> bool:
    return "opacus" in sys.modules or EXPANDED_WEIGHTS in sys.modules


def _captures_samples(module: nn.Module) -> bool:
    """Return True if a hook of opacus would keep the input of a module.

    As opacus does, only in training and while gradients are recorded: evaluation with `encode` is right.
    """
    if not (module.training and torch.is_grad_enabled()):
        return False
    owners = [getattr(hook, "__self__", None) for hook in hooks_after(module).values()]
    return any(
        getattr(owner, "hooks_enabled", False)
        and any(base.__module__.partition(".")[0] == "opacus" for base in type(owner).__mro__)
        for owner in owners
    ) and any(weight.requires_grad for weight in module.parameters(recurse=False))
