"""One vLLM engine as users run it, driven over a pipe: what `vllm_end_to_end` measures with.

    python benchmarks/vllm_child.py '<arguments of vllm.LLM as JSON>'

Reads one call a line, `["method of Engine", argument, ...]`, and answers with a line of JSON on
what was standard output; everything that vLLM prints goes to standard error.
"""

import json
import os
import sys
import time

from vllm import LLM, RequestOutput, SamplingParams
from vllm.distributed.kv_transfer import get_kv_transfer_group

STEPS_TO_END_SAVES = 20
"""More requests than it takes until a lane has reported what it saves."""


class Engine:
    """The calls. Prompts are lists of token ids."""

    def __init__(self, **engine_args: object) -> None:
        self._llm = LLM(**{"disable_log_stats": False, "enforce_eager": True, **engine_args})

    def first_token(self, prompt: list[int]) -> dict[str, float]:
        """Return the seconds to the first token, as vLLM counts them, and the cached tokens."""
        (output,) = self._generate([prompt], max_tokens=1)
        taken_s = output.metrics.first_token_latency
        return {"s": taken_s, "cached_tokens": output.num_cached_tokens}

    def serve(self, prompts: list[list[int]], max_tokens: int) -> dict[str, float | list[float]]:
        """Return the seconds that all `prompts` take together, and what each of them met."""
        start = time.perf_counter()
        outputs = self._generate(prompts, max_tokens)
        taken_s = time.perf_counter() - start
        return {
            "s": taken_s,
            "first_token_s": [output.metrics.first_token_latency for output in outputs],
            "next_token_s": [
                (output.metrics.last_token_ts - output.metrics.first_token_ts)
                / max(1, max_tokens - 1)
                for output in outputs
            ],
            "cached_tokens": [output.num_cached_tokens for output in outputs],
        }

    def forget(self) -> dict[str, float]:
        """Drop the engine's own prefix cache; the connector's stays."""
        for _ in range(STEPS_TO_END_SAVES):
            if self._llm.reset_prefix_cache():
                return {}
            self._generate([[0]], 1)  # saves that hold pages are reported in a step
        raise AssertionError("vLLM has not dropped its prefix cache")

    def take_steps(self) -> dict[str, list[float]]:
        """Return what `TimedConnector` has measured; only of an engine in a single process."""
        scheduler = self._llm.llm_engine.engine_core.engine_core.scheduler
        halves = {"scheduler": scheduler.connector, "worker": get_kv_transfer_group()}
        return {name: connector.take_steps() for name, connector in halves.items()}

    def _generate(self, prompts: list[list[int]], max_tokens: int) -> list[RequestOutput]:
        params = SamplingParams(
            max_tokens=max_tokens, temperature=0, ignore_eos=True, detokenize=False
        )
        contents = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs: list[RequestOutput] = self._llm.generate(contents, params, use_tqdm=False)
        return outputs


def main() -> None:
    """Serve calls until the other side closes the pipe."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    engine = Engine(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        method, *arguments = json.loads(line)
        answers.write(json.dumps(getattr(engine, method)(*arguments)) + "\n")


if __name__ == "__main__":
    main()
