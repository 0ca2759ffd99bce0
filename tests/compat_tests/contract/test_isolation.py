"""Keys that do not tell namespaces apart are found by making them."""

import pytest

from compat_tests.contract.isolation import HOME, troubles

KEYS = """
import hashlib

def get_hash_str(tokens, prior_hash=None, page_size=None):
    return get_native_hash(tokens, bytes.fromhex(prior_hash) if prior_hash else None, page_size)

def storage_namespace_seed(extra_key, cache_salt):
    return hashlib.sha256(repr((extra_key, cache_salt)).encode()).hexdigest()

def get_storage_hash_str(key, prior_hash=None, page_size=None):
    seed = storage_namespace_seed(key.extra_key, key.cache_salt)
    return get_hash_str(key, prior_hash or seed, page_size=page_size)

def compute_node_hash_values(node, page_size):
    return get_storage_hash_str(node.key, None, page_size=page_size)
"""
REQUEST = "class Req:\n    def __init__(self, extra_key, lora_id):\n        extra_key + lora_id\n"


@pytest.fixture
def engine(tmp_path):
    """Return a function from sources to a folder with an engine."""

    def write(keys=KEYS, request=REQUEST, **more):
        files = {HOME: keys, "sglang/srt/managers/schedule_batch.py": request, **more}
        for name, source in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(source)
        return tmp_path

    return write


def test_keys_that_differ_by_everything_are_fine(engine):
    assert troubles(engine()) == []


@pytest.mark.parametrize(
    ("kept", "instead"),
    [
        ("(extra_key, cache_salt)).", "extra_key)."),
        ("(extra_key, cache_salt)).", "cache_salt)."),
        ("(extra_key, cache_salt)).", "(extra_key or '') + (cache_salt or ''))."),
        ("prior_hash or seed", "prior_hash"),
        ("prior_hash or seed", "seed if page_size > 1 else prior_hash"),
    ],
)
def test_namespaces_with_a_key_in_common_are_found(engine, kept, instead):
    assert kept in KEYS
    assert any("has keys of" in line for line in troubles(engine(KEYS.replace(kept, instead))))


def test_keys_of_an_engine_that_knows_no_namespaces_are_found_alike(engine):
    keys = KEYS[: KEYS.index("def storage_namespace_seed")] + (
        "def compute_node_hash_values(node, page_size):\n"
        "    return get_hash_str(node.key, None, page_size=page_size)\n"
    )
    found = troubles(engine(keys))
    assert [line.partition(",")[0] for line in found] == [
        "in pages of 1 tokens",
        "in pages of 64 tokens",
    ]


def test_pages_that_are_stored_by_other_keys_than_searched_by_are_found(engine):
    keys = KEYS.replace("get_storage_hash_str(node.key", "get_hash_str(node.key")
    assert any("to store by" in line for line in troubles(engine(keys)))


def test_a_file_that_makes_keys_of_its_own_is_found(engine):
    name = "sglang/srt/managers/cache_controller.py"
    found = troubles(engine(**{name: "keys = get_hash_str(tokens)\n"}))
    assert found == [f"{name} makes keys without a namespace"]


def test_a_request_without_its_adapter_is_found(engine):
    found = troubles(engine(request="class Req:\n    pass\n"))
    assert found == ["schedule_batch.py does not add the adapter to the extra key"]


def test_an_engine_whose_keys_are_made_elsewhere_is_not_taken_for_fine(engine):
    assert any("how are keys" in line for line in troubles(engine(keys="")))


def test_keys_that_are_made_of_something_else_are_not_taken_for_fine(engine):
    keys = KEYS.replace("key.extra_key", "key.namespace")
    assert any("in a way that is not known" in line for line in troubles(engine(keys)))
