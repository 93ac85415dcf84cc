"""The epochs of a sampler, for all processes: their plans, and the position that comes next."""

import hashlib
from collections.abc import Mapping
from typing import Any

import attrs
from torch import Tensor, distributed

from seqbatch._checks.arguments import at_least
from seqbatch._checks.grammar import complaint, type_name
from seqbatch.data._epoch_plan import EpochPlan, PlanOptions, plan_epoch
from seqbatch.data._passes import Passes, Position, TrackedPass
from seqbatch.data._sampler_arguments import current_processes, require_batches
from seqbatch.errors import SeqbatchError, SeqbatchTypeError, SeqbatchValueError

# To be changed with the plans, because a position in an old plan has no meaning in a new one.
PLAN_VERSION = 2
_OTHER_PLAN = (
    "In an epoch planned otherwise some sequences would come twice and some never: finish the epoch as it was begun, "
    "or begin another by set_epoch."
)


class Epochs:
    """The epochs of a sampler.

    Args:
        lengths: `(sequences,)`, int64, on the host.
        options: the arguments of the plans; the number of processes is replaced.
        processes: rank and world size, or None for those of `torch.distributed` whenever a pass begins.
    """

    def __init__(self, lengths: Tensor, options: PlanOptions, processes: tuple[int, int] | None) -> None:
        self.lengths: Tensor = lengths
        self.passes: Passes = Passes()
        self._options = options
        self._processes = processes
        self._digest = hashlib.sha256(lengths.numpy().tobytes()).hexdigest()[:16]
        # The number of batches in all processes, by options; and the plan that was made last.
        self._counts: dict[PlanOptions, int] = {}
        self._last_plan: tuple[int, PlanOptions, EpochPlan] | None = None

    def processes(self) -> tuple[int, int]:
        """Return rank and world size, as they are now."""
        return self._processes or current_processes()

    def batches(self) -> int:
        """Return the number of batches of an epoch in one process, the same in every epoch and process.

        Raises:
            SeqbatchValueError: the sequences cannot be put into as many batches for each process.
        """
        options = self._current_options()
        return self._total_batches(options) // options.world_size

    def plan(self, epoch: int) -> EpochPlan:
        """Return the plan of an epoch."""
        options = self._current_options()
        if self._last_plan is None or self._last_plan[:2] != (epoch, options):
            plan = plan_epoch(self.lengths, options, epoch, self._total_batches(options))
            self._last_plan = epoch, options, plan
        return self._last_plan[2]

    def begin_tracked(self) -> TrackedPass:
        """Begin a tracked pass; if the processes are those of `torch.distributed`, all of them must.

        Raises:
            SeqbatchError: they do not begin the same pass.
        """
        world_size, batches = self.processes()[1], self.batches()
        if self._processes is None and world_size > 1:
            self._require_agreement(self.state(self.passes.upcoming))
        return self.passes.begin_tracked(batches, world_size)

    def begin_drawing(self) -> Position:
        """Return where the pass begins whose first batch is drawn now."""
        return self.passes.begin_drawing(self.processes()[1])

    def state(self, position: Position) -> dict[str, Any]:
        """Return a position as plain values, with all that it depends on."""
        return {"epoch": position.epoch, "position": position.batch, **self._dependencies()}

    def read_state(self, state_dict: object) -> Position:
        """Return the position of a state.

        Raises:
            SeqbatchTypeError: it is not a mapping.
            SeqbatchValueError: it is of other lengths or arguments, or its position is beyond the batches of its epoch.
        """
        if not isinstance(state_dict, Mapping):
            raise complaint(SeqbatchTypeError, "state_dict", "be a mapping", type_name(state_dict))
        for name, wanted in self._dependencies().items():
            if (found := state_dict.get(name)) != wanted:
                must = f"have {name} {wanted!r}, as this sampler"
                raise complaint(SeqbatchValueError, "state_dict", must, repr(found), _OTHER_PLAN)
        epoch, position = (at_least(f"state_dict[{name!r}]", state_dict.get(name), 0) for name in ("epoch", "position"))
        if position > self.batches():
            must = f"be at most {self.batches()}, the batches of an epoch"
            raise complaint(SeqbatchValueError, "state_dict['position']", must, position)
        return Position(epoch, position)

    def _current_options(self) -> PlanOptions:
        return attrs.evolve(self._options, world_size=self.processes()[1])

    def _total_batches(self, options: PlanOptions) -> int:
        if options not in self._counts:
            self._counts[options] = require_batches(self.lengths, options)
        return self._counts[options]

    def _dependencies(self) -> dict[str, Any]:
        """Return all that a plan depends on, so that equal values mean equal plans."""
        options = attrs.asdict(self._current_options())
        return {"version": PLAN_VERSION, "sequences": len(self.lengths), "lengths": self._digest, **options}

    def _require_agreement(self, own: dict[str, Any]) -> None:
        """Raise unless all processes begin the same pass, because each would otherwise run part of another plan."""
        states: list[Any] = [None] * self.processes()[1]
        distributed.all_gather_object(states, own)
        for other, state in enumerate(states):
            for name in own:
                if state != states[0] and state[name] != states[0][name]:
                    must = f"have the same {name} in every process"
                    found = f"{states[0][name]!r} in process 0 and {state[name]!r} in process {other}"
                    remedy = "Pass the lengths of the whole data set in every process: the sampler shards it."
                    raise complaint(SeqbatchError, "sampler", must, found, remedy)
