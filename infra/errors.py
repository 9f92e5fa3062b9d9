"""Every error that the outside world can give us, translated once at each boundary.

StoreError             the root
  StoreMissing         the key or the folder is not there
  StoreDenied          no permission
  StorePermanent       trying again will not help (a full disk, a bad name)
  StoreRetryable       trying again may help
  StoreUnusable        nothing can be done with this store: no bucket, no credentials, another region's, TLS
SettingError           the root of what is wrong with the settings
  BadSetting           a value that cannot be
ServiceError           the root of what a service has done to us
  BrokerUnreachable    no broker at the address
  DatabaseUnreachable  no database at the address, or none that lets us in
  NotifyFailed         a message to people that could not be delivered
"""

from __future__ import annotations


class StoreError(Exception):
    """Root of the object store's errors. Its text is one sentence for a person."""


class StoreMissing(StoreError):
    """The key or the folder is not there."""


class StoreDenied(StoreError):
    """The store refuses access."""


class StorePermanent(StoreError):
    """Trying again will not help."""


class StoreRetryable(StoreError):
    """Trying again may help."""


class StoreUnusable(StoreError):
    """The store as a whole cannot be used as it is set up; the text says what to mend."""


class SettingError(Exception):
    """Root of the errors of settings."""


class BadSetting(SettingError):
    """A setting's value cannot be used."""

    def __init__(self, field: str, value: object, problem: str) -> None:
        super().__init__(f"{field}: {value} {problem}")
        self.field = field


class ServiceError(Exception):
    """Root of the errors of services. Its text is one sentence for a person."""


class BrokerUnreachable(ServiceError):
    """The broker does not answer."""


class DatabaseUnreachable(ServiceError):
    """The database does not answer."""


class NotifyFailed(ServiceError):
    """A message could not be delivered."""
