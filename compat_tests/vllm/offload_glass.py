"""The connector below vLLM's offloading, with a look inside, for engines of the tests."""

from flexkv_connectors.vllm.offloading.connector import FlexKVOffloadingConnector

__all__ = ["OffloadGlassConnector"]


class OffloadGlassConnector(FlexKVOffloadingConnector):
    """What tests ask of the scheduler's side."""

    def engine_id(self) -> str:
        """Return what the region of this engine is called after."""
        return str(self._engine.vllm_config.kv_transfer_config.engine_id)

    def wait_open(self) -> None:
        """Wait until the model is known, and what earlier engines left is found."""
        for tier in self.connector_scheduler.manager.secondary_tiers:
            tier._stores._identification.join()
            tier._store.wait_restored()

    def forget_rows(self) -> None:
        """Drop what the host tier holds; no request may be running."""
        self.connector_scheduler.manager.primary_tier.reset_cache()
