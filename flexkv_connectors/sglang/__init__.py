"""FlexKV behind SGLang's HiCache: `--hicache-storage-backend dynamic`, see the README."""
