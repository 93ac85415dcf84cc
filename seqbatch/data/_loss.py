"""mean_loss: the mean over all items of all processes, whatever number of them each process has."""

import torch
from torch import Tensor, distributed

from seqbatch._checks import complaint, integer, require_tensor
from seqbatch._modes import is_transformed
from seqbatch._tracing import in_a_graph
from seqbatch.batch import SequenceBatch
from seqbatch.errors import SeqbatchTypeError, SeqbatchValueError


def mean_loss(
    losses: Tensor | SequenceBatch,
    *,
    count: int | Tensor | None = None,
    group: "distributed.ProcessGroup | None" = None,
) -> Tensor:
    """Average losses over all items of all processes: over real steps, or sequences, and not over processes.

    Data parallel training (`DistributedDataParallel`, `fully_shard`) averages gradients over the processes. If each
    takes the mean of its own losses, an item weighs more in a process that has fewer of them. With `mean_loss` instead
    the gradients are those of one process that has all items. Without `torch.distributed` it is the plain mean.

    All processes of the group must call it equally often; one that has no item takes part with an empty Tensor. On CUDA
    nothing waits for the device.

    Args:
        losses: any shape but none, or a SequenceBatch; a floating dtype: the loss of each item of this process, as from
            a loss function with `reduction="none"`.
        count: how many items they are of, if not as many as there are losses; then `losses` may also be their sum, and
            have no dimension. An integer, or a Tensor of no dimension: of those that are not masked, the sum of
            weights, or the items of all parts of a batch whose gradients are added up. None of it may be negative.
        group: the processes that gradients are averaged over; by default all.

    Returns:
        no dimension, of at least single precision: the sum of the losses, times the number of processes, over the
        items of all processes. Gradients flow. Its mean over the processes is the mean loss of all items. It is 0 if
        there are no losses.

    Raises:
        SeqbatchTypeError: losses are no dense Tensor of a floating dtype, or the count is no integer, nor a dense
            Tensor of a floating or integer dtype.
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
    # By the type of device, which all processes share, and not by the losses, whose dtype they may not share. Weights
    # add up to fractions; MPS and some other devices have no float64.
    wide = torch.float64 if values.device.type in ("cpu", "cuda") else torch.float32
    total = _count_of(values, count)
    # A copy to a device does not wait then; one from a device must.
    total = total.to(values.device, wide, non_blocking=total.is_cpu, copy=True)
    processes = 1
    if distributed.is_available() and distributed.is_initialized():
        processes = distributed.get_world_size(group)
        if processes < 1:
            raise complaint(SeqbatchValueError, "group", "hold this process", "one of others")
        distributed.all_reduce(total, group=group)
    # Half precision does not hold the sum of many losses.
    losses_sum = values.sum(dtype=torch.promote_types(values.dtype, torch.float32))
    return losses_sum * (processes / (total + (total == 0))).to(losses_sum.dtype)


def _count_of(losses: Tensor, count: object) -> Tensor:
    """Return the number of items as a Tensor of no dimension, else raise."""
    if count is None:
        if not losses.dim():
            must = "have a dimension, the loss of each item, or be given with their count"
            remedy = 'Give the loss function reduction="none".'
            raise complaint(SeqbatchValueError, "losses", must, "a Tensor of no dimension", remedy)
        count = losses.numel()
    if isinstance(count, Tensor):
        if require_tensor("count", count).dim():
            raise complaint(SeqbatchValueError, "count", "have no dimension", f"shape {tuple(count.shape)}")
        if count.is_complex() or count.dtype is torch.bool:
            raise complaint(SeqbatchTypeError, "count", "be of a floating or integer dtype", count.dtype)
        # On a device the look would wait for it, and a graph or torch.func has no number to look at.
        if count.is_cpu and not in_a_graph() and not is_transformed() and count.item() < 0:
            raise complaint(SeqbatchValueError, "count", "be at least 0", count.item())
        return count.detach()
    number = integer("count", count)
    if not 0 <= number < 2**63:
        raise complaint(SeqbatchValueError, "count", "be at least 0, and less than 2**63", number)
    # Made on the device, for a copy to it might wait.
    return torch.full((), number, dtype=torch.int64, device=losses.device)
