"""The one error that stands for bad input."""


class InputError(ValueError):
    """What a user handed in cannot be used: says what was expected, what came and what to do.

    The command lines print its message as one line and end with exit code 2.
    """


def require(condition: bool, message: str) -> None:
    """Refuse a value with one line."""
    if not condition:
        raise InputError(message)
