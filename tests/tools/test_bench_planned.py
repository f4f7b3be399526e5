"""The model of memory beside a real run."""

import pytest

from tools.bench import planned


def test_cases_are_command_lines_of_the_recipe(tmp_path) -> None:
    cases = [*planned.CASES, planned.NOTHING]
    assert all(planned.planned_gb(case, 0.0) > 0 for case in cases)
    assert len({case.text for case in cases}) == len(cases)
    many = planned.CASES[1]
    twice = many._replace(micro_batch=2 * many.micro_batch)
    assert planned.planned_gb(twice, 0.0) > 1.5 * planned.planned_gb(many, 0.0)


def test_a_hidden_layer_that_a_cache_holds_is_planned_as_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    few = planned.CASES[0]
    kept = planned.planned_gb(few, 0.0)
    monkeypatch.setattr(planned, "CACHE", 0)
    assert planned.onednn_is_faster() or planned.planned_gb(few, 0.0) < kept


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
