"""The kernel compiles for real GPUs on any machine: the interpreter accepts more than that."""

import os
import subprocess
import sys

import pytest

# A fresh interpreter: here, the functions may already be wrapped for Triton's interpreter.
PROGRAM = """
import sys
from flexkv_kernels._jit.copy_pages import copy_pages_kernel as kernel
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

capability, word, unit_words = (int(argument) for argument in sys.argv[1:])
signature = dict.fromkeys(kernel.arg_names, "i32")
tables = ("source_slabs", "source_pages", "target_slabs", "target_pages")
signature |= dict.fromkeys(("source", "target"), f"*i{8 * word}") | dict.fromkeys(tables, "*i64")
# Strides beyond 2 GiB of words arrive as 64-bit integers.
signature |= {"source_head_stride": "i64", "unit_words": "constexpr", "tile": "constexpr"}
bases = [kernel.arg_names.index(name) for name in ("source", "target")]
source = ASTSource(
    kernel,
    signature,
    constexprs={"unit_words": unit_words, "tile": 1024},
    attrs={(base,): [["tt.divisibility", 16]] for base in bases},  # what torch's tensors have
)
print(triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"])
"""


def ptx_of(folder, *arguments):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *map(str, arguments)],
        env={**environment, "TRITON_CACHE_DIR": str(folder)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("word", [1, 2, 4, 8])
def test_the_kernel_compiles_for_words_of_any_size(word, capability, tmp_path):
    ptx = ptx_of(tmp_path, capability, word, 1)
    assert "ld.global" in ptx
    assert "st.global" in ptx


@pytest.mark.parametrize("capability", [80, 90])
def test_aligned_pages_move_sixteen_bytes_at_a_time(capability, tmp_path):
    ptx = ptx_of(tmp_path, capability, 8, 2)
    assert "ld.global.v2.b64" in ptx
    assert "st.global.v2.b64" in ptx


def test_pages_of_unknown_alignment_do_not(tmp_path):
    assert "global.v2" not in ptx_of(tmp_path, 90, 8, 1)
