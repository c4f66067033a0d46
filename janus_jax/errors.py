"""The one kind of error that users are meant to see: their mistake, told in a sentence."""


class UserError(ValueError):
    """What happened, the value, the way out. Commands print it without a traceback and exit with code 2."""
