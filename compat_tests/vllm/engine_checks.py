"""What several tests on the real engine ask of it."""

from typing import Any

from engine_process import EngineProcess

SABOTAGED = {"kv_connector": "SabotagedConnector", "kv_connector_module_path": "sabotage"}
"""For engines whose copies are broken on purpose, or whose manager is looked at."""

NO_LOAD = {"flexkv": {"load": False}}
NO_SAVE = {"flexkv": {"save": False}}
"""Values of a request's `kv_transfer_params`."""

PAGE_TOKENS = 128
"""vLLM's block on a CPU."""

PAGE_BYTES = 5 * 2 * PAGE_TOKENS * 128 * 4
"""Of the `oracle` model: 5 layers, 2 KV heads, K and V of 64 float32 each."""


def counts(engine: EngineProcess) -> dict[str, float]:
    """Return the cache's metrics by their names in `flexkv_core.metrics.METRICS`."""
    samples = engine.metrics().items()
    ours = {name.removeprefix("flexkv:"): value for name, value in samples if "flexkv:" in name}
    return {name.removesuffix("_total"): value for name, value in ours.items()}


def external_hit_tokens(engine: EngineProcess) -> float:
    """Return the tokens that vLLM itself has counted as loaded by a connector."""
    return engine.metrics()["vllm:external_prefix_cache_hits_total"]


def break_copies(engine: EngineProcess, **fates: Any) -> None:
    """Decide what happens to copies from now on; see `sabotage.BreakableLane`."""
    engine.worker_connectors("break_copies", **fates)


def assert_nothing_leaked(engine: EngineProcess) -> None:
    """Check that an engine without work holds nothing on either side of the connector."""
    state = engine.state()
    assert state["requests"] == {}
    assert not state["busy"]
    assert state["num_free_blocks"] == state["num_blocks"] - 1, "all but vLLM's null block"
    audit = engine.connector("audit")
    assert audit["off"] == ""
    assert (audit["num_in_flight"], audit["num_claims"], audit["num_states"]) == (0, 0, 0)
    used, free = audit["num_used_blocks"], audit["num_free_blocks"]
    assert used + free == counts(engine)["host_capacity_blocks"]


def assert_reset_gives_everything_back(engine: EngineProcess) -> None:
    """Check that after a reset the whole host tier is free."""
    engine.forget_all()
    audit = engine.connector("audit")
    assert audit["num_used_blocks"] == 0
    assert audit["num_free_blocks"] == counts(engine)["host_capacity_blocks"]
