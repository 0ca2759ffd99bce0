"""The identity of stored bytes: all that must match for two engines to read each other's KV."""

from collections.abc import Mapping
from hashlib import sha256

import msgspec

from flexkv_core.errors import ConfigError
from flexkv_core.excerpt import clipped, excerpt

__all__ = ["Namespace", "canonical_dtype", "settings_digest"]

_DTYPE_ALIASES: Mapping[str, str] = {
    "half": "float16",
    "fp16": "float16",
    "bf16": "bfloat16",
    "float": "float32",
    "fp32": "float32",
    "fp8": "fp8_e4m3",
    "float8_e4m3fn": "fp8_e4m3",
    "float8_e5m2": "fp8_e5m2",
}
_NOT_A_FORMAT = frozenset({"", "auto", "none", "int8", "uint8"})


class Namespace(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
    tag_field="schema_version",
    tag=1,
):
    """Everything but the tokens that decides which bytes a block holds, and in which layout.

    Append-only. The default of a new field means what was true before the field existed: defaults
    are left out of the digest, so blocks stored earlier stay findable. Changing the meaning of a
    field needs a new `tag`. The original fields have no default: an adapter cannot forget one.
    """

    model: str
    """Digest of its files, or the name that the user trusts: `identity.identification`."""

    weight_version: str
    """The user's name for the weights, "" if there is none."""

    weight_quantization: str
    """The method's name as the engine spells it, "" for none."""

    kv_cache_dtype: str
    """`canonical_dtype` of a KV element."""

    kv_scales: str
    """Digest of the fixed k/v scales, "" if the dtype has none. Scales that are computed at run
    time belong to no namespace."""

    overrides: str
    """`settings_digest` of what the engine overrides in the model's own config: RoPE, sliding
    window and so on; "" for nothing."""

    num_layers: int
    """Layers of the whole model whose KV is stored, without draft layers."""

    num_kv_heads: int
    """KV heads of the whole model; 1 for MLA."""

    key_head_size: int
    """Elements of one key head; of the whole latent for MLA."""

    value_head_size: int
    """Elements of one value head; 0 for MLA."""

    draft_model: str
    """Like `model`, for the draft model whose layers are stored too; "" if there is none."""

    num_draft_layers: int

    block_tokens: int

    block_format: str
    """Name of the byte order within a block: "cells", or an engine's native one."""

    block_format_version: int

    cell_heads: int
    """KV heads in one cell."""

    cell_layers: int
    """Layers in one cell."""

    user: str
    """The user's own keyspace, "" if there is none."""

    cache_group: str = ""
    """Which part of the model's state a block holds: "" for the KV of full attention, "offload" for
    a row of vLLM's own offloading, which may be any part, "windows-kept-whole" for KV of all tokens
    though some layers see a window, otherwise the engine's name for a state kept beside the KV,
    such as "mamba"."""

    @property
    def without_content(self) -> "Namespace":
        """The part that is known before any file is read; no block is stored under it."""
        return msgspec.structs.replace(self, model="", kv_scales="", overrides="", draft_model="")

    @property
    def digest(self) -> bytes:
        """Return 32 bytes that are equal if and only if all fields are; in every stored key."""
        return sha256(b"flexkv-namespace:" + msgspec.json.encode(self, order="sorted")).digest()

    @property
    def short(self) -> str:
        """Return 16 hex digits of the digest, for folder names and logs."""
        return self.digest.hex()[:16]


def canonical_dtype(name: str) -> str:
    """Return the one name of an element type that engines and torch spell differently.

    Args:
        name: As an engine's option or `str(torch.dtype)` spells it.

    Raises:
        ConfigError: The name does not say how to interpret a byte, such as "auto".
    """
    plain = name.lower().removeprefix("torch.")
    if plain in _NOT_A_FORMAT:
        msg = (
            f"KV cache dtype {name!r} does not say what the bytes mean, expected a format such as "
            "'bfloat16' or 'fp8_e4m3'; set the engine's --kv-cache-dtype"
        )
        raise ConfigError(msg)
    return _DTYPE_ALIASES.get(plain, plain)


def settings_digest(settings: Mapping[str, object]) -> str:
    """Return 64 hex digits that identify JSON-like settings, "" for an empty mapping.

    Raises:
        ConfigError: A value has no JSON form: its identity would be a guess.
    """
    if not settings:
        return ""
    try:
        text = msgspec.json.encode(settings, order="sorted")
    except (TypeError, ValueError, RecursionError) as error:  # UnicodeEncodeError is a ValueError
        reason = f"cannot be compared: expected JSON values, but {clipped(str(error))}"
        msg = f"model overrides {excerpt(settings)} {reason}"
        raise ConfigError(msg) from error
    return sha256(text).hexdigest()
