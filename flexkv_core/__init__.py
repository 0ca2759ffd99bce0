"""A tiered cache for the KV of large language models, independent of any engine.

Import from the modules: `control` decides what moves, `data` moves it, `plan` defines the messages
between them, `block_store` serves engines that own their host memory, and `testing` holds the
contracts that a new tier, lane or policy has to keep. This package itself loads none of them.
"""
