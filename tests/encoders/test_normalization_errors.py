"""What norms refuse."""

from typing import Any

import laws
import pytest
import torch
from torch import nn

from seqbatch import SeqbatchTypeError, SeqbatchValueError, encode

BATCH, SYNC, GROUP, INSTANCE = nn.BatchNorm1d(4), nn.SyncBatchNorm(4), nn.GroupNorm(2, 4), nn.InstanceNorm1d(4)


def refused(layer: nn.Module, sequences: list[torch.Tensor], message: str, kind: Any = SeqbatchValueError) -> None:
    laws.check_refused(layer, sequences, kind, message)


@pytest.mark.parametrize("layer", [BATCH, SYNC, GROUP], ids=str)
def test_other_channels(layer: nn.Module) -> None:
    name = type(layer).__name__
    refused(
        layer, [torch.zeros(3, 5)], rf"`sequences` must have features that begin with \(4,\), for {name}\(.*\(5,\)\.$"
    )
    refused(layer, [torch.zeros(3)], r"features that begin with \(4,\), .*; got \(\)\.$")
    message = (
        r"features that begin with \(4,\), .*; got \(3, 4\)\. For a padded Tensor call SequenceBatch.from_padded\."
    )
    refused(layer, [torch.zeros(2, 3, 4)], message)


def test_other_features() -> None:
    refused(
        BATCH, [torch.zeros(3, 4, 2, 2)], r"must have features of 1 or 2 dimensions, for BatchNorm1d.*\(4, 2, 2\)\."
    )
    message = r"`sequences` must have features \(4,\), for InstanceNorm1d\(4, .*\); got \(4, 2\)\."
    refused(INSTANCE, [torch.zeros(3, 4, 2)], message)


@pytest.mark.parametrize("layer", [BATCH, SYNC, GROUP, INSTANCE, nn.BatchNorm1d(4, affine=False)], ids=str)
def test_other_dtypes_and_devices(layer: nn.Module) -> None:
    name = type(layer).__name__
    message = rf"`sequences` must have a floating dtype, for {name}\(.*\); got torch.int64\."
    refused(layer, [torch.zeros(3, 4).long()], message, SeqbatchTypeError)
    if [*layer.parameters(), *layer.buffers()]:
        message = rf"must have dtype torch.float32, as the weights or statistics of {name}\(.*\); got torch.float64\."
        refused(layer, [torch.zeros(3, 4).double()], message)
    if [*layer.parameters()]:
        refused(layer, [torch.zeros(3, 4, device="meta")], rf"must be on cpu, as the weights of {name}\(.*; got meta\.")


def test_a_hook_before_may_change_the_dtype() -> None:
    for layer in (nn.BatchNorm1d(4), nn.InstanceNorm1d(4, affine=True)):
        layer.register_forward_pre_hook(lambda module, args: (args[0].float(),))
        layer.register_forward_hook(lambda module, args, output: output.double())
        assert encode(layer, [torch.randn(3, 4).double()])[0].dtype is torch.float64


@pytest.mark.parametrize("layer", [BATCH, SYNC, nn.BatchNorm1d(4, track_running_stats=False).eval()], ids=str)
def test_batch_norm_of_one_step(layer: nn.Module) -> None:
    name = type(layer).__name__
    message = rf"`sequences` must have 2 steps or more together, because {name}\(4, .*\) computes statistics over th"
    refused(layer, [torch.zeros(0, 4), torch.zeros(1, 4)], message)
    assert encode(layer, [torch.zeros(1, 4, 3)])[0].shape == (1, 4, 3)
    assert encode(nn.BatchNorm1d(4).eval(), [torch.zeros(1, 4)])[0].shape == (1, 4)


def test_synchronized_batch_norm_leaves_it_to_the_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    message = r"^`layer` must take features .*; got SyncBatchNorm\(.*\)\. PyTorch says: SyncBatchNorm expected input"
    with pytest.raises(SeqbatchValueError, match=message):
        encode(SYNC, [torch.zeros(1, 4)])
    refused(BATCH, [torch.zeros(1, 4)], r"must have 2 steps or more together, because BatchNorm1d")


def test_group_norm_of_one_value_a_group() -> None:
    layer = nn.GroupNorm(4, 4)
    refused(
        layer, [torch.zeros(1, 4)], r"must have 2 steps or more together, or 2 values or more in a group, for GroupN"
    )
    assert not encode(layer, [torch.ones(1, 4), torch.ones(1, 4)])[0].any()


def test_instance_norm_of_one_step() -> None:
    message = r"`sequences\[2\]` must have 2 steps or more, or none, because InstanceNorm1d\(4, .* over them; got 1\."
    refused(INSTANCE, [torch.zeros(n, 4) for n in (3, 0, 1, 1)], message)
    layer = nn.InstanceNorm1d(4, track_running_stats=True).eval()
    assert encode(layer, [torch.zeros(1, 4)])[0].shape == (1, 4)


def test_instance_norm_with_hooks_that_keeps_statistics_of_several_lengths() -> None:
    layer = nn.InstanceNorm1d(4, track_running_stats=True)
    layer.register_forward_hook(lambda module, args, output: None)
    message = (
        r"`layer` must have no hooks and no forward of its own, because it keeps statistics and is called once for "
        r"each length; got InstanceNorm1d\(4, .*\) and 2 lengths\."
    )
    refused(layer, [torch.zeros(n, 4) for n in (3, 0, 2)], message)
