"""Kernels that move KV pages of any layout into packed cells and back. Imports torch and triton."""

from flexkv_kernels.gather_pages import gather_pages, gather_pages_torch
from flexkv_kernels.scatter_pages import scatter_pages, scatter_pages_torch

__all__ = ["gather_pages", "gather_pages_torch", "scatter_pages", "scatter_pages_torch"]
