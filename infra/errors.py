"""Errors of external services, translated once at each boundary.

StoreError             the root
  StoreMissing         the key or the folder is not there
  StoreDenied          no permission
  StorePermanent       a retry will not help (a full disk, a bad name)
  StoreRetryable       a retry may help
  StoreUnusable        the store cannot be used as configured: no bucket, no credentials, wrong region, TLS
SettingError           the root
  BadSetting           a value that cannot be used
ServiceError           the root
  BrokerUnreachable    no broker at the address
  DatabaseUnreachable  no database at the address, or no access to it
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
    """A retry will not help."""


class StoreRetryable(StoreError):
    """A retry may help."""


class StoreUnusable(StoreError):
    """The store cannot be used as configured; the text says what to correct."""


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
