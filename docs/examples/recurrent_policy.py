"""Balance a pole whose speed is hidden, by a recurrent policy that learns in many environments at once.

The environment is CartPole of gymnasium (after A. Barto, R. Sutton and C. Anderson, 1983): push a cart to the left or
right so that the pole on it stays up, for 500 steps at most. The policy sees the places of cart and pole, but not their
velocities, so it needs a memory. Two policies are trained by PPO (J. Schulman and others, 2017): one with a GRU, and
for comparison one whose GRU is reset at each step. With its memory it keeps the pole up for some 500 steps, without it
for some 40.

    pip install "seqbatch[demo]"
    python recurrent_policy.py
"""

import argparse
import sys
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from seqbatch import ContainerState, SequenceBatch, encode, encode_with_state, scan

try:
    import gymnasium
    from matplotlib.figure import Figure
    from tqdm import tqdm
except ModuleNotFoundError as error:
    print(f'error: {error}. This example needs more: pip install "seqbatch[demo]"', file=sys.stderr)
    sys.exit(2)

# The position of the cart and the angle of the pole, and the values at which an episode ends.
SEEN, LIMITS = [0, 2], torch.tensor([2.4, 0.21])
ACTIONS, MOST_STEPS = 2, 500
DISCOUNT, TRACE = 0.99, 0.95
EPOCHS, PARTS, CLIP, ENTROPY, MOST_NORM = 4, 4, 0.2, 0.01, 0.5


class Policy(nn.Module):
    """A GRU, and layers from each of its outputs to the logits of the actions and the expected return.

    Args:
        size: size of the GRU.
        has_memory: whether the state is kept from step to step.
    """

    def __init__(self, size: int, has_memory: bool) -> None:
        super().__init__()
        head = (nn.Linear(size, size), nn.Tanh(), nn.Linear(size, ACTIONS + 1))
        self.layers = nn.Sequential(nn.GRU(len(SEEN), size), *head)
        self.has_memory = has_memory

    def forward(self, observations: SequenceBatch, state: ContainerState) -> tuple[SequenceBatch, SequenceBatch]:
        """Return the log-probabilities of the actions, `(steps, 2)`, and the expected returns, `(steps,)`."""
        if self.has_memory:
            outputs, _ = encode_with_state(self.layers, observations, state)
        else:
            alone = SequenceBatch(observations.values, [1] * observations.total_steps)
            outputs = observations.with_values(encode(self.layers, alone).values)
        return outputs.map(lambda x: x[:, :ACTIONS].log_softmax(1)), outputs.map(lambda x: x[:, ACTIONS])


@dataclass(frozen=True)
class Rollout:
    """Parts of episodes, from the first observation in the rollout to the one after the last action.

    Args:
        observations: `(steps + 1, 2)`.
        state: the state of the policy before each part.
        actions: `(steps,)`, int64.
        log_probabilities: those of the actions when they were taken: `(steps,)`.
        advantages: by how much the return is above the expected one: `(steps,)`.
        returns: what the policy should expect: `(steps,)`.
    """

    observations: SequenceBatch
    state: ContainerState
    actions: SequenceBatch
    log_probabilities: SequenceBatch
    advantages: SequenceBatch
    returns: SequenceBatch

    def __getitem__(self, indices: Tensor) -> "Rollout":
        return Rollout(*(part[indices] for part in vars(self).values()))


class Step(NamedTuple):
    """One step of all environments.

    Args:
        observed: `(environments, 2)`.
        is_last: whether this is the last observation of its episode; then gymnasium takes no action, but resets the
            environment: `(environments,)`.
        has_fallen: whether the episode has ended because the pole fell: `(environments,)`.
        actions: `(environments,)`, int64.
        rewards: `(environments,)`.
    """

    observed: Tensor
    is_last: Tensor
    has_fallen: Tensor
    actions: Tensor
    rewards: Tensor


class Actor:
    """A policy that acts in many environments side by side, in each in one episode after another.

    Args:
        policy: what acts.
        environments: their number.
        seed: the seed of the environments.

    Attributes:
        lengths: the steps of the latest 100 episodes that ended, which are their returns.
    """

    def __init__(self, policy: Policy, environments: int, seed: int) -> None:
        self.policy = policy
        self.environments = gymnasium.make_vec("CartPole-v1", num_envs=environments)
        self.observed = self.read(self.environments.reset(seed=seed)[0])
        self.is_last = self.has_fallen = torch.zeros(environments, dtype=torch.bool)
        self.one_step = SequenceBatch(self.observed, [1] * environments)
        # The state after an empty sequence is the initial one.
        _, start = encode_with_state(policy.layers, SequenceBatch(self.observed[:0], [0] * environments))
        self.state = start.detach()
        self.ages = torch.zeros(environments)
        self.lengths: deque[float] = deque(maxlen=100)

    @staticmethod
    def read(observations: object) -> Tensor:
        """Return what the policy sees of observations: `(environments, 2)`."""
        return torch.as_tensor(observations)[:, SEEN] / LIMITS

    @torch.no_grad()
    def step(self, greedy: bool = False) -> Step:
        """Act once in each environment, by the best action or by one drawn at random."""
        state = self.state if self.policy.has_memory else None
        outputs, state = encode_with_state(self.policy.layers, self.one_step.with_values(self.observed), state)
        logits = outputs.values[:, :ACTIONS]
        actions = logits.argmax(1) if greedy else logits.softmax(1).multinomial(1)[:, 0]
        observed, rewards, fell, timed_out, _ = self.environments.step(actions.numpy())
        done = Step(self.observed, self.is_last, self.has_fallen, actions, torch.as_tensor(rewards).float())
        # After the last observation of an episode, the next one is the first of another.
        self.state, self.ages = state.reset(self.is_last), (self.ages + 1).masked_fill(self.is_last, 0)
        self.observed, self.is_last, self.has_fallen = self.read(observed), *map(torch.tensor, (fell | timed_out, fell))
        self.lengths.extend(self.ages[self.is_last].tolist())
        return done

    def collect(self, steps: int) -> Rollout:
        """Act for a number of steps, and cut them into parts of episodes."""
        start, nothing = self.state, torch.zeros(len(self.observed))
        columns = [self.step() for _ in range(steps)]
        columns.append(Step(self.observed, nothing == 0, self.has_fallen, nothing.long(), nothing))
        # All steps of the first environment, then all of the second, and so on.
        flat = Step(*(torch.stack(column, 1).flatten(0, 1) for column in zip(*columns, strict=True)))
        ends = flat.is_last.nonzero()[:, 0] + 1
        starts = nn.functional.pad(ends[:-1], (1, 0))
        observations = SequenceBatch(flat.observed, ends - starts)
        state = start.select(starts // len(columns)).reset(starts % len(columns) > 0)
        return evaluate(self.policy, observations, state, flat)


def discounted_sums(batch: SequenceBatch, discount: float) -> SequenceBatch:
    """Sum each step and the later ones, each discounted once more than the one before it: `(steps,)`."""

    def step(values: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        sums = values + discount * sums
        return sums, sums

    return scan(step, batch, torch.zeros(len(batch)), reverse=True)[0]


def chosen(scores: Tensor, actions: Tensor) -> Tensor:
    """Select the score of the action at each step: `(steps,)`."""
    return scores.gather(1, actions[:, None])[:, 0]


@torch.no_grad()
def evaluate(policy: Policy, observations: SequenceBatch, state: ContainerState, flat: Step) -> Rollout:
    """Compute how good the actions were, by generalized advantage estimation (J. Schulman and others, 2016)."""
    log_probabilities, values = policy(observations, state)
    actions = observations.with_values(flat.actions)[:, :-1]
    # Scaled so that returns are at most 1.
    rewards = observations.with_values(flat.rewards * (1 - DISCOUNT))[:, :-1]
    # After a fall there is nothing to expect; after 500 steps, or where the rollout ends, there is.
    later = values.map(lambda value: value.masked_fill(flat.has_fallen, 0))[:, 1:]
    surprises = rewards.map(lambda reward, after, value: reward + DISCOUNT * after - value, later, values[:, :-1])
    advantages = discounted_sums(surprises, DISCOUNT * TRACE)
    returns = advantages.map(torch.add, values[:, :-1])
    taken = log_probabilities[:, :-1].map(chosen, actions)
    rollout = Rollout(observations, state, actions, taken, advantages, returns)
    return rollout[torch.tensor(actions.lengths) > 0]


def loss_of(policy: Policy, rollout: Rollout, scale: float) -> Tensor:
    """Compute the loss of PPO: the clipped gain of the actions, the error of the expected returns, and the entropy."""
    outputs: tuple[SequenceBatch, SequenceBatch] = policy(rollout.observations, rollout.state)
    log_probabilities, values = outputs[0][:, :-1], outputs[1][:, :-1]
    ratios = (log_probabilities.map(chosen, rollout.actions).values - rollout.log_probabilities.values).exp()
    advantages = rollout.advantages.values / scale
    gains = torch.minimum(ratios * advantages, ratios.clamp(1 - CLIP, 1 + CLIP) * advantages)
    entropy = -(log_probabilities.values.exp() * log_probabilities.values).sum(1)
    return ((values.values - rollout.returns.values).square() - gains - ENTROPY * entropy).mean()


def learn(policy: Policy, optimizer: torch.optim.Optimizer, rollout: Rollout) -> None:
    """Learn from a rollout, several times."""
    scale = rollout.advantages.values.square().mean().sqrt().item() + 1e-8
    for _ in range(EPOCHS):
        for indices in torch.randperm(len(rollout.observations)).chunk(PARTS):
            loss = loss_of(policy, rollout[indices], scale)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(policy.parameters(), MOST_NORM)
            optimizer.step()


def train(policy: Policy, options: argparse.Namespace, name: str) -> list[float]:
    """Train a policy; return the mean return of the latest episodes after each rollout."""
    optimizer = torch.optim.Adam(policy.parameters(), lr=options.lr)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, options.rollouts)
    actor = Actor(policy, options.environments, options.seed)
    returns = []
    progress = tqdm(range(options.rollouts), desc=name, unit="rollout")
    for _ in progress:
        learn(policy, optimizer, actor.collect(options.steps))
        scheduler.step()
        returns.append(sum(actor.lengths) / max(1, len(actor.lengths)))
        progress.set_postfix({"return": f"{returns[-1]:.0f}"})
    return returns


def measure(policy: Policy, episodes: int, seed: int) -> Tensor:
    """Return the returns of new episodes, in which the policy takes the best action: `(episodes,)`."""
    actor = Actor(policy, episodes, seed)
    returns, runs = torch.zeros(episodes), torch.ones(episodes, dtype=torch.bool)
    while runs.any():
        returns += runs * actor.step(greedy=True).rewards
        runs &= ~actor.is_last
    return returns


def save_picture(path: Path, curves: dict[str, list[float]], steps: int) -> None:
    """Save the return by steps as a PNG."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for (name, curve), style in zip(curves.items(), ("-", "--"), strict=True):
        axes.plot([(i + 1) * steps / 1000 for i in range(len(curve))], curve, style, label=name)
    axes.axhline(MOST_STEPS, color="black", linewidth=0.8, label="the most possible")
    axes.set(title="Mean return of the latest 100 episodes", xlabel="thousand steps", ylabel="return", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--rollouts", type=int, default=60, help="rollouts to learn from (%(default)s)")
    add("--steps", type=int, default=128, help="steps of a rollout in each environment (%(default)s)")
    add("--environments", type=int, default=32, help="environments side by side (%(default)s)")
    add("--size", type=int, default=64, help="size of the GRU (%(default)s)")
    add("--lr", type=float, default=0.002, help="learning rate at the start (%(default)s)")
    add("--seed", type=int, default=0, help="seed of everything random (%(default)s)")
    add("--output", type=Path, default="recurrent_policy.png", metavar="PATH", help="the picture (%(default)s)")
    add("--minimum-return", type=float, metavar="STEPS", help="fail if the return with a memory is below (no check)")
    options = parser.parse_args()
    # With two steps or more there is an action in each environment, even if it is reset in between.
    if min(options.rollouts, options.steps - 1, options.environments, options.size) < 1:
        parser.error("--rollouts, --environments and --size must be at least 1, and --steps at least 2")
    if not options.output.parent.is_dir():
        parser.error(f"argument --output: there is no folder {str(options.output.parent)!r}")
    return options


def main() -> int:
    """Train both policies, measure, print and draw."""
    options = parse_options()
    curves, means = {}, []
    for name, has_memory in (("with memory", True), ("without memory", False)):
        torch.manual_seed(options.seed)
        policy = Policy(options.size, has_memory)
        curves[name] = train(policy, options, name)
        returns = measure(policy, 100, options.seed + 1)
        means.append(returns.mean().item())
        print(f"{name}: mean return {means[-1]:.1f} in 100 new episodes, {returns.min():.0f} to {returns.max():.0f}")
    save_picture(options.output, curves, options.steps * options.environments)
    print(f"The return by steps is in {options.output}")
    if options.minimum_return is not None and means[0] < options.minimum_return:
        print(f"error: a return of {means[0]:.1f} is below {options.minimum_return:g}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
