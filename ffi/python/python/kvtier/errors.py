"""What kvtier raises. Everything is an `Error`, and also the built-in exception that fits."""


class Error(Exception):
    """Any of the below."""


class Busy(Error):
    """Too much is under way: collect tickets and try again. Nothing was started."""


class Closed(Error, ValueError):
    """The store or the pool is closed. Nothing was started."""


class Invalid(Error, ValueError):
    """Arguments that make no sense. Nothing was started."""


class Forked(Error, RuntimeError):
    """The object belongs to the process that was forked."""


class OpenFailed(Error, OSError):
    """The store could not be opened, or the tensors not registered. Nothing in a log is lost by it."""


class Unclean(Error, OSError):
    """Something did not end in time, or could not be made durable, at closing."""


class Timeout(Error, TimeoutError):
    """Waited as long as was asked for. The operation goes on."""


class LoadFailed(Error):
    """A layer will not arrive: recompute."""
