"""The kernel compiles for real GPUs on any machine: the interpreter accepts more than that."""

import itertools
import json
import os
import subprocess
import sys

import pytest

CAPABILITIES = [80, 90, 100]
# Bytes of a word, and words that a thread may move at once: all that the launcher may ask for.
WORDS = [(1, 1), (2, 1), (4, 1), (8, 1), (8, 2)]
VARIANTS = list(itertools.product(CAPABILITIES, WORDS))

# A fresh interpreter: here, the functions may already be wrapped for Triton's interpreter.
PROGRAM = """
import json, sys
from flexkv_kernels._jit.copy_pages import copy_pages_kernel as kernel
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

def ptx(capability, word, unit_words):
    signature = dict.fromkeys(kernel.arg_names, "i32")
    tables = ("source_slabs", "source_pages", "target_slabs", "target_pages")
    signature |= dict.fromkeys(tables, "*i64")
    signature |= dict.fromkeys(("source", "target"), f"*i{8 * word}")
    # Strides beyond 2 GiB of words arrive as 64-bit integers.
    signature |= {"source_head_stride": "i64", "unit_words": "constexpr", "tile": "constexpr"}
    bases = [kernel.arg_names.index(name) for name in ("source", "target")]
    source = ASTSource(
        kernel,
        signature,
        constexprs={"unit_words": unit_words, "tile": 1024},
        attrs={(base,): [["tt.divisibility", 16]] for base in bases},  # what torch's tensors have
    )
    return triton.compile(source, target=GPUTarget("cuda", capability, 32)).asm["ptx"]

print(json.dumps([ptx(capability, *words) for capability, words in json.loads(sys.argv[1])]))
"""

LOOSE = """
from flexkv_kernels._jit.copy_pages import copy_pages_kernel as kernel

for place in kernel.params:
    if place.do_not_specialize or place.do_not_specialize_on_alignment:
        print(place.name)
"""


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Return the assembly of every variant."""
    cache = str(tmp_path_factory.mktemp("triton"))
    output = run(PROGRAM, json.dumps(VARIANTS), TRITON_CACHE_DIR=cache)
    return dict(zip(VARIANTS, json.loads(output), strict=True))


def run(program, *arguments, **variables):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-c", program, *arguments],
        env=environment | variables,
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_the_number_of_pages_never_asks_for_another_kernel():
    per_call = {"source_slabs", "source_pages", "target_slabs", "target_pages", "num_jobs"}
    assert set(run(LOOSE).split()) == per_call


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_the_kernel_compiles_for_words_of_any_size(compiled, variant):
    assert "ld.global" in compiled[variant]
    assert "st.global" in compiled[variant]


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_aligned_pages_move_sixteen_bytes_at_a_time(compiled, capability):
    ptx = compiled[capability, (8, 2)]
    assert "ld.global.v2.b64" in ptx
    assert "st.global.v2.b64" in ptx


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_pages_of_unknown_alignment_do_not(compiled, capability):
    assert "global.v2" not in compiled[capability, (8, 1)]
