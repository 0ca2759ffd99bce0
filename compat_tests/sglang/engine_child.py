"""One real SGLang engine in this process, driven by commands of `SglangProcess`.

Reads one JSON object a line, {"call": method of `Engine`, "with": arguments}, and answers each with
the result.
"""

import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

IDLE_LIMIT_S = 30.0


class Engine:
    """The commands. Arguments and results are JSON; token ids are lists of int."""

    def __init__(self, **arguments: Any) -> None:
        import sglang

        self._engine = sglang.Engine(**arguments)

    def complete(self, prompt: list[int], max_tokens: int, **more: Any) -> dict[str, Any]:
        """Serve one request, greedily; it is never ended by a token.

        Args:
            prompt: Token ids.
            max_tokens: Tokens to generate.
            more: Of SGLang's own request, which knows more than `sglang.Engine.generate` takes.
        """
        from sglang.srt.managers.io_struct import GenerateReqInput

        request = GenerateReqInput(
            input_ids=prompt,
            sampling_params={"temperature": 0, "max_new_tokens": max_tokens, "ignore_eos": True},
            **more,
        )
        begin_s = time.perf_counter()
        answers = self._engine.tokenizer_manager.generate_request(request, None)
        answer = self._engine.loop.run_until_complete(anext(answers))
        about = answer["meta_info"]
        return {
            "tokens": answer["output_ids"],
            "num_cached_tokens": about["cached_tokens"],
            "sources": about.get("cached_tokens_details") or {},
            "prompt_logprobs": [value for value, *_ in about.get("input_token_logprobs") or ()],
            "seconds": time.perf_counter() - begin_s,
        }

    def complete_with_noise(self, prompt: list[int], max_tokens: int, position: int) -> None:
        """Serve a request that has an embedding of its own for one token."""
        import torch
        from sglang.srt.managers.embed_types import PositionalEmbeds

        config = self._engine.tokenizer_manager.model_config
        noise = PositionalEmbeds(torch.ones(1, config.hidden_size), [position])
        self.complete(prompt, max_tokens, positional_embed_overrides=noise)

    def update_weights(self, model: str) -> bool:
        """Serve the weights of another folder from here on."""
        return self._engine.update_weights_from_disk(model)[0]

    def begin_weight_update(self) -> None:
        """Let others write into the weights from here on."""
        self._engine.begin_weight_update()

    def end_weight_update(self) -> None:
        """Serve what others have written."""
        self._engine.end_weight_update()

    def double_weights(self, changed: str) -> None:
        """Write into the weights as others do, and tell nobody; see `page_probe`."""
        self._engine.collective_rpc("double_weights", changed=changed)

    def load_adapter(self, name: str, path: str) -> None:
        """Load a LoRA adapter."""
        self._engine.load_lora_adapter(name, path)

    def unload_adapter(self, name: str) -> None:
        """Unload a LoRA adapter."""
        self._engine.unload_lora_adapter(name)

    def write_kv(self, prompt: list[int], path: str) -> None:
        """Write what SGLang's own pages hold of a prompt to a file; see `page_probe`."""
        self._engine.collective_rpc("write_kv", tokens=prompt, path=path)

    def flush(self) -> None:
        """Drop SGLang's own caches, of device and host; the storage remembers."""
        assert _until_idle(self._engine.flush_cache), "SGLang was never idle"

    def attach(self, storage: str) -> bool:
        """Attach a storage, as an operator would by HTTP; `storage` is its extra config."""
        return self._manage("attach_hicache_storage", "dynamic", storage)

    def detach(self) -> bool:
        """Detach the storage."""
        return self._manage("detach_hicache_storage")

    def clear(self) -> bool:
        """Empty the storage."""
        return self._manage("clear_hicache_storage")

    def _manage(self, call: str, *arguments: str) -> bool:
        manage = getattr(self._engine.tokenizer_manager, call)
        return _until_idle(lambda: self._engine.loop.run_until_complete(manage(*arguments)))

    def metrics(self) -> dict[str, float]:
        """Add up the metrics of all of SGLang's processes, as its HTTP server would."""
        from prometheus_client import CollectorRegistry, multiprocess

        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry)
        found: Counter[str] = Counter()
        for family in registry.collect():
            for sample in family.samples:
                found[sample.name] += sample.value
        return dict(found)


def _until_idle(ask: Callable[[], Any]) -> bool:
    """Ask until it is done: SGLang refuses while it is not idle, as right behind an answer."""
    end_s = time.monotonic() + IDLE_LIMIT_S
    while time.monotonic() < end_s:
        if ask().success:
            return True
    return False


def main() -> None:
    """Serve commands until the other side closes the pipe. The first one starts the engine."""
    with os.fdopen(int(sys.argv[1])) as lines, os.fdopen(int(sys.argv[2]), "w") as answers:
        commands = map(json.loads, lines)
        engine = Engine(**next(commands)["with"])
        print("null", file=answers, flush=True)
        for command in commands:
            result = getattr(engine, command["call"])(**command["with"])
            print(json.dumps(result), file=answers, flush=True)
    engine._engine.shutdown()


if __name__ == "__main__":
    main()
