"""Teachers: models, and other sources of the targets that a student learns."""

from keras_distill.cautions import TeacherWarning
from keras_distill.teachers.adapted import Adapted
from keras_distill.teachers.base import Lesson, Teacher
from keras_distill.teachers.correctness import CorrectnessWeighted
from keras_distill.teachers.cross_fitting import cross_fit
from keras_distill.teachers.ema import EMA
from keras_distill.teachers.ensemble import Ensemble
from keras_distill.teachers.recorded import Recorded

__all__ = [
    "EMA",
    "Adapted",
    "CorrectnessWeighted",
    "Ensemble",
    "Lesson",
    "Recorded",
    "Teacher",
    "TeacherWarning",
    "cross_fit",
]


def __dir__() -> list[str]:
    return sorted(__all__)
