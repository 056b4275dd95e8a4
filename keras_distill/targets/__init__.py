"""Teacher outputs as data: keys of the batch, which `teachers.Recorded` reads."""

from keras_distill.targets.remote_teacher import remote

__all__ = ["remote"]


def __dir__() -> list[str]:
    return sorted(__all__)
