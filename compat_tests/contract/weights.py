"""Whether every call by which SGLang changes its weights is one that we listen to."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from flexkv_connectors.sglang.weight_updates import OWNER, UPDATES, unknown_in

__all__ = ["troubles"]

SCHEDULER = "sglang/srt/managers/scheduler.py"
UPDATER = "weight_updater."
HARMLESS = frozenset(
    {
        "abort_request",
        "add_external_corpus",
        "attach_hicache_storage_wrapped",
        "clear_hicache_storage_wrapped",
        "close_session",
        "configure_logging",
        "continue_generation",
        "detach_hicache_storage_wrapped",
        "expert_distribution_handle",  # counts how experts are used; those that move keep values
        "flush_wrapper.handle",
        "get_hicache_l3_cache_layout",
        "get_internal_state",
        "handle_batch_embedding_request",
        "handle_batch_generate_request",
        "handle_dumper_control",
        "handle_embedding_request",
        "handle_freeze_gc",
        "handle_generate_request",
        "handle_pd_role_switch",
        "handle_rpc_request",  # of a method that one names: `save_remote_model` and its like
        "handle_scale_elastic_ep",  # experts are read again, from the same files
        "handle_shutdown",
        "handle_update_weight_version",  # a name to report, no weights
        "init_weights_send_group_for_remote_instance",
        "list_external_corpora",
        "load_lora_adapter",  # keys have an id of the adapter, a new one for each time it is loaded
        "load_lora_adapter_from_tensors",
        "open_session",
        "pause_generation",
        "profiler_manager._profile",
        "remove_external_corpus",
        "send_weights_to_remote_instance",
        "set_internal_state",
        "slow_down",
        "unload_lora_adapter",
    }
)
"""What the scheduler does for requests that leave the model's weights as they are."""


def troubles(folder: Path) -> list[str]:
    """Say what may change weights without notice.

    Args:
        folder: Holds the engine's package.
    """
    module, _, name = OWNER.rpartition(".")
    found = _class(folder / f"{module.replace('.', '/')}.py", name)
    scheduler = _class(folder / SCHEDULER, "Scheduler")
    if found is None or scheduler is None:
        return [f"there is no {OWNER if found is None else 'Scheduler'}"]
    methods = {node.name for node in found.body if isinstance(node, ast.FunctionDef)}
    handlers = set(_handlers(scheduler))
    others = {one for one in handlers if not one.startswith(UPDATER)}
    return [
        *(f"{name} has no {one}" for one in sorted(UPDATES - methods)),
        *(f"{name}.{one} may change weights, and is not known" for one in unknown_in(methods)),
        *(
            f"the scheduler's {one} may change weights, and is not known"
            for one in sorted(others - HARMLESS)
        ),
        *(["what the scheduler does for requests is not found"] if not handlers else []),
    ]


def _class(path: Path, name: str) -> ast.ClassDef | None:
    body = ast.parse(path.read_text()).body if path.is_file() else []
    classes = (node for node in body if isinstance(node, ast.ClassDef) and node.name == name)
    return next(classes, None)


def _handlers(scheduler: ast.ClassDef) -> Iterator[str]:
    """Yield the scheduler's methods for requests."""
    for node in ast.walk(scheduler):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "TypeBasedDispatcher":
            pairs = (pair for pair in ast.walk(node.args[0]) if isinstance(pair, ast.Tuple))
            for pair in pairs:
                yield from re.findall(r"\bself\.([\w.]+)", ast.unparse(pair.elts[1]))
