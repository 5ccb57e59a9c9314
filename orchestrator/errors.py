"""The error for what a person can put right: one line that says what is wrong, where, and what would be right."""


class InputError(ValueError):
    """Bad input. The message is shown as it is, without a traceback; the command line ends with exit code 2."""
