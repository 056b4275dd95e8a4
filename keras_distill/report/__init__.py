"""Comparisons of models: is the student better, is it safe to serve, what does it cost?

`compare` measures models side by side. Its report is printed as a table, and written as
a page, pictures and JSON.
"""

from keras_distill.report.comparing import Report, compare

__all__ = ["Report", "compare"]


def __dir__() -> list[str]:
    return sorted(__all__)
