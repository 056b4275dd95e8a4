"""The category of warnings about teachers, by which they can be filtered."""


class TeacherWarning(UserWarning):
    """A warning that a teacher has probably nothing to teach.

    Filter it if the teacher is as intended, or turn it into an error.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("error", category=TeacherWarning)
        >>> warnings.filterwarnings("ignore", category=TeacherWarning)
    """
