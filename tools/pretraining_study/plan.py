"""What the study runs, by docs/pretraining-protocol.md: pure functions from the results so far to the next runs."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

CHARACTERS, TILES = "characters", "tiles"
NEW, CONVNET, NEW_FINE = "new weights", "convnet", "new weights, fine"
TARGETS = ("pixels", "normalized", "hog")
STAGES, TEACHER, LONGER, FINE = "stages", "teacher", "longer", "fine"
"""What is added to the best target: "normalized stages" is an arm. fine: patches of half the side."""
VALIDATION, TEST = "validation", "test"

PRETRAINING_STEPS = {CHARACTERS: 5625, TILES: 12_000}
"""Of 64 pictures (6 epochs) and of 32 tiles."""
SHORT_STEPS = {CHARACTERS: 1400, TILES: 3000}
"""Of the pretrainings that choose the rate of a target."""
PRETRAINING_RATES = {CHARACTERS: (7.5e-4, 1.5e-3, 3e-3), TILES: (7.5e-4, 1.5e-3, 3e-3)}
"""At 64 characters and at 32 tiles a step."""
FINE_STEPS = 2250
"""Of a pretraining with fine patches, which takes as long."""
STEPS = {CHARACTERS: {1: 1000, 3: 1500, 10: 1500, 30: 3000, 100: 3000}, TILES: {10: 1000, 30: 1000, 100: 1000}}
"""Of 32 images, by the labels for each class."""
LONGER_BY = 4
"""Times these steps, with which session A asks whether new weights have converged: with 30 labels about as many images
as another arm has with and without labels together."""
MIN_GAIN = 0.02
"""Accuracy that new weights have to gain by them to be measured with them too."""
RATES = {NEW: (5e-4, 1e-3, 2e-3), CONVNET: (1e-3, 2e-3, 4e-3), NEW_FINE: (5e-4, 1e-3, 2e-3)}
PRETRAINED_RATES = (7.5e-4, 1.5e-3, 3e-3)
"""At 32 images a step; a factor of 2 apart."""
CHOSEN_BY = {CHARACTERS: (3, 30), TILES: (30,)}
"""Labels for each class with which rates and arms are chosen, by the mean of their accuracies."""
SEEDS = {1: 3, 3: 5, 10: 5, 30: 5, 100: 3}
CONVNET_SEEDS = {1: 3, 3: 3, 10: 3, 30: 3}
"""Of both sets of images: with 100 labels and more seeds it would take as long as all else together."""
LONG_SEEDS = 3
WHOLE, EVEN = ("--data.crop_scale", "1", "1"), ("--optim.layer_decay", "1")
SHARP, ALL = ("--augment.label_smoothing", "0"), ("--model.drop_path_rate", "0")
BATCH, LARGE_BATCH = 32, 128
"""Images of a step with labels."""
LARGE = ("--train.global_batch", str(LARGE_BATCH), "--train.micro_batch", str(LARGE_BATCH))
RECIPES: dict[str, tuple[str, ...]] = {
    "usual": (),
    "plain": (*WHOLE, *EVEN, *SHARP, *ALL),
    "whole": WHOLE,
    "even": EVEN,
    "sharp": SHARP,
    "all blocks": ALL,
    "batch 128": LARGE,
}
"""What the trial changes in the fine-tuning: nothing; all of the next four; pictures that are not cut; one rate in
all layers; labels that are not smoothed; blocks that are not dropped; four times the pictures a step."""
TRIED = ("pixels", "normalized")
FOLLOWED = (
    ("usual", "pixels", 30, 1.5e-3, 3000),
    ("usual", "pixels", 30, 1.5e-3, 12_000),
    ("batch 128", "pixels", 30, 7.5e-4, 3000),
    *(
        ("batch 128", arm, labels, rate, 3000 if labels == 30 else 1500)
        for labels in (30, 3, 10)
        for arm, rate in (("normalized", 1.5e-3), (NEW, 5e-4))
    ),
)
"""What the first runs of the trial suggested: recipe, arm, labels for each class, rate at 32 images, steps."""


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
    """At 32 images a step."""
    seed: int
    """Of subset, order, augmentation and new weights; the pretraining has seed 0 where it is even, else 1."""
    steps: int
    split: str
    """validation or test."""
    recipe: str = ""
    """Of the trial, what is different in the fine-tuning: `RECIPES`."""

    @property
    def name(self) -> str:
        arm, rate = self.arm.replace(" ", "-"), f"rate{self.rate:g}"
        name = f"{self.images}_{arm}_labels{self.labels}_{rate}_seed{self.seed}_steps{self.steps}_{self.split}"
        return f"{name}_{self.recipe.replace(' ', '-')}" if self.recipe else name

    @property
    def batch(self) -> int:
        """Images of a step."""
        return LARGE_BATCH if self.recipe == "batch 128" else BATCH


Cell = Pretraining | Training
Results = Mapping[Cell, Mapping[str, Any]]
KINDS: dict[str, type[Pretraining] | type[Training]] = {kind.__name__: kind for kind in (Pretraining, Training)}


def pretraining(images: str, arm: str, found: Results, seed: int = 0) -> Pretraining:
    """The whole one of an arm, at the rate of its target."""
    target, *added = arm.split()
    steps = FINE_STEPS if FINE in added else PRETRAINING_STEPS[images] * (2 if LONGER in added else 1)
    return Pretraining(images, arm, chosen_pretraining(images, target, found) or 0.0, seed, steps)


def training(images: str, arm: str, labels: int, rate: float, *, steps: int | None = None) -> Training:
    """A run by which something is chosen."""
    return Training(images, arm, labels, rate, 0, steps or STEPS[images][labels], VALIDATION)


def needs(cell: Cell, found: Results) -> list[Pretraining]:
    """The pretrainings whose encoders a run starts from or learns from."""
    if isinstance(cell, Pretraining):
        base, _, added = cell.arm.partition(" ")
        return [pretraining(cell.images, base, found, cell.seed)] if added == TEACHER else []
    return [] if cell.arm in RATES else [pretraining(cell.images, cell.arm, found, cell.seed % 2)]


def missing(wanted: Iterable[Cell], found: Results, kept: Callable[[Pretraining], bool]) -> list[Cell]:
    """What has to run for these, each after what it needs; `kept`: whether the encoder of a pretraining is there."""
    ordered: dict[Cell, None] = {}

    def add(cell: Cell) -> None:
        for need in needs(cell, found):
            if not kept(need):
                add(need)
        ordered[cell] = None

    for cell in wanted:
        if cell not in found:
            add(cell)
    return list(ordered)


def startable(
    todo: Iterable[Cell], running: Collection[Cell], found: Results, kept: Callable[[Pretraining], bool]
) -> Cell | None:
    """The first that is not under way and whose encoders are there; pretrainings go first, as others wait for them."""
    ready = [cell for cell in todo if cell not in running and all(kept(need) for need in needs(cell, found))]
    return next((cell for cell in ready if isinstance(cell, Pretraining)), ready[0] if ready else None)


# Choices.


def one_beyond(rates: Sequence[float], score_of: Callable[[float], float | None]) -> tuple[float, ...]:
    """The rates to try: three, and one beyond them where the best of them is at an end; a higher score is better."""
    scores = {rate: score_of(rate) for rate in rates}
    known = {rate: value for rate, value in scores.items() if value is not None}
    if len(known) < len(scores):
        return tuple(rates)
    best_of = max(known, key=lambda rate: known[rate])
    beyond = {rates[0]: rates[0] / 2, rates[-1]: rates[-1] * 2}.get(best_of)
    return tuple(rates) if beyond is None else (*rates, beyond)


def grid(images: str, arm: str, found: Results) -> tuple[float, ...]:
    """The rates to try with labels."""
    rates = RATES.get(arm, PRETRAINED_RATES)
    return one_beyond(rates, lambda rate: score(images, arm, rate, found))


def short_pretrainings(images: str, target: str, found: Results) -> list[Pretraining]:
    """The runs that choose the rate of a target's pretraining."""

    def of(rate: float) -> Pretraining:
        return Pretraining(images, target, rate, 0, SHORT_STEPS[images])

    def score_of(rate: float) -> float | None:
        return -loss_of(found[of(rate)]) if of(rate) in found else None

    return [of(rate) for rate in one_beyond(PRETRAINING_RATES[images], score_of)]


def loss_of(row: Mapping[str, Any]) -> float:
    """What a target is predicted with on held-out images."""
    return float(row.get("heldout_hog_loss", row["heldout_loss"]))


def chosen_pretraining(images: str, target: str, found: Results) -> float | None:
    """The rate of a target with the smallest loss; None: not all of its short runs are done."""
    runs = short_pretrainings(images, target, found)
    return min(runs, key=lambda cell: loss_of(found[cell])).rate if all(cell in found for cell in runs) else None


def score(images: str, arm: str, rate: float, found: Results) -> float | None:
    """The mean accuracy on validation images by which is chosen; None: a run of it is missing."""
    cells = [training(images, arm, labels, rate) for labels in CHOSEN_BY[images]]
    if any(cell not in found for cell in cells):
        return None
    return sum(float(found[cell]["accuracy"]) for cell in cells) / len(cells)


def choosing(images: str, arms: Sequence[str], found: Results) -> list[Cell]:
    """The runs that choose the rates of these arms; most labels first, where a fault shows."""
    return [
        training(images, arm, labels, rate)
        for labels in sorted(CHOSEN_BY[images], reverse=True)
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


def candidates(found: Results) -> list[str] | None:
    """All pretrained arms of the characters; None: the best target is not known."""
    target = best(CHARACTERS, TARGETS, found)
    return None if target is None else [*TARGETS, *(f"{target} {added}" for added in (STAGES, TEACHER, LONGER))]


# Sessions.


def session_a(found: Results) -> list[Cell]:
    """Targets and new weights: rates, and whether new weights have converged."""
    wanted: list[Cell] = [cell for target in TARGETS for cell in short_pretrainings(CHARACTERS, target, found)]
    ready = [target for target in TARGETS if chosen_pretraining(CHARACTERS, target, found) is not None]
    wanted += [pretraining(CHARACTERS, target, found) for target in ready]
    return wanted + choosing(CHARACTERS, (NEW, *ready), found) + [cell for cell, _ in long_runs(found)]


def long_runs(found: Results) -> list[tuple[Training, Training]]:
    """New weights with LONGER_BY times the steps, beside the same with the usual ones; none while no rate is chosen."""
    new = chosen(CHARACTERS, NEW, found)
    if new is None:
        return []
    return [
        (
            training(CHARACTERS, NEW, labels, new[0], steps=LONGER_BY * STEPS[CHARACTERS][labels]),
            training(CHARACTERS, NEW, labels, new[0]),
        )
        for labels in CHOSEN_BY[CHARACTERS]
    ]


def session_b(found: Results) -> list[Cell]:
    """The convolutional network; what is added to the best target, and last the best target for twice as long."""
    arms = candidates(found)
    if arms is None:
        return session_a(found)
    *added, longer = arms[len(TARGETS) :]
    wanted: list[Cell] = [pretraining(CHARACTERS, arm, found) for arm in added]
    return [*wanted, *choosing(CHARACTERS, (CONVNET, *added), found), *choosing(CHARACTERS, (longer,), found)]


def session_c(found: Results) -> list[Cell]:
    """Measure new weights and the best pretrained arm on the test characters; new weights for longer if they gained."""
    winner = best_pretrained(found)
    if winner is None:
        return session_b(found)
    wanted = measured(CHARACTERS, (NEW, winner), found)
    gains = [found[long]["accuracy"] - found[short]["accuracy"] for long, short in long_runs(found) if long in found]
    if gains and max(gains) > MIN_GAIN:
        longs = (long for long, _ in long_runs(found))
        wanted += [long._replace(seed=seed, split=TEST) for long in longs for seed in range(LONG_SEEDS)]
    return wanted


def session_d(found: Results) -> list[Cell]:
    """Measure the convolutional network on the test characters."""
    return measured(CHARACTERS, (CONVNET,), found) or choosing(CHARACTERS, (CONVNET,), found)


def session_e(found: Results) -> list[Cell]:
    """Choose rates on the tiles, then measure pixels, the best arm of the characters, and both without pretraining."""
    winner = best_pretrained(found)
    if winner is None:
        return session_b(found)
    arms = list(dict.fromkeys((NEW, CONVNET, "pixels", winner)))
    short = {target: short_pretrainings(TILES, target, found) for target in {arm.split()[0] for arm in arms[2:]}}
    wanted: list[Cell] = [cell for cells in short.values() for cell in cells]
    if any(chosen_pretraining(TILES, target, found) is None for target in short):
        return wanted + choosing(TILES, arms[:2], found)
    return wanted + choosing(TILES, arms, found) + measured(TILES, arms, found)


def session_f(found: Results) -> list[Cell]:
    """Patches of half the side, at as many minutes of pretraining: what they are worth to new weights and pretrained
    ones."""
    target = best(CHARACTERS, TARGETS, found)
    if target is None:
        return session_a(found)
    arms = (NEW_FINE, f"{target} {FINE}")
    labels = max(CHOSEN_BY[CHARACTERS])
    return [training(CHARACTERS, arm, labels, rate) for arm in arms for rate in RATES.get(arm, PRETRAINED_RATES)]


def best_pretrained(found: Results) -> str | None:
    """The arm of the characters that is best by its validation images; None: not all are chosen."""
    arms = candidates(found)
    return None if arms is None else best(CHARACTERS, arms, found)


def measured(images: str, arms: Sequence[str], found: Results) -> list[Cell]:
    """The runs on test images, seed by seed, the arms beside each other; none while the rates are not chosen."""
    rates = {arm: chosen(images, arm, found) for arm in arms}
    if None in rates.values():
        return []
    return [
        Training(images, arm, labels, (rates[arm] or (0.0,))[0], seed, steps, TEST)
        for seed, (labels, steps), arm in product(range(max(SEEDS.values())), STEPS[images].items(), arms)
        if seed < seeds(arm, labels)
    ]


def seeds(arm: str, labels: int) -> int:
    """Runs of an arm on test images."""
    return (CONVNET_SEEDS if arm == CONVNET else SEEDS).get(labels, 0)


def trial(found: Results) -> list[Cell]:
    """What keeps accuracies low: the fine-tuning with other settings, 30 labels."""
    if any(chosen_pretraining(CHARACTERS, target, found) is None for target in TRIED):
        return [cell for target in TRIED for cell in short_pretrainings(CHARACTERS, target, found)]
    labels = max(CHOSEN_BY[CHARACTERS])
    registered: list[Cell] = [
        training(CHARACTERS, arm, labels, RATES.get(arm, PRETRAINED_RATES)[1])._replace(recipe=recipe)
        for recipe in ("plain", "whole", "even", "sharp", "all blocks")
        for arm in (*TRIED, NEW)
        if arm != NEW or recipe != "even"  # which new weights have
    ]
    return registered + [
        training(CHARACTERS, arm, labels, rate, steps=steps)._replace(recipe=recipe)
        for recipe, arm, labels, rate, steps in FOLLOWED
    ]


SESSIONS: dict[str, Callable[[Results], list[Cell]]] = {
    "A": session_a,
    "B": session_b,
    "C": session_c,
    "D": session_d,
    "E": session_e,
    "F": session_f,
    "trial": trial,
}
