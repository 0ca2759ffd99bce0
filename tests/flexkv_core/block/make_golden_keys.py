"""Print `golden_keys.json`: key vectors from an implementation that shares nothing with ours.

It is written for reading, not for speed, from the description of the keys: text keys and the salt
seed after SGLang 0.5.23 (`get_hash_str`, `storage_namespace_seed`), the tagged messages after
`flexkv_core/block/keys.py`. The text vectors were compared once with SGLang's own compiled hasher.

    python tests/flexkv_core/block/make_golden_keys.py > tests/flexkv_core/block/golden_keys.json
"""

import hashlib
import json
import sys


def digest(message: bytes) -> bytes:
    return hashlib.sha256(message).digest()


def u32(tokens: list[int]) -> bytes:
    return b"".join(token.to_bytes(4, "little") for token in tokens)


def u64(number: int) -> bytes:
    return number.to_bytes(8, "little")


def tagged(domain: bytes, fields: list[tuple[bytes, bytes]]) -> bytes:
    message = domain
    for name, value in fields:
        message += u64(len(name)) + u64(len(value)) + name + value
    while len(message) % 4 != 2:
        message += b"\0"
    return digest(message)


def sglang_salt_seed(salt: str) -> bytes:
    encoded = salt.encode()
    return digest(b"sglang-cache-namespace-v1" + b"\0" + b"\1" + u64(len(encoded)) + encoded)


def seed_of(salt: str | None, adapter: bytes | None, namespace: str | None) -> bytes | None:
    if adapter is None and namespace is None:
        return None if salt is None else sglang_salt_seed(salt)
    fields = []
    if adapter is not None:
        fields.append((b"adapter", adapter))
    if salt is not None:
        fields.append((b"salt", salt.encode()))
    if namespace is not None:
        fields.append((b"namespace", namespace.encode()))
    return tagged(b"flexkv-seed-v1", fields)


def chain(
    tokens: list[int], block_tokens: int, seed: bytes | None, media: list[tuple[int, int, str]]
) -> list[str]:
    keys = []
    parent = seed or b""
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        page = u32(tokens[start : start + block_tokens])
        items = [
            (b"media", (offset - start).to_bytes(8, "little", signed=True) + u64(length) + name)
            for offset, length, name in ((o, n, i.encode()) for o, n, i in media)
            if offset < start + block_tokens and start < offset + length
        ]
        if items:
            fields = [(b"parent", parent), (b"tokens", page), *items]
            parent = tagged(b"flexkv-media-block-v1", fields)
        else:
            parent = digest(parent + page)
        keys.append(parent.hex())
    return keys


def vector(
    name: str,
    tokens: list[int],
    block_tokens: int,
    *,
    salt: str | None = None,
    adapter: bytes | None = None,
    namespace: str | None = None,
    media: list[tuple[int, int, str]] | None = None,
) -> dict[str, object]:
    seed = seed_of(salt, adapter, namespace)
    return {
        "name": name,
        "tokens": tokens,
        "block_tokens": block_tokens,
        "cache_salt": salt,
        "adapter": None if adapter is None else adapter.hex(),
        "request_namespace": namespace,
        "media": media or [],
        "seed": None if seed is None else seed.hex(),
        "keys": chain(tokens, block_tokens, seed, media or []),
    }


def main() -> None:
    text = [(7919 * i + 13) % 151_936 for i in range(150)]
    image = [(3, 20, "a" * 64), (30, 4, "video-ü"), (33, 1, "b" * 64)]
    vectors = [
        vector("plain text", text, 64),
        vector("blocks of one token", [0, 1, 2**32 - 1], 1),
        vector("salt alone is SGLang's seed", text, 16, salt="tenant-ü"),
        vector("the empty salt is a salt", text[:32], 16, salt=""),
        vector("adapter", text[:32], 16, adapter=digest(b"adapter")),
        vector("request namespace", text[:32], 16, namespace="tenant-ü"),
        vector("all seeds", text[:32], 16, salt="s", adapter=digest(b"adapter"), namespace="n"),
        vector("media", text[:64], 16, media=image),
        vector("media after a salt", text[:64], 16, salt="s", media=image),
    ]
    sys.stdout.write("[\n" + ",\n".join(json.dumps(one) for one in vectors) + "\n]\n")


if __name__ == "__main__":
    main()
