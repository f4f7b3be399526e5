import pytest
from hypothesis import given
from hypothesis import strategies as st

from swin_mim.errors import UserError
from swin_mim.training.config.durations import checked_warmup, to_steps

IMAGENET, BATCH = 1_281_167, 2048


@pytest.mark.parametrize(
    ("duration", "steps"),
    [
        ("500 steps", 500),
        ("1 step", 1),
        ("500steps", 500),
        (" 1_000  steps ", 1000),
        ("1e3 steps", 1000),
        ("0 steps", 0),
        ("0 epochs", 0),
        ("1 epoch", 626),  # 625.57 batches
        ("100 epochs", 62_557),
        ("0.5 epochs", 313),
        ("2000000 images", 977),  # 976.56 batches
        ("2e6 images", 977),
        ("2_000_000 images", 977),
        ("1 image", 1),
        ("2048 images", 1),
        ("2049 images", 2),
        ("1.5e3 images", 1),
    ],
)
def test_durations(duration: str, steps: int) -> None:
    assert to_steps(duration, dataset_size=IMAGENET, global_batch=BATCH) == steps


def test_fractions_of_epochs_are_exact() -> None:
    # In floating point 1.1 * 1000 is a little more than 1100 and would cost a twelfth step.
    assert to_steps("1.1 epochs", dataset_size=1000, global_batch=100) == 11


@given(st.integers(0, 10**6), st.integers(1, 10**7), st.integers(1, 10**5))
def test_steps_see_at_least_the_images_and_less_than_one_batch_more(count: int, size: int, batch: int) -> None:
    for duration, images in ((f"{count} images", count), (f"{count} epochs", count * size)):
        steps = to_steps(duration, dataset_size=size, global_batch=batch)
        assert images <= steps * batch < images + batch
    assert to_steps(f"{count} steps", dataset_size=size, global_batch=batch) == count


@pytest.mark.parametrize(
    "duration",
    ["", "100", "epochs", "-1 epochs", "100 epochss", "1,000 steps", "ten steps", "1.5 steps", "0.5 images"]
    + ["1e-1 steps", "nan epochs", "inf steps", "1e999 steps", ". steps", "100 epochs 3 steps", "100 Epochs", "١ step"],
)
def test_bad_durations_name_the_text_and_the_form(duration: str) -> None:
    with pytest.raises(UserError) as caught:
        to_steps(duration, dataset_size=IMAGENET, global_batch=BATCH)
    assert str(caught.value) == (
        f"{duration!r} is not a duration: write a number and a unit, "
        '"100 epochs", "0.5 epochs", "500 steps" or "2e6 images"'
    )


def test_the_warm_up_ends_before_the_run() -> None:
    assert checked_warmup("5 steps", 5, 6) == 5
    with pytest.raises(
        UserError,
        match="the run, which has 60 steps: the warm-up must be shorter, such as '6 steps'",
    ):
        checked_warmup("60 steps", 60, 60)
