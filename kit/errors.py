"""The one kind of error that a person sees."""


class KitError(Exception):
    """What happened and why, and what to type next.

    `message` is one or more lines, `hint` the next step (a command where there is one).
    `status` is the exit status of a script that ends with it.
    """

    status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class WrongUsage(KitError):
    """The command was typed in a way that it does not take: an unknown name, a value out of range."""

    status = 2
