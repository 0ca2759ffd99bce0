"""Routers that follow llm-d's rules give our blocks the scores that they are worth."""

import json
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE))

from llmd import Index, RefusedError, block_keys, root_key  # noqa: E402 see above

GOLDEN = json.loads((HERE / "llmd_golden.json").read_text())


def named(golden):
    """Return the parameters of a test: one by one what llm-d has answered."""
    return [pytest.param(one, id=one["name"]) for one in golden]


def tokens_of(golden):
    first, last = golden["prompt"]
    return list(range(first, last + 1))


@pytest.mark.parametrize("chain", named(GOLDEN["chains"]))
def test_keys_are_those_of_llmd(chain):
    parent = chain["parent"] or root_key(chain["model"], chain["seed"])
    keys = block_keys(tokens_of(chain), chain["block"], parent, chain["extra_keys"])
    assert keys == chain["keys"]


@pytest.mark.parametrize("case", named(GOLDEN["cases"]))
def test_scores_are_those_of_llmd(case):
    index = Index(case["block"], weights=case["weights"])
    for frame in case["frames"]:
        payload = bytes.fromhex(frame["payload"])
        if frame["refused"]:
            with pytest.raises(RefusedError):
                index.ingest(frame["topic"], payload)
        else:
            index.ingest(frame["topic"], payload)
    assert index.score(tokens_of(case), case["model"], case["extra_keys"]) == case["scores"]
