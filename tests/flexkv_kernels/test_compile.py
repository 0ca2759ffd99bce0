"""The kernels compile for real GPUs on any machine: the interpreter accepts more than that."""

import os
import subprocess
import sys

import pytest

# A fresh interpreter: here, the functions may already be wrapped for Triton's interpreter.
PROGRAM = """
import importlib, sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

name, capability = sys.argv[1], int(sys.argv[2])
kernel = getattr(importlib.import_module(f"flexkv_kernels._jit.{name}"), f"{name}_kernel")
signature = dict.fromkeys(kernel.arg_names, "i32")
signature |= {"pages": "*i64", "cells": "*i64", "page_ids": "*i64", "tile": "constexpr"}
# Strides beyond 2 GiB of words arrive as 64-bit integers.
signature |= {"page_layer_stride": "i64", "page_stride": "i64"}
source = ASTSource(kernel, signature, constexprs={"tile": 1024})
ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]
assert "ld.global" in ptx and "st.global" in ptx
"""


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("name", ["gather_pages", "scatter_pages"])
def test_kernel_compiles(name, capability, tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM, name, str(capability)],
        env={**environment, "TRITON_CACHE_DIR": str(tmp_path)},
        check=True,
    )
