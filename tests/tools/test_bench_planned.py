"""The model of memory beside a real run."""

import pytest

from tools.bench import planned


def test_cases_are_command_lines_of_the_recipe(tmp_path) -> None:
    cases = [*planned.CASES, planned.NOTHING]
    assert all(planned.planned_gb(case, 0.0) > 0 for case in cases)
    assert len({case.text for case in cases}) == len(cases)
    twice = planned.CASES[0]._replace(micro_batch=2 * planned.CASES[0].micro_batch)
    assert planned.planned_gb(twice, 0.0) > 1.5 * planned.planned_gb(planned.CASES[0], 0.0)


@pytest.mark.slow
def test_a_run_takes_what_is_planned() -> None:
    """The recipe itself, in a process of its own, on this CPU."""
    ((case, measured, expected),) = planned.rows([planned.Case("swin_nano", 192, 16)])
    assert expected == pytest.approx(measured, rel=0.15), case.text


@pytest.mark.slow
def test_a_run_that_fails_says_why() -> None:
    with pytest.raises(planned.UserError, match="swin_none"):
        planned.measured_gb(planned.Case("swin_none", 192, 1))


def test_words_that_are_no_option_are_refused() -> None:
    assert planned.parse(["--only", "DDP"]).only == "DDP"
    with pytest.raises(SystemExit):
        planned.parse(["--cases", "DDP"])
