"""What decides the bytes of blocks: settings, checked at once, and files, which are read later."""

import time

import pytest

from flexkv_core.config import parse_config
from flexkv_core.errors import ConfigError
from flexkv_core.identity import origin
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.origin import UNSEEN_S, Origin, source_of
from flexkv_core.testing.namespaces import make_namespace


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def options(tmp_path, **changes):
    return parse_config({"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path / "ssd")} | changes)


@pytest.fixture
def source(tmp_path):
    """Return a function from a model and options to its source."""

    def run(model, load_format="auto", **changes):
        return source_of(
            str(model),
            None,
            hub_cache=tmp_path / "hub",
            load_format=load_format,
            runs_code=False,
            cache=options(tmp_path, **changes),
        )

    return run


def test_weights_in_files_count_by_their_content(source, model):
    assert source(model).weights
    assert source(model, weight_version="1").weights


@pytest.mark.parametrize(
    "changes", [{"load_format": "dummy"}, {"trust_weight_version": True}], ids=str
)
def test_where_the_user_names_the_weights_only_the_configuration_counts(source, model, changes):
    assert not source(model, weight_version="1", **changes).weights


def test_a_model_without_files_is_the_name_that_the_user_gives_it(source):
    assert not source("owner/name", weight_version="1").weights
    assert source("owner/name").weights


def test_a_setting_without_a_form_is_refused_before_anything_is_read():
    def refuse(_):
        raise ConfigError("no form")

    with pytest.raises(ConfigError, match="no form"):
        Origin({}, refuse)


def test_the_namespace_is_made_from_files_and_names(monkeypatch, tmp_path, model, source):
    monkeypatch.setattr(origin, "engine_start_s", time.time)
    sources = {
        "model": Checkpoint(model=str(model), hub_cache=tmp_path),
        "draft": source("owner/draft", weight_version="1"),
    }
    found = []
    identification = Origin(
        sources, lambda names: make_namespace(model=names["model"], draft_model=names["draft"])
    ).find(options(tmp_path), found.append)
    identification.join()
    (namespace,) = found
    assert namespace.model.startswith("content:")
    assert namespace.draft_model.startswith("named:")


def test_where_nobody_knows_when_the_engine_started_files_have_to_be_older(
    monkeypatch, tmp_path, source, model
):
    monkeypatch.setattr(origin, "engine_start_s", time.time)
    found = []
    for unseen_s in (0.0, UNSEEN_S):
        describe = Origin({"model": source(model)}, lambda _: make_namespace(), unseen_s)
        describe.find(options(tmp_path), found.append).join()
        assert len(found) == 1
