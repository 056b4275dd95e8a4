"""Comparisons of models: quality with intervals, differences by class, and costs.

`compare` measures models on the same rows. Its report can be printed as a table, and
written as an HTML page, pictures and JSON.
"""

from keras_distill.report.comparing import Report, compare

__all__ = ["Report", "compare"]


def __dir__() -> list[str]:
    return sorted(__all__)
