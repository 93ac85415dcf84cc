"""Remedies in the errors of layers without an encoder. Code in them must be right when it is pasted."""

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
        must, advice = "have an encoder", _advice_to_register(name)
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
        "        # SequenceBatch.from_sequences([layer(query, source) for query, source in zip(queries, memory)]).\n"
        "        raise NotImplementedError"
    )


def _advice_to_register(name: str) -> str:
    return (
        "Register an encoder:\n\n"
        f"    @register_encoder({name})\n"
        f"    def _(layer: {name}, batch: SequenceBatch) -> SequenceBatch:\n"
        "        # For example batch.map_sequences(layer), if it takes one sequence of shape (steps, *features).\n"
        "        raise NotImplementedError\n\n"
        f"or by @register_recurrent({name}) if it carries a state."
    )
