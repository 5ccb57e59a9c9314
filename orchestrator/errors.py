"""The errors that are shown as a line: what a person can put right, and what stopped a submission from outside."""


class InputError(ValueError):
    """Bad input. The message is shown as it is, without a traceback; the command line ends with exit code 2."""


class StoppedError(RuntimeError):
    """A submission could not go on, though none of its runs is to blame. The command line ends with exit code 1."""
