"""The path that users import `flexkv_connectors.testing.hicache_storage` by."""

from flexkv_connectors.testing.hicache_storage import (
    GenericStorageCase,
    HiCacheStorageContract,
    StorageCase,
    chain_of,
    extra_of,
)

__all__ = ["GenericStorageCase", "HiCacheStorageContract", "StorageCase", "chain_of", "extra_of"]
