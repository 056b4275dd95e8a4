"""The category of warnings about a teacher, so that they can be filtered."""


class TeacherWarning(UserWarning):
    """A teacher that looks as if it had nothing to teach.

    Filter it where the teacher is as it should be, or turn it into an error.

    Example:
        >>> import warnings
        >>> warnings.filterwarnings("error", category=TeacherWarning)
        >>> warnings.filterwarnings("ignore", category=TeacherWarning)
    """
