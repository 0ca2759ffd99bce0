"""SGLang's flag `--enable-flexkv` needs FlexKV's own package: whoever has ours is told our flags.

We do not stand in for it: SGLang passes that package neither salts nor adapters, so one tenant's
prompts would hit another's.
"""

from flexkv_connectors import upstream_package
from flexkv_connectors.fault_barrier import refusals_in_one_line
from flexkv_core.errors import ConfigError

__all__ = ["FACTORY", "name_our_flags"]

FACTORY = "sglang.srt.mem_cache.storage.flexkv._flexkv_factory"
"""What SGLang calls for that flag and nothing else."""

_REFUSAL = (
    "--enable-flexkv needs the package flexkv, which is not installed: for FlexKV Connectors, say "
    "instead --enable-hierarchical-cache --hicache-storage-backend dynamic "
    "--hicache-storage-backend-extra-config '"
    '{"backend_name":"flexkv","module_path":"flexkv_connectors.sglang.storage",'
    '"class_name":"FlexKVHiCacheStorage","interface_v1":1,'
    '"hicache_storage_pass_prefix_keys":true,"ssd_cache_gb":500,"ssd_cache_dir":"/nvme/flexkv"}'
    "'"
)


def name_our_flags(*_: object, **__: object) -> None:
    """Refuse the flag with ours, where SGLang's own refusal would come next.

    Raises:
        ConfigError: FlexKV's package is not installed.
    """
    if not upstream_package.is_installed():
        with refusals_in_one_line():
            raise ConfigError(_REFUSAL)
