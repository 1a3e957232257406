"""Errors with exit codes and hints, and warning classes.

Every error says what is wrong, with the values, and carries a hint: how to mend it. Each is also the built-in that it
resembles, so that callers who do not know this module can still catch it.
"""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_INPUT = 2
EXIT_MODEL = 3
EXIT_CANCELLED = 130


class CegateError(Exception):
    """Root of all errors of this package.

    Args:
        message: What is wrong, with the values.
        hint: How to mend it, as an instruction. May be empty.
    """

    exit_code: int = EXIT_FAILED
    code: str = "failed"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[type[CegateError], tuple[str], dict[str, object]]:
        # As it would be by itself. Said here, tblib, which Dask brings, leaves it to us: what it does can't make an
        # error that is an OSError and something else.
        return type(self), (self.message,), self.__dict__

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class InputError(CegateError, ValueError):
    """Something that the user gave is wrong: an option, a raster, a label file, a configuration."""

    exit_code = EXIT_INPUT
    code = "input"


class RasterError(InputError, OSError):
    """A raster can't be opened, is damaged, or has a shape or type that can't be used."""

    code = "raster"


class LabelError(InputError):
    """Labels do not fit: no such field, unknown class, another grid, nothing inside the raster."""

    code = "labels"


class ConfigError(InputError, KeyError):
    """A configuration holds an unknown key, a wrong type, or values that contradict each other."""

    code = "config"

    def __str__(self) -> str:
        return CegateError.__str__(self)


class OutputExistsError(InputError, FileExistsError):
    """The output is already there and overwriting was not asked for."""

    code = "output-exists"


class ModelError(CegateError, RuntimeError):
    """A model file can't be loaded, has no usable contract, or does not fit the raster."""

    exit_code = EXIT_MODEL
    code = "model"


class RuntimeMissingError(ModelError, ImportError):
    """A package or provider that this job needs is not installed."""

    code = "runtime-missing"


class SiteError(CegateError, LookupError):
    """A module can't be placed where it was asked for: no such site, or the model would bypass it."""

    code = "site"


class ParityError(ModelError):
    """An exported model does not compute what its original computes."""

    code = "parity"


class CancelledError(CegateError):
    """The user, or the process that started this one, cancelled."""

    exit_code = EXIT_CANCELLED
    code = "cancelled"


class CegateWarning(UserWarning):
    """Root of all warnings of this package."""

    code: str = "warning"


class GsdWarning(CegateWarning):
    """The scene's ground sampling distance lies outside the range that the model was made for, or is unknown."""

    code = "gsd"


class GeoreferenceWarning(CegateWarning):
    """The scene has no CRS or only ground control points."""

    code = "georeference"


class BandWarning(CegateWarning):
    """Bands were guessed, expanded or reordered."""

    code = "bands"


class ContractWarning(CegateWarning):
    """The model's contract was incomplete and had to be guessed."""

    code = "contract"


class ModulesWarning(CegateWarning):
    """An export keeps more modules than it had to, because nothing could tell which of them are needed."""

    code = "modules"


class ProviderWarning(CegateWarning):
    """Another execution provider runs than the one that was asked for."""

    code = "provider"


class PartialWeightsWarning(CegateWarning):
    """A weights file holds more than what is used of it."""

    code = "weights"


class CollapseWarning(CegateWarning):
    """Training looks collapsed: one class only, or a loss that is no number."""

    code = "collapse"
