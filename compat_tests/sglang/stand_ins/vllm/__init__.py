"""Stands in for vLLM, whose rotary embedding SGLang imports and never calls on a CPU."""
