"""One name."""


def rotary_embedding(*args, **kwargs):
    """Refuse."""
    raise RuntimeError("vllm._custom_ops.rotary_embedding is a stand-in")
