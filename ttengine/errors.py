"""Every error that ttengine raises on purpose; each message says what came, what was allowed and what to do."""

from __future__ import annotations

import importlib
from types import ModuleType


class TTEngineError(Exception):
    """The parent of every error raised by this package."""


class ConfigError(TTEngineError, ValueError):
    """A setting is unknown, out of range, or at odds with another setting."""


class ShapeError(TTEngineError, ValueError):
    """An array has the wrong dimensions."""


class NonFiniteError(TTEngineError, ValueError):
    """An array holds NaN or infinity where only finite numbers make sense."""


class DataError(TTEngineError, ValueError):
    """A dataset is empty, inconsistent, or misses a field."""


class DataWarning(UserWarning):
    """A dataset was read, but something in it was repaired or looks wrong; the message says what."""


class DatasetNotFoundError(TTEngineError, LookupError):
    """A dataset id is unknown, or its file is not here."""


class EnvironmentNotFoundError(TTEngineError, LookupError):
    """A Gymnasium environment id is unknown, or its package is not installed."""


class CheckpointError(TTEngineError, ValueError):
    """A model file is truncated, foreign, or of another version."""


class EngineError(TTEngineError, RuntimeError):
    """An engine is unknown, not built, or cannot do what was asked."""


class DeadlineExceeded(TTEngineError, TimeoutError):
    """A plan was not ready when its control period ended."""


class CallOrderError(TTEngineError, RuntimeError):
    """A controller's methods were called in an order that makes no sense."""


class RenderError(TTEngineError, RuntimeError):
    """A picture of the environment was asked for and cannot be made here."""


class MissingExtraError(TTEngineError, ImportError):
    """An optional package is needed and not installed."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional package, or raise with the `pip install` that brings it.

    Args:
        module: dotted name to import.
        extra: the extra of ttengine that installs it.
    Raises:
        MissingExtraError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the package is here; something inside it is broken, and hiding that would help nobody
        raise MissingExtraError(
            f"{module} is not installed; it comes with an extra: pip install 'ttengine[{extra}]'"
        ) from error
