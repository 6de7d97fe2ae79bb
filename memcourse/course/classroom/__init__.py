"""A class: submissions found, graded in parallel, kept, and reported to the instructor and to each learner."""


class CannotGrade(Exception):
    """The class cannot be graded, or not to the end; the message is for the instructor (exit code 2)."""
