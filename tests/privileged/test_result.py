"""The verdict of numbers, and how it is printed."""

import json

import pytest

from keras_distill.privileged import Audit
from keras_distill.tuning import Gain

NONE, SOME = Gain(0.001, -0.002, 0.004, 3), Gain(0.05, 0.03, 0.07, 3)
WORSE = Gain(-0.05, -0.07, -0.03, 3)


def result(
    gain: Gain = SOME, over_control: Gain = SOME, teacher: float = 0.3, **given: Gain
) -> Audit:
    columns = {"dwell": SOME, "position": Gain(0.03, 0.01, 0.05, 3), "page": NONE}
    return Audit(
        gain=gain,
        over_control=over_control,
        control_gain=NONE,
        teacher_gain=SOME,
        columns=given or columns,
        losses={
            "student alone": 0.5,
            "student, control": 0.5,
            "student, privileged": 0.45,
            "teacher, control": 0.48,
            "teacher": teacher,
        },
        rows=500,
        groups=30,
        folds=3,
        fits=45,
    )


@pytest.mark.parametrize(
    ("gain", "over_control", "verdict"),
    [
        (SOME, SOME, "pays"),
        (SOME, NONE, "doesn't"),
        (NONE, SOME, "doesn't"),
        (WORSE, WORSE, "doesn't"),
    ],
)
def test_pays_only_where_both_gains_are_shown(
    gain: Gain, over_control: Gain, verdict: str
) -> None:
    assert result(gain, over_control).verdict == verdict


@pytest.mark.parametrize(("teacher", "verdict"), [(0.097, "pays"), (0.095, "leaks")])
def test_leaks_where_a_fifth_of_the_loss_or_less_is_left(
    teacher: float, verdict: str
) -> None:
    """Of 0.48, the loss of the control's teacher, which is below the student's."""
    assert result(teacher=teacher).verdict == verdict


def test_prints_all_that_the_verdict_rests_on() -> None:
    assert str(result(over_control=NONE)).splitlines() == [
        "Label loss of 500 later rows (3 folds, 3 seeds, 30 groups; lower is better):",
        "  student alone             0.50000",
        "  student, control          0.50000",
        "  student, privileged       0.45000",
        "  teacher, control          0.48000",
        "  teacher                   0.30000",
        "The teacher explains 38% of what remains without its columns (a leak above "
        "80%).",
        "Gain in label loss, with its 95 % interval:",
        "  privileged over alone    +0.05000  [+0.03000, +0.07000]",
        "  privileged over control  +0.00100  [-0.00200, +0.00400]",
        "  control over alone       +0.00100  [-0.00200, +0.00400]",
        "  teacher over alone       +0.05000  [+0.03000, +0.07000]",
        "Rise of the teacher's loss where a column is shuffled:",
        "  dwell                    +0.05000  [+0.03000, +0.07000]",
        "  position                 +0.03000  [+0.01000, +0.05000]",
        "  page                     +0.00100  [-0.00200, +0.00400]",
        "Verdict: doesn't. Fits: 45.",
        "Next: Train without these columns. On these rows they gain the student "
        "0.00400 at most. Raise `max_rows` or `seeds` if that still matters to you.",
    ]


def test_says_what_to_do_next_and_by_which_columns() -> None:
    assert result().advice.startswith("Distil from dwell, position on the whole log")
    assert result(teacher=0.01).advice.startswith("Leave out dwell, position: the")
    assert "gain the student 0.00000 at most" in result(gain=WORSE).advice
    assert result(over_control=NONE, dwell=WORSE, page=WORSE).leading == ["dwell"]


def test_is_written_as_json() -> None:
    found = json.loads(json.dumps(result().to_dict()))
    assert found["verdict"] == "pays" and found["explained"] == pytest.approx(0.375)
    assert found["columns"]["page"]["mean"] == found["control_gain"]["mean"] == 0.001
    assert found["advice"] == result().advice and found["losses"]["teacher"] == 0.3
