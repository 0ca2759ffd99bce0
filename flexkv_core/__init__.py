"""A tiered cache for the KV of large language models; knows no engine.

Import from the modules: `flexkv_core.manager` is the control plane, `flexkv_core.worker` the data
plane, `flexkv_core.plan` what the two say to each other, `flexkv_core.testing` the contracts that
a new tier, lane or policy has to keep. This package itself loads none of them.
"""
