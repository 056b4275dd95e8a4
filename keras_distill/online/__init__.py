"""Online distillation: students that teach each other while they train."""

from keras_distill.online.backup import Backup
from keras_distill.online.directory import SharedPeers
from keras_distill.online.generations import Generations, born_again
from keras_distill.online.peers import MutualLearning

__all__ = ["Backup", "Generations", "MutualLearning", "SharedPeers", "born_again"]


def __dir__() -> list[str]:
    return sorted(__all__)
