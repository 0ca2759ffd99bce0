"""The former place of `flexkv_connectors.testing.hicache_storage`, for who imports it from here."""

from flexkv_connectors.testing.hicache_storage import (
    GenericStorageCase,
    HiCacheStorageContract,
    StorageCase,
    chain_of,
    extra_of,
)

__all__ = ["GenericStorageCase", "HiCacheStorageContract", "StorageCase", "chain_of", "extra_of"]
