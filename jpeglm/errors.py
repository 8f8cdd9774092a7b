"""The one exception that means "the user can mend this"."""


class InputError(ValueError):
    """Bad input: a file, flag, config or workdir that the user can correct.

    The message is one line and says what is wrong and where. Commands print it without a traceback and
    exit with status 2 (see `jpeglm.cli`).
    """
