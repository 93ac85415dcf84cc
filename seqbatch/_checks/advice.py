"""Remedies in the errors of layers without an encoder. Code in them must be right when it is pasted."""

import re

from torch import nn

from seqbatch._torch import CHECKPOINTED, COMPILED, ORIGINAL_OF_COMPILED, SCRIPTED

_WRAP = (
    "Wrap a module whose `forward` takes a SequenceBatch and calls encode on the layer, and call the wrapper itself."
)
_PREPARE = (
    "Prepare a module whose `forward` takes a SequenceBatch and calls encode on the layer, and call what you get."
)
_ORIGINAL = "Pass the layer that it was made from."
# By module and name of a class, so that none of them need be imported.
_WRAPPERS: dict[str, str] = {
    "lightning.fabric.wrappers._FabricModule": _WRAP,
    "opacus.grad_sample.gsm_base.AbstractGradSampleModule": _WRAP,
    "torch.distributed.fsdp.fully_sharded_data_parallel.FullyShardedDataParallel": _WRAP,
    "torch.fx.graph_module.GraphModule": _ORIGINAL,
    # It would give each device a copy of the whole batch.
    "torch.nn.parallel.data_parallel.DataParallel": f"Use DistributedDataParallel, which does not cut batches. {_WRAP}",
    "torch.nn.parallel.distributed.DistributedDataParallel": _WRAP,
    "torch.optim.swa_utils.AveragedModel": "Pass the averaged layer itself, layer.module.",
    CHECKPOINTED: _WRAP,
    COMPILED: (
        f"Compile the function or the model that calls encode, and give the layer itself, layer.{ORIGINAL_OF_COMPILED}."
    ),
    SCRIPTED: _ORIGINAL,
}
# Layers of torch.nn take (batch, channels, steps, ...), if their names end with the number of axes after the channels,
# but for these, or are one of those. With 0 the number is any.
_NOT_CHANNELS_FIRST = {"MaxUnpool1d", "MaxUnpool2d", "MaxUnpool3d", "NLLLoss2d"}
_AXES_AFTER_CHANNELS = {
    "ChannelShuffle": 0,
    "Fold": 1,
    "LocalResponseNorm": 0,
    "PixelShuffle": 2,
    "PixelUnshuffle": 2,
    "Unfold": 2,
    "Upsample": 0,
}
# By that number: the axes of features, and what puts the channels of one sequence first. `permute` raises for others,
# which PyTorch may take for a sequence without a batch.
_CHANNELS_FIRST = {
    0: (", *features", "transpose(1, 2)"),
    1: ("", "permute(0, 2, 1)"),
    2: (", features", "permute(0, 2, 1, 3)"),
    3: (", height, width", "permute(0, 2, 1, 3, 4)"),
}


def advice_for(layer: nn.Module, takes_memory: bool) -> tuple[str, str]:
    """Return what must hold of a layer that cannot be run, over memory or not, and the remedy."""
    for base in type(layer).__mro__:
        if remedy := _WRAPPERS.get(f"{base.__module__}.{base.__qualname__}"):
            return "be a layer itself, and not a wrapper of one", remedy
    if not vars(layer).keys().isdisjoint(("_original_forward", "_old_forward")):
        return "have the `forward` of its class, and not one of accelerate", _PREPARE
    name = type(layer).__name__
    if takes_memory:
        must, advice = "have an encoder that takes memory", _advice_to_register_cross_attention(name)
    else:
        must, advice = "have an encoder", _advice_to_register(name, _example_for(layer))
    return must, f"{_advice_for_container(layer)}{advice}"


def _advice_for_container(layer: nn.Module) -> str:
    names = ", ".join(f"`{name}`" for name, _ in layer.named_children())
    if not names:
        return ""
    return (
        f"If it is made of layers, let its `forward` take and return a SequenceBatch and call encode on each of them "
        f"({names}); then call the module itself, and not encode. Otherwise: "
    )


def _advice_to_register_cross_attention(name: str) -> str:
    return (
        "Register an encoder:\n\n"
        f"    @register_cross_attention({name})\n"
        f"    def _(layer: {name}, queries: SequenceBatch, memory: SequenceBatch) -> SequenceBatch:\n"
        "        # For example, if it takes two sequences of shape (steps, *features):\n"
        "        # sources = iter([*memory, memory.values[:0]])  # the last one is for a batch without sequences\n"
        "        # return queries.map_sequences(lambda query: layer(query, next(sources)))\n"
        "        raise NotImplementedError"
    )


def _example_for(layer: nn.Module) -> str:
    """Return code that runs a layer on one sequence after another, and the condition under which it is right."""
    name = next(base for base in type(layer).__mro__ if base.__module__.startswith("torch.nn.modules.")).__name__
    if name not in _AXES_AFTER_CHANNELS and (name in _NOT_CHANNELS_FIRST or not re.search("[123]d$", name)):
        return "batch.map_sequences(layer), if it takes one sequence of shape (steps, *features)"
    axes = _AXES_AFTER_CHANNELS[name] if name in _AXES_AFTER_CHANNELS else int(name[-2])
    features, channels_first = _CHANNELS_FIRST[axes]
    return (
        f"batch.map_sequences(lambda steps: layer(steps[None].{channels_first})[0].transpose(0, 1)),\n"
        f"        # for sequences (steps, channels{features}), if it takes (batch, channels, steps{features})"
    )


def _advice_to_register(name: str, example: str) -> str:
    return (
        "Register an encoder:\n\n"
        f"    @register_encoder({name})\n"
        f"    def _(layer: {name}, batch: SequenceBatch) -> SequenceBatch:\n"
        f"        # For example {example}.\n"
        "        raise NotImplementedError\n\n"
        f"or by @register_recurrent({name}) if it carries a state."
    )
