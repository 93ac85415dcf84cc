"""Runs checks in all processes at once, and prints what has passed."""

from collections.abc import Callable
from typing import Any

from torch import distributed


def run_checks(checks: dict[str, Callable[[], None]]) -> None:
    """Run checks in order, one at a time in all processes; the first that fails ends its process."""
    for name, check in checks.items():
        check()
        is_first = True
        if distributed.is_initialized():  # asked here, because a check may initialize it
            distributed.barrier()
            is_first = distributed.get_rank() == 0
        if is_first:
            print(f"{name}: passed", flush=True)
    if distributed.is_initialized():
        distributed.destroy_process_group()


def everyones(own: Any) -> list[Any]:
    """Return what each process has."""
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, own)
    return found
