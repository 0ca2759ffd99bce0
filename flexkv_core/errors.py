"""Every exception of FlexKV Connectors. A leaf: it imports nothing of ours.

    FlexKVError
      ConfigError(ValueError)             bad user input; names the option
      LayoutError(ValueError)             tensors do not have the promised geometry
      TokenError(ValueError)              token ids that no block key can be made of
      UnsupportedEngineError(ImportError) an engine that is missing, too old or too new
      BrokenPromiseError(RuntimeError)    a load failed, and the engine has no way to be told
      LeaseError(RuntimeError)            a lease, reservation or job used after its end
      IntegrityError(RuntimeError)        `check_integrity` found a broken invariant: a bug of ours
      TierError(OSError)                  a tier that cannot serve; carries `tier`

Expected outcomes are values and never raised: a miss, no room, not ready yet, a block that failed
its checksum, a read that came too late.
"""

from typing_extensions import override

__all__ = [
    "BrokenPromiseError",
    "ConfigError",
    "FlexKVError",
    "IntegrityError",
    "LayoutError",
    "LeaseError",
    "TierError",
    "TokenError",
    "UnsupportedEngineError",
]


class FlexKVError(Exception):
    """Base of all exceptions raised by this project."""


class ConfigError(FlexKVError, ValueError):
    """A configuration that cannot be used: what was given, what was expected, what to do."""


class LayoutError(FlexKVError, ValueError):
    """Engine tensors whose geometry is unknown or contradicts what the engine declared."""


class TokenError(FlexKVError, ValueError):
    """Token ids that do not identify the content of a block."""


class UnsupportedEngineError(FlexKVError, ImportError):
    """An engine that is not installed, or whose version has never been checked."""


class BrokenPromiseError(FlexKVError, RuntimeError):
    """Pages that an engine relies on cannot be filled, and it has no way to be told."""


class LeaseError(FlexKVError, RuntimeError):
    """A lease, reservation or job that was ended twice, or used after its end."""


class IntegrityError(FlexKVError, RuntimeError):
    """An invariant of the control plane does not hold."""


class TierError(FlexKVError, OSError):
    """A storage tier that cannot be opened or has stopped serving."""

    def __init__(self, tier: str, reason: str) -> None:
        super().__init__(reason)
        self.tier = tier
        self.reason = reason

    @override
    def __str__(self) -> str:
        return f"tier {self.tier}: {self.reason}"
