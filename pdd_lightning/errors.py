"""Errors that a user can act on: each says what was wrong and what to do."""


class PDDError(ValueError):
    """Bad input or a damaged file; the message names the cause and the remedy.

    The command line prints the message alone (no traceback) and exits with status 1.
    """


class ConfigError(PDDError):
    """A setting, or a combination of settings, cannot work."""


class DataError(PDDError):
    """A dataset is missing, too small, or not the one that was expected."""


class DamagedFileError(PDDError):
    """A stored file is truncated or altered."""


class NonFiniteLossError(PDDError):
    """The matching loss became infinite or not a number."""


class StudyError(PDDError):
    """Steps of a study failed."""


class KernelError(PDDError):
    """What was asked of a ConvNet's CPU kernels is beyond them."""
