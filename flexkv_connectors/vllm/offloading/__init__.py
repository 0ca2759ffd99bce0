"""FlexKV below vLLM's own offloading, which moves KV of every kind between a GPU and host memory.

vLLM asks for *rows* of its host region: one row is what all ranks keep of one run of tokens in one
cache group. Each stands alone, under vLLM's key for it.
"""
