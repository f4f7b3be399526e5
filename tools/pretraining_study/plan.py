"""What the study runs, by docs/pretraining-gain.md: pure functions from the results so far to the next runs."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from swin_mim.errors import UserError

SETS = ("clothes", "digits")
NEW, CONVNET = "new weights", "convnet"
TARGETS = ("pixels", "normalized", "hog")
STAGES, TEACHER = "stages", "teacher"
"""What is added to the best target: "normalized stages" is an arm."""
VALIDATION, TEST = "validation", "test"

PRETRAINING_STEPS = 8600
"""Of 64 pictures: 10 epochs."""
PRETRAINING_RATE = {"pixels": 6e-3, "normalized": 2e-3, "hog": 2e-3}
"""At 64 pictures a step."""
STEPS = {1: 300, 3: 300, 10: 600, 30: 900, 100: 1500}
"""Of 64 pictures, by the labels for each class."""
LONGER_BY = 4
"""Times these steps, with which new weights are tried again."""
MIN_GAIN = 0.01
"""Accuracy that new weights have to gain by them to be measured with them too."""
CONVNET_PART = 2
"""The convolutional network has the steps of the others divided by this."""
RATES = {NEW: (5e-4, 1e-3, 2e-3), CONVNET: (1e-3, 2e-3, 4e-3)}
PRETRAINED_RATES = (5e-4, 1e-3, 2e-3)
"""At 64 pictures a step; a factor of 2 apart."""
CHOSEN_BY = (3, 30)
"""Labels for each class with which rates and arms are chosen, by the mean of their accuracies."""
SEEDS = {1: 3, 3: 5, 10: 5, 30: 5, 100: 3}
LONG_SEEDS = 3


class Pretraining(NamedTuple):
    """One run without labels, whose encoder is kept."""

    images: str
    arm: str
    rate: float
    seed: int
    steps: int

    @property
    def name(self) -> str:
        return f"{self.images}_{self.arm.replace(' ', '-')}_rate{self.rate:g}_seed{self.seed}_steps{self.steps}"


class Training(NamedTuple):
    """One run with labels."""

    images: str
    arm: str
    labels: int
    """Of each class."""
    rate: float
    """At 64 pictures a step."""
    seed: int
    """Of subset, order, augmentation and new weights; the pretraining has seed 0 where it is even, else 1."""
    steps: int
    split: str
    """validation or test."""

    @property
    def name(self) -> str:
        arm, rate = self.arm.replace(" ", "-"), f"rate{self.rate:g}"
        return f"{self.images}_{arm}_labels{self.labels}_{rate}_seed{self.seed}_steps{self.steps}_{self.split}"


Cell = Pretraining | Training
Results = Mapping[Cell, Mapping[str, Any]]
KINDS: dict[str, type[Pretraining] | type[Training]] = {kind.__name__: kind for kind in (Pretraining, Training)}


def pretraining(images: str, arm: str, seed: int = 0) -> Pretraining:
    """The pretraining of an arm."""
    return Pretraining(images, arm, PRETRAINING_RATE[arm.split()[0]], seed, PRETRAINING_STEPS)


def steps_of(arm: str, labels: int) -> int:
    """Steps of a run with labels."""
    return STEPS[labels] // (CONVNET_PART if arm == CONVNET else 1)


def training(images: str, arm: str, labels: int, rate: float) -> Training:
    """A run by which something is chosen."""
    return Training(images, arm, labels, rate, 0, steps_of(arm, labels), VALIDATION)


def needs(cell: Cell) -> list[Pretraining]:
    """The pretrainings whose encoders a run starts from or learns from."""
    if isinstance(cell, Pretraining):
        base, _, added = cell.arm.partition(" ")
        return [pretraining(cell.images, base, cell.seed)] if added == TEACHER else []
    return [] if cell.arm in RATES else [pretraining(cell.images, cell.arm, cell.seed % 2)]


def all_needs(cell: Cell) -> list[Pretraining]:
    """These, and what they need."""
    return [found for need in needs(cell) for found in (*all_needs(need), need)]


def missing(wanted: Iterable[Cell], found: Results, kept: Callable[[Pretraining], bool]) -> list[Cell]:
    """What has to run for these, each after what it needs; `kept`: whether the encoder of a pretraining is there."""
    ordered: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        for need in needs(cell):
            if not kept(need):
                add(need)
        ordered[cell] = None

    for cell in wanted:
        if cell not in found:
            add(cell)
    return list(ordered)


def startable(todo: Iterable[Cell], running: Collection[Cell], kept: Callable[[Pretraining], bool]) -> Cell | None:
    """The first that is not under way and whose encoders are there; pretrainings go first, as others wait for them."""
    ready = [cell for cell in todo if cell not in running and all(kept(need) for need in needs(cell))]
    return next((cell for cell in ready if isinstance(cell, Pretraining)), ready[0] if ready else None)


# Choices.


def grid(images: str, arm: str, found: Results) -> tuple[float, ...]:
    """The rates to try with labels: three, and one beyond them where the best of them is at an end."""
    rates = RATES.get(arm, PRETRAINED_RATES)
    scores = {rate: score(images, arm, rate, found) for rate in rates}
    known = {rate: value for rate, value in scores.items() if value is not None}
    if len(known) < len(scores):
        return rates
    best_of = max(known, key=lambda rate: known[rate])
    beyond = {rates[0]: rates[0] / 2, rates[-1]: rates[-1] * 2}.get(best_of)
    return rates if beyond is None else (*rates, beyond)


def score(images: str, arm: str, rate: float, found: Results) -> float | None:
    """The mean accuracy on validation pictures by which is chosen; None: a run of it is missing."""
    cells = [training(images, arm, labels, rate) for labels in CHOSEN_BY]
    if any(cell not in found for cell in cells):
        return None
    return sum(float(found[cell]["accuracy"]) for cell in cells) / len(cells)


def choosing(images: str, arms: Sequence[str], found: Results) -> list[Cell]:
    """The runs that choose the rates of these arms; most labels first, where a fault shows."""
    return [
        training(images, arm, labels, rate)
        for labels in sorted(CHOSEN_BY, reverse=True)
        for arm in arms
        for rate in grid(images, arm, found)
    ]


def chosen(images: str, arm: str, found: Results) -> tuple[float, float] | None:
    """The best rate of an arm and its mean accuracy; None: not all of its runs are done."""
    scores = [(score(images, arm, rate, found), rate) for rate in grid(images, arm, found)]
    done = [(value, rate) for value, rate in scores if value is not None]
    if len(done) < len(scores):
        return None
    value, rate = max(done)
    return rate, value


def best(images: str, arms: Sequence[str], found: Results) -> str | None:
    """The arm with the best mean accuracy at its rate; None: not all are chosen."""
    of_arm = {arm: chosen(images, arm, found) for arm in arms}
    if None in of_arm.values():
        return None
    return max(arms, key=lambda arm: (of_arm[arm] or (0.0, 0.0))[1])


# Sessions.


def choose(images: str, found: Results) -> list[Cell]:
    """Rates of all arms but those of `add`, and whether new weights have converged."""
    wanted: list[Cell] = [pretraining(images, target) for target in TARGETS]
    wanted += choosing(images, (NEW, *TARGETS, CONVNET), found)
    return wanted + [long for long, _ in long_runs(images, found)]


def long_runs(images: str, found: Results) -> list[tuple[Training, Training]]:
    """New weights with LONGER_BY times the steps, beside the same with the usual ones; none while no rate is chosen."""
    new = chosen(images, NEW, found)
    usual = [] if new is None else [training(images, NEW, labels, new[0]) for labels in CHOSEN_BY]
    return [(cell._replace(steps=LONGER_BY * cell.steps), cell) for cell in usual]


def add(images: str, found: Results) -> list[Cell]:
    """Heads of every stage, and a teacher, with the best target.

    Raises:
        UserError: the test pictures have been looked at.
    """
    if any(isinstance(cell, Training) and (cell.images, cell.split) == (images, TEST) for cell in found):
        raise UserError(f"the test pictures of {images} have been looked at: no arm is added any more")
    target = best(images, TARGETS, found)
    if target is None:
        return choose(images, found)
    arms = added(target)
    return [*(pretraining(images, arm) for arm in arms), *choosing(images, arms, found)]


def added(target: str) -> list[str]:
    """The arms of the best target with something more."""
    return [f"{target} {more}" for more in (STAGES, TEACHER)]


def measure(images: str, found: Results) -> list[Cell]:
    """New weights, the convolutional network and the best pretrained arm of those that were tried, on test pictures.

    What starts from an encoder comes first, and by the encoder: encoders are lost with the machine.
    """
    target, long = best(images, TARGETS, found), long_runs(images, found)
    others = {arm: chosen(images, arm, found) for arm in (NEW, CONVNET)}
    if target is None or None in others.values() or any(cell not in found for cell, _ in long):
        return choose(images, found)
    begun = any(cell.images == images and cell.arm in added(target) for cell in found)
    winner = best(images, (target, *added(target)), found) if begun else target
    if winner is None:
        return add(images, found)
    picked = {NEW: others[NEW], winner: chosen(images, winner, found), CONVNET: others[CONVNET]}
    rates = {arm: choice[0] for arm, choice in picked.items() if choice is not None}
    wanted = [
        Training(images, arm, labels, rate, seed, steps_of(arm, labels), TEST)
        for seed, labels, (arm, rate) in product(range(max(SEEDS.values())), sorted(STEPS, reverse=True), rates.items())
        if seed < SEEDS[labels]
    ]
    if max(found[cell]["accuracy"] - found[usual]["accuracy"] for cell, usual in long) > MIN_GAIN:
        wanted += [cell._replace(seed=seed, split=TEST) for cell, _ in long for seed in range(LONG_SEEDS)]
    return sorted(wanted, key=lambda cell: [need.seed for need in needs(cell)] or [max(SEEDS.values())])


SESSIONS: dict[str, Callable[[str, Results], list[Cell]]] = {"choose": choose, "add": add, "measure": measure}
