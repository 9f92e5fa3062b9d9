"""Every error that the outside world can give us, translated once at each boundary.

StoreError             the root
  StoreMissing         the key or the folder is not there
  StoreDenied          no permission
  StorePermanent       trying again will not help (a full disk, a bad name)
  StoreRetryable       trying again may help
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
