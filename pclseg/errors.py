"""What a user can cause and mend, and what a user asked for."""


class UserError(Exception):
    """A mistake that the user can mend; shown as one line, exit code 1.

    The message says what is wrong, in which file or config key, what was expected
    and what to do next.
    """

    def __str__(self) -> str:
        """The message on one line, also where a library's message had several."""
        return " ".join(super().__str__().splitlines())


class Stopped(BaseException):
    """Raised where work ends early because the process was asked to; state is saved.

    Like KeyboardInterrupt no Exception: no handler of errors on the way may take it.
    """
