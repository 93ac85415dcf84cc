"""mean_loss: the mean over all items of all processes, which may have different numbers of items."""

import torch
from torch import Tensor, distributed

from seqbatch._batch import SequenceBatch
from seqbatch._checks.arguments import integer, require_tensor
from seqbatch._checks.grammar import complaint
from seqbatch._torch import has_known_values, is_transformed
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


def mean_loss(
    losses: Tensor | SequenceBatch,
    *,
    count: int | Tensor | None = None,
    group: "distributed.ProcessGroup | None" = None,
) -> Tensor:
    """Average losses over all items of all processes: over real steps or sequences, and not over processes.

    Data parallel training (`DistributedDataParallel`, `fully_shard`) averages gradients over the processes. If each
    takes the mean of its own losses, an item weighs more in a process that has fewer of them. With `mean_loss` instead
    the gradients are those of one process that has all items. Without `torch.distributed` it is the plain mean.

    All processes of the group must call it equally often; one without items passes an empty Tensor. On CUDA it does not
    synchronize.

    Args:
        losses: at least one dimension, or a SequenceBatch; a floating dtype: the loss of each item of this process, as
            from a loss function with `reduction="none"`.
        count: the number of items, if that is not the number of losses; then `losses` may also be their sum, without
            dimensions. It is an integer, or a Tensor without dimensions, and not negative. It may be the number of
            items that are not masked, the sum of weights, or the items of all parts of a batch whose gradients are
            accumulated.
        group: the processes that gradients are averaged over; by default all.

    Returns:
        a Tensor without dimensions, of at least single precision. It is the sum of the losses, times the number of
        processes, divided by the items of all processes. Gradients flow. Its mean over the processes is the mean loss
        of all items. It is 0 without losses.

    Raises:
        SeqbatchTypeError: losses are not a dense Tensor of a floating dtype, or the count is neither an integer nor a
            dense Tensor of a floating or integer dtype.
        SeqbatchValueError: losses have no dimension and no count, the count has a dimension, is negative (of a Tensor
            on the host) or an integer beyond int64, or this process is not in the group.

    Source: `torch.nn.parallel.DistributedDataParallel`, which says how gradients are averaged.

    >>> scores, tags = torch.zeros(17, 2, requires_grad=True), torch.ones(17, dtype=torch.int64)
    >>> mean_loss(nn.functional.cross_entropy(scores, tags, reduction="none"))
    tensor(0.6931, grad_fn=<MulBackward0>)
    """
    values = losses.values if isinstance(losses, SequenceBatch) else require_tensor("losses", losses)
    if not values.is_floating_point():
        raise complaint(SeqbatchTypeError, "losses", "be of a floating dtype", values.dtype)
    # By the device type and not by the dtype, because all processes must agree. Floating, because weights may be
    # fractions. MPS and some other devices have no float64.
    wide = torch.float64 if values.device.type in ("cpu", "cuda") else torch.float32
    total = _count_of(values, count)
    # Non-blocking only to a device, because the host may not read a copy before it has arrived.
    total = total.to(values.device, wide, non_blocking=total.is_cpu, copy=True)
    processes = 1
    if distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size(group)
        if processes < 1:
            raise complaint(SeqbatchValueError, "group", "hold this process", "one of others")
        distributed.all_reduce(total, group=group)
    # In single precision at least, because half precision cannot hold the sum of many losses.
    losses_sum = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return losses_sum * (processes / (total + (total == 0))).to(losses_sum.dtype)


def _count_of(losses: Tensor, count: object) -> Tensor:
    """Return the number of items as a Tensor of no dimension, else raise."""
    if count is None:
        if not losses.dim():
            must = "have a dimension, the loss of each item, or be given with their count"
            remedy = 'Pass reduction="none" to the loss function.'
            raise complaint(SeqbatchValueError, "losses", must, "a Tensor of no dimension", remedy)
        count = losses.numel()
    if isinstance(count, Tensor):
        if require_tensor("count", count).dim():
            raise complaint(SeqbatchValueError, "count", "have no dimension", f"shape {tuple(count.shape)}")
        if count.is_complex() or count.dtype is torch.bool:
            raise complaint(SeqbatchTypeError, "count", "be of a floating or integer dtype", count.dtype)
        # In a transform the value may be unknown.
        if has_known_values(count) and not is_transformed() and count.item() < 0:
            raise complaint(SeqbatchValueError, "count", "be at least 0", count.item())
        return count.detach()
    number = integer("count", count)
    if not 0 <= number < 2**63:
        raise complaint(SeqbatchValueError, "count", "be at least 0, and less than 2**63", number)
    # Created on the device, because a copy to it might synchronize.
    return torch.full((), number, dtype=torch.int64, device=losses.device)
