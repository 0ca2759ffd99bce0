"""One kernel that copies KV pages from any layout into any other. Imports torch and triton."""

from flexkv_kernels.copy_pages import copy_pages, copy_pages_torch
from flexkv_kernels.page_views import PageViews

__all__ = ["PageViews", "copy_pages", "copy_pages_torch"]
