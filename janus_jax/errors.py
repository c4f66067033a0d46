"""The error for mistakes of users."""


class UserError(ValueError):
    """Its message says what is wrong, where, and what to do.

    Commands print it without a traceback and exit with code 2.
    """
