"""A drafter of the user's own, for speculation by `custom_class`."""

from typing import Any


class Repeater:
    """Drafts what was sampled last, twice."""

    def __init__(self, vllm_config: Any) -> None:
        pass

    def load_model(self, target: Any) -> None:
        """There is nothing to load."""

    def propose(self, sampled_token_ids: list[list[int]], *_: Any, **__: Any) -> list[list[int]]:
        """Return the drafts of each request, none for one that has not sampled."""
        return [tokens[-1:] * 2 for tokens in sampled_token_ids]
