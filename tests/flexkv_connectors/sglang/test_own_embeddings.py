from types import SimpleNamespace

import pytest

from flexkv_connectors.sglang.own_embeddings import keep_apart


@pytest.mark.parametrize(("embeddings", "is_skipped"), [(None, False), (object(), True)])
def test_only_a_request_with_embeddings_of_its_own_is_not_kept(embeddings, is_skipped):
    request = SimpleNamespace(positional_embed_overrides=embeddings, skip_radix_cache_insert=False)
    keep_apart(None, request)
    assert request.skip_radix_cache_insert == is_skipped
