"""What PyTorch does now: tracing, transforms, modes, hooks; by names that it does not document.

This file alone reads such names. `tests/test_torch.py` says for each of them what breaks if PyTorch changes it.
"""

import functools
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn
from torch._C import (
    _are_functorch_transforms_active,
    _dispatch_keys,
    _len_torch_dispatch_stack,
    _len_torch_function_stack,
)
from torch._C._dynamo.eval_frame import _FrameAction, _FrameExecStrategy, set_code_exec_strategy
from torch._C._functorch import (
    TransformType,
    get_interpreter_stack,
    get_unwrapped,
    is_batchedtensor,
    is_functorch_wrapped_tensor,
    is_legacy_batchedtensor,
)

# By name, and not as `torch.compiler.is_compiling`: a function that names the module torch is itself compiled after a
# graph break, and then returns True outside the graph.
from torch._guards import TracingContext
from torch.autograd import forward_ad
from torch.compiler import is_compiling, is_dynamo_compiling, is_exporting
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.modules.module import (
    _global_backward_hooks,
    _global_backward_pre_hooks,
    _global_forward_hooks,
    _global_forward_pre_hooks,
)
from torch.nn.utils.prune import BasePruningMethod
from torch.utils import _pytree

from seqbatch.errors import SeqbatchError

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Arguments = ParamSpec("_Arguments")

# ------------------------------------------------------------------------------------------------------------- version

# Graphs need what PyTorch traces since 2.13: a closure as the message of `torch._check`, `torch._check_with` with an
# error of our own, `bool` of a list, and `is_autocast_available`. Before, it fails in the middle of tracing.
HAS_GRAPHS = tuple(map(int, torch.__version__.split(".")[:2])) >= (2, 13)


def require_graphs(user: str) -> None:
    """Raise if PyTorch is too old for what makes graphs, such as `torch.export`."""
    if not HAS_GRAPHS:
        remedy = "Upgrade torch, or run the model without a graph."
        raise SeqbatchError(f"`torch` must be version 2.13 or newer for {user}; got {torch.__version__}. {remedy}")


# ------------------------------------------------------------------------------------------------------------- tracing


def in_a_graph() -> bool:
    """Return True if `torch.compile` or `torch.export` is tracing in this thread.

    `is_compiling` holds for the whole process. Other threads, such as that of a DataLoader, are not tracing.

    Raises:
        SeqbatchError: PyTorch is tracing, and is too old for it.
    """
    is_tracing = is_dynamo_compiling() or (is_compiling() and TracingContext.try_get() is not None)
    if is_tracing and not HAS_GRAPHS:
        _refuse_graphs()
    return is_tracing


def in_an_export() -> bool:
    """Return True if `torch.export` is tracing in this thread; `is_exporting` holds for the whole process."""
    return is_exporting() and in_a_graph()


def skipped_in_graphs(function: Callable[_Arguments, None]) -> Callable[_Arguments, None]:
    """Make a function do nothing while PyTorch traces: a check of what is unknown then, or a note that is of no use."""

    @functools.wraps(function)
    def run(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> None:
        if not in_a_graph():
            function(*args, **kwargs)

    return run


def has_known_values(tensor: Tensor) -> bool:
    """Return True if the values of a tensor are known here: not on a GPU, which would synchronize, and not traced."""
    return tensor.is_cpu and not in_a_graph()


def known_or_false(condition: Any) -> bool:
    """Return True if a condition on sizes is known to hold; False if it is not, or unknown while tracing."""
    if not in_a_graph():
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # here, because importing it is slow

    return bool(guard_or_false(condition))


def check_size(holds: bool, message: str) -> None:
    """Raise unless a condition on sizes holds; if it is unknown while tracing, the graph checks it at run time."""
    torch._check(holds, lambda: message)


def check_size_or(error: type[Exception], holds: bool, message: str) -> None:
    """Raise an error of this type unless a condition on sizes holds, as `check_size`."""
    torch._check_with(error, holds, lambda: message)


def check_tensor(holds: Tensor, message: str) -> None:
    """Raise unless a tensor of one bool is True; a graph checks it at run time, which does not synchronize."""
    torch.ops.aten._assert_async.msg(holds, message)


def is_compiler_imported() -> bool:
    """Return True if PyTorch's compiler is imported, which takes a second, so that nothing here imports it."""
    return "torch._dynamo" in sys.modules


def keep_out_of_graphs(function: Callable[..., Any], reason: str) -> None:
    """Mark a function where `torch.compile` breaks its graph, with this reason, as `torch.compiler.disable` does.

    Unlike that, it does not import PyTorch's compiler, and does not disable what the function calls. Where the function
    runs outside of the graph, PyTorch compiles what it calls, but not the function itself.
    """
    vars(function).update(_torchdynamo_disable=True, _torchdynamo_disable_msg=reason)
    set_code_exec_strategy(function.__code__, _FrameExecStrategy(_FrameAction.SKIP, _FrameAction.DEFAULT))


def constant_in_graphs(function: _Function) -> _Function:
    """Mark a function without arguments that `torch.compile` calls while tracing, to use its result as a constant.

    This is `torch.compiler.assume_constant_result` without importing PyTorch's compiler.
    """
    vars(function).update(_dynamo_marked_constant=True)
    return function


@constant_in_graphs  # because Dynamo would take an error that it traces for a graph break, and drop its message
def _refuse_graphs() -> None:
    require_graphs("torch.compile and torch.export")


def set_scripted(function: Callable[..., Any], make: Callable[[], Any]) -> None:
    """Replace a function, for `torch.jit.script`, by what `make` returns."""
    vars(function).update(__prepare_scriptable__=make)


# -------------------------------------------------------------------------------------------------- gradients and modes


def wants_gradients(tensors: Iterable[Tensor]) -> bool:
    """Return True if a backward pass may follow through what is computed from tensors."""
    return torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)


def autocasts(device: torch.device) -> bool:
    """Return True if `torch.autocast` is on for a device."""
    return torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type)


def is_transformed() -> bool:
    """Return True if `torch.func` or forward-mode differentiation is active."""
    return _are_functorch_transforms_active() or forward_ad._current_level >= 0


def is_intercepted() -> bool:
    """Return True if operations must be visible to PyTorch: to a transform, or to a mode such as that of fake tensors.

    Tensors made meanwhile may be of use only until it ends.
    """
    return is_transformed() or _len_torch_dispatch_stack() > 0


def takes_gradients_only() -> bool:
    """Return True if only reverse-mode transforms, such as `torch.func.grad`, are active, and not `vmap`."""
    stack = get_interpreter_stack()
    if not stack or forward_ad._current_level >= 0:
        return False
    return all(one.key() == TransformType.Grad for one in stack)


def is_mapped(tensor: Tensor) -> bool:
    """Return True if `torch.func.vmap` maps over a tensor; False while `torch.compile` traces, which cannot see it."""
    while not is_dynamo_compiling() and is_functorch_wrapped_tensor(tensor):
        if is_batchedtensor(tensor):
            return True
        tensor = get_unwrapped(tensor)
    return False


def are_batched(gradients: Iterable[Tensor | None]) -> bool:
    """Return True if gradients are batched, as by `torch.autograd.grad(is_grads_batched=True)`."""
    return any(gradient is not None and is_legacy_batchedtensor(gradient) for gradient in gradients)


# -------------------------------------------------------------------------------------------------------------- memory

# Subclasses, such as fake and distributed tensors, may have no memory of their own.
STOCK_TENSORS = (Tensor, nn.Parameter)


def _made_in_inference_mode(is_on: bool) -> Tensor:
    with torch.inference_mode(is_on):
        return torch.empty(0, device="cpu")


# What PyTorch dispatches on for tensors whose memory holds their values. The keys of conjugate, negative, quantized,
# sparse and nested tensors differ, and those of tensors that `torch.func` wraps.
_DENSE = [_dispatch_keys(_made_in_inference_mode(is_on)) for is_on in (False, True)]


def is_dense(tensor: Tensor) -> bool:
    """Return True if the memory of a tensor on the CPU holds its values, so that compiled code may read its address."""
    return type(tensor) in STOCK_TENSORS and _dispatch_keys(tensor) in _DENSE


def lifted(tensor: Tensor) -> Tensor:
    """Return a tensor as `torch.tensor` does: a mode, such as that of fake tensors, sees it from here on."""
    return torch.ops.aten.lift_fresh(tensor) if _len_torch_dispatch_stack() else tensor


def version_of(tensor: Tensor) -> int:
    """Return a number that grows when a tensor, or a view of it, is modified in place."""
    return tensor._version


def interception_checks() -> dict[str, Any]:
    """Return the functions and objects by which compiled code checks for transforms, modes and hooks.

    None of the functions is Python code, because a signal handler could run in it, and raise.
    """
    return {
        "is_tracing": torch._C._is_tracing,
        "is_transformed": _are_functorch_transforms_active,
        "forward_ad": forward_ad,  # whose `_current_level` is negative outside of forward-mode differentiation
        "modes": _len_torch_dispatch_stack,
        "function_modes": _len_torch_function_stack,
        "dispatch_keys": _dispatch_keys,
        "dense": _DENSE[0],
        "dense_in_inference_mode": _DENSE[1],
        "hooks_of_all": (
            *(_global_forward_pre_hooks, _global_forward_hooks),
            *(_global_backward_pre_hooks, _global_backward_hooks),
        ),
    }


# --------------------------------------------------------------------------------------------------------------- hooks

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


class UnobservedHook:
    """A hook of every module that leaves results as they are, so that bypassing it cannot be observed."""


def has_hooks(layer: nn.Module) -> bool:
    """Return True if hooks would run if a layer were called, its own or those of every module."""
    return has_own_hooks(layer) or has_global_hooks()


# The names are spelled out, because these functions run at each call: a loop over names takes three times as long.
def has_own_hooks(layer: nn.Module) -> bool:
    """Return True if hooks are registered for a layer."""
    return bool(layer._forward_pre_hooks or layer._forward_hooks or layer._backward_pre_hooks or layer._backward_hooks)


def has_global_hooks() -> bool:
    """Return True if hooks are registered for the forward or backward pass of every module, but for our own."""
    if _global_forward_hooks or _global_backward_pre_hooks or _global_backward_hooks:
        return True
    before = _global_forward_pre_hooks
    return bool(before) and not all(isinstance(hook, UnobservedHook) for hook in tuple(before.values()))


def has_backward_hooks(layer: nn.Module) -> bool:
    """Return True if hooks would run in the backward pass through a layer, its own or those of every module."""
    own = layer._backward_pre_hooks or layer._backward_hooks
    return bool(own or _global_backward_pre_hooks or _global_backward_hooks)


def hooks_before(layer: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """Return the forward pre-hooks of a layer, with the one that initializes a lazy layer."""
    return layer._forward_pre_hooks


def hooks_after(layer: nn.Module) -> Mapping[int, Callable[..., Any]]:
    """Return the forward hooks of a layer."""
    return layer._forward_hooks


def has_hooks_before(layer: nn.Module) -> bool:
    """Return True if a layer has forward pre-hooks, other than the one that initializes a lazy layer."""
    return len(layer._forward_pre_hooks) > is_lazy(layer)


def pruned_weights(layer: nn.Module) -> list[str]:
    """Return the names of the weights that hooks of `torch.nn.utils.prune` compute."""
    return [hook._tensor_name for hook in layer._forward_pre_hooks.values() if isinstance(hook, BasePruningMethod)]


# -------------------------------------------------------------------------------------------------------------- layers

# The output projection of nn.MultiheadAttention, which is an nn.Linear otherwise.
OutputProjection: type[nn.Module] = NonDynamicallyQuantizableLinear
# Methods that the `forward` of nn.TransformerEncoderLayer calls, so that a subclass may replace them.
TRANSFORMER_PARTS = ("_sa_block", "_ff_block")
# The same of nn.TransformerDecoderLayer.
DECODER_PARTS = ("_sa_block", "_mha_block", "_ff_block")
# Attributes of a layer without the result of `layer.compile`, which its call would run in place of `forward`.
NOT_COMPILED: dict[str, Any] = {"_compiled_call_impl": None}
# Only code that computes gradients per sample by PyTorch's expanded weights, such as opacus, imports this module.
EXPANDED_WEIGHTS = "torch.nn.utils._expanded_weights"
# Wrappers of layers, by module and name, so that none of them need be imported.
CHECKPOINTED = "torch.distributed.algorithms._checkpoint.checkpoint_wrapper.ActivationWrapper"
COMPILED = "torch._dynamo.eval_frame.OptimizedModule"
SCRIPTED = "torch.jit._script.ScriptModule"
# Where what `torch.compile` makes of a layer has the layer itself.
ORIGINAL_OF_COMPILED = "_orig_mod"


def parameters_of(layer: nn.Module) -> dict[str, Any]:
    """Return the parameters of a layer itself by name, with None for those that it was built without.

    In `torch.func.functional_call` they are Tensors. `parameters` looks for shared ones, which is slow.
    """
    return layer._parameters


def set_parameters(layer: nn.Module, parameters: dict[str, Any]) -> None:
    """Replace all parameters of a layer itself, by Tensors of any type, which PyTorch does not check."""
    layer._parameters = parameters


def is_parametrized(layer: nn.Module) -> bool:
    """Return True if parametrizations compute weights of a layer.

    As `torch.nn.utils.parametrize.is_parametrized`, in a tenth of the time where there are none.
    """
    return "parametrizations" in layer._modules


def is_lazy(layer: nn.Module) -> bool:
    """Return True if a lazy layer is not initialized yet: its first input sets its sizes."""
    return isinstance(layer, LazyModuleMixin) and hasattr(layer, "_initialize_hook")


def has_expanded_weights(layer: nn.Module) -> bool:
    """Return True if PyTorch's expanded weights, of gradients per sample, are parameters of a layer itself."""
    expanded = sys.modules.get(EXPANDED_WEIGHTS)
    return expanded is not None and any(
        isinstance(weight, expanded.ExpandedWeight) for weight in layer._parameters.values()
    )


def is_recurrent_float16(layer: Any) -> bool:
    """Return True if the weights of a quantized nn.LSTM or nn.GRU are float16: its input is not rounded by its range.

    This reads the weights, because loading a state dict of other weights does not update the `dtype` of the layer.
    """
    return all(weights.param.__getstate__()[0][0] == "quantized_fp16" for weights in layer._all_weight_values)


def is_linear_float16(layer: Any) -> bool:
    """Return True if the weight of a quantized nn.Linear is float16: its input is not rounded by its range."""
    return layer._packed_params.dtype is torch.float16


# ------------------------------------------------------------------------------------------------------------- pytrees


def register_pytree(
    kind: type[Any], names: list[str], flatten: Callable[[Any], list[Any]], unflatten: Callable[..., Any]
) -> None:
    """Register a class as a pytree, so that torch.export and torch.func see the tensors in it.

    Args:
        kind: the class.
        names: of its leaves.
        flatten: from an object to its leaves.
        unflatten: from its leaves to an object. While PyTorch traces or transforms, they may be anything.
    """

    def flatten_with_keys(value: Any) -> tuple[list[tuple[Any, Any]], None]:
        return [(_pytree.GetAttrKey(name), leaf) for name, leaf in zip(names, flatten(value), strict=True)], None

    _pytree.register_pytree_node(
        kind,
        lambda value: (flatten(value), None),
        lambda leaves, _: unflatten(*leaves),
        serialized_type_name=f"seqbatch.{kind.__name__}",
        flatten_with_keys_fn=flatten_with_keys,
    )


def leaves_by_path(tree: Any, leaf_type: type[Any] | tuple[type[Any], ...]) -> list[tuple[str, Any]]:
    """Return the leaves of a pytree, each with its path such as `[0]['name']`; objects of `leaf_type` are leaves."""
    leaves, _ = _pytree.tree_flatten_with_path(tree, is_leaf=lambda one: isinstance(one, leaf_type))
    return [(_pytree.keystr(path), leaf) for path, leaf in leaves]


class PytreeStructure:
    """The structure of a pytree, without its leaves. None is a part of the structure, and not a leaf.

    One leaf and a tuple of leaves take a fast path, because PyTorch's own takes as long as a small operation.

    Args:
        tree: the pytree.
        leaf_type: objects of this type are leaves.
    """

    def __init__(self, tree: Any, leaf_type: type[Any] | tuple[type[Any], ...] = ()) -> None:
        leaves, self._spec = _pytree.tree_flatten(tree, is_leaf=lambda one: isinstance(one, leaf_type))
        self._is_none = [leaf is None for leaf in leaves]
        self._has_none = any(self._is_none)
        self._is_leaf = self._spec.is_leaf() and not self._has_none
        is_flat = self._spec.type is tuple and self._spec.num_nodes == 1 + self._spec.num_children
        self._is_tuple = is_flat and not self._has_none

    def leaves_in(self, tree: Any) -> list[Any]:
        """Return the leaves of a pytree, in the order of this structure; raise a ValueError if it has another one.

        In the place of a leaf, there may be a pytree.
        """
        if self._is_leaf:
            return [tree]
        if self._is_tuple and type(tree) is tuple and len(tree) == self._spec.num_children:
            return list(tree)
        leaves: list[Any] = self._spec.flatten_up_to(tree)
        if self._has_none:
            pairs = [*zip(leaves, self._is_none, strict=True)]
            for leaf, is_none in pairs:
                if is_none and leaf is not None:
                    raise ValueError(f"Expected None, but got {type(leaf)}.")
            leaves = [leaf for leaf, is_none in pairs if not is_none]
        return leaves

    def build(self, leaves: Iterable[Any]) -> Any:
        """Build a pytree from its leaves."""
        if self._is_leaf:
            (leaf,) = leaves
            return leaf
        if self._has_none:
            following = iter(leaves)
            leaves = [None if is_none else next(following) for is_none in self._is_none]
        return tuple(leaves) if self._is_tuple else self._spec.unflatten(leaves)


def keys_of_results(program: torch.export.ExportedProgram) -> list[str]:
    """Return the keys of the dict that the model of an exported program returns, in order."""
    out_spec: Any = program.call_spec.out_spec
    return list(out_spec.context)
