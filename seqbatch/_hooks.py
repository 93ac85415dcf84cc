"""Which hooks and parametrizations would run if a layer were called."""

import sys
from typing import Any

import torch
from torch import nn

from seqbatch._checks import complaint, describe
from seqbatch.errors import UnsupportedLayerError

# PyTorch's weights with gradients per sample. Only what uses them, such as opacus, imports this module.
_EXPANDED_WEIGHTS = "torch.nn.utils._expanded_weights"
HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_module: Any = nn.modules.module


def has_hooks(layer: nn.Module) -> bool:
    """Return True if hooks would run if a layer were called, its own or those of every module."""
    return has_own_hooks(layer) or has_global_hooks()


# The names are spelled out, because these functions run at each call: a loop over names takes three times as long.
def has_own_hooks(layer: nn.Module) -> bool:
    """Return True if hooks are registered for a layer."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)


def has_global_hooks() -> bool:
    """Return True if hooks are registered for the forward or backward pass of every module."""
    module = _module
    forward = module._global_forward_pre_hooks or module._global_forward_hooks
    return bool(forward or module._global_backward_pre_hooks or module._global_backward_hooks)


def has_backward_hooks(layer: nn.Module) -> bool:
    """Return True if hooks would run in the backward pass through a layer, its own or those of every module."""
    own = layer._backward_pre_hooks or layer._backward_hooks
    return bool(own or _module._global_backward_pre_hooks or _module._global_backward_hooks)


def is_parametrized(layer: nn.Module) -> bool:
    """Return True if parametrizations compute weights of a layer.

    As `torch.nn.utils.parametrize.is_parametrized`, in a tenth of the time where there are none.
    """
    return "parametrizations" in layer._modules


def require_no_samples(subject: str, layer: object) -> None:
    """Raise if gradients per sample are computed for a layer or one in it, because each step would pass for a sample.

    Neither opacus nor PyTorch's expanded weights are imported here. If no other code has imported them, this costs two
    look-ups.
    """
    expanded = sys.modules.get(_EXPANDED_WEIGHTS)
    if (expanded is None and "opacus" not in sys.modules) or not isinstance(layer, nn.Module):
        return
    for module in layer.modules():
        weights = module._parameters.values()
        if _captures_samples(module) or any(
            isinstance(weight, expanded.ExpandedWeight) for weight in weights if expanded
        ):
            must = "not have gradients per sample, such as those of opacus, because each step would count as a sample"
            remedy = (
                "If it treats every step by itself, call it on batch.to_padded(batch_first=True), and go back by "
                "SequenceBatch.from_padded(outputs, batch.lengths, batch_first=True). In place of nn.LSTM, nn.GRU or "
                "nn.RNN call opacus.layers.DPLSTM, DPGRU or DPRNN, of one direction and batch_first=True, on the same."
            )
            raise complaint(UnsupportedLayerError, subject, must, describe(module), remedy)


def _captures_samples(module: nn.Module) -> bool:
    """Return True if a hook of opacus would keep the input of a module.

    As opacus does, only in training and while gradients are recorded: evaluation with `encode` is right.
    """
    if not (module.training and torch.is_grad_enabled()):
        return False
    owners = [getattr(hook, "__self__", None) for hook in module._forward_hooks.values()]
    return any(
        getattr(owner, "hooks_enabled", False)
        and any(base.__module__.partition(".")[0] == "opacus" for base in type(owner).__mro__)
        for owner in owners
    ) and any(weight.requires_grad for weight in module.parameters(recurse=False))
