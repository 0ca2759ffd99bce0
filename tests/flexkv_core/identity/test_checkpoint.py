import json
from pathlib import Path

import pytest

from flexkv_core.identity.checkpoint import (
    Checkpoint,
    adapter_files,
    find_checkpoint,
    model_files,
    why_elsewhere,
)

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NO_HUB = Path("/no/hub")


def fill(folder, *names):
    """Make files whose content is their name."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return folder


def write_index(folder, *names, name="model.safetensors.index.json"):
    weights = {f"layers.{number}": file for number, file in enumerate(names)}
    (folder / name).write_text(json.dumps({"weight_map": weights}))


@pytest.fixture
def folder(tmp_path):
    """A model of two safetensors files."""
    return fill(tmp_path / "model", "config.json", "model-1.safetensors", "model-2.safetensors")


def chosen(folder, load_format="auto", *, weights=True):
    files = model_files(folder, load_format, weights=weights)
    assert files == sorted(files)
    return {path.relative_to(folder).as_posix() for path in files}


def adds(folder, name, load_format="auto"):
    """Tell whether a file of that name counts, and that it changes nothing for the others."""
    before = chosen(folder, load_format)
    fill(folder, name)
    after = chosen(folder, load_format)
    assert before <= after <= before | {name}
    return name in after


@pytest.mark.parametrize(
    "name",
    [
        "hf_quant_config.json",
        "params.json",
        "processor_config.json",
        "preprocessor_config.json",
        "video_preprocessor_config.json",
        "quantize_config.json",
        "sparse_attention_config.json",
        "adapter_config.json",
        "modeling_custom.py",
        "layers/attention/kernels.py",
        "extra.safetensors",
        "whisper-large-v3/model.safetensors",
        "mask_embedding.pt",
    ],
)
def test_what_decides_the_kv_counts(folder, name):
    assert adds(folder, name)


@pytest.mark.parametrize(
    "name",
    [
        "README.md",
        "LICENSE",
        "chat_template.jinja",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
        "model.gguf",
        "optimizer.pt",
        "original/consolidated.safetensors",
        "onnx/model.safetensors",
        "checkpoint-500/model.safetensors",
        ".git/hooks/hook.py",
        ".cache/model.safetensors",
        "._model-1.safetensors",
        "tokenizer/config.json",
    ],
)
def test_what_does_not_decide_the_kv_does_not_count(folder, name):
    assert not adds(folder, name)


def test_a_weight_that_the_index_does_not_name_does_not_count(folder):
    write_index(folder, "model-1.safetensors", "model-2.safetensors")

    assert "model.safetensors.index.json" in chosen(folder)
    assert not adds(folder, "extra.safetensors")


@pytest.mark.parametrize("name", ["consolidated.safetensors", "mtp.safetensors"])
def test_what_one_engine_reads_beside_the_index_counts(folder, name):
    write_index(folder, "model-1.safetensors", "model-2.safetensors")

    assert adds(folder, name)


@pytest.mark.parametrize("content", ["[]", "{}", "not json", '{"weight_map": 7}', "[" * 100_000])
def test_with_an_index_that_names_nothing_all_weights_count(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)

    assert adds(folder, "extra.safetensors")


def test_an_index_leads_nowhere_else(folder):
    write_index(folder, "../other/model.safetensors", "/etc/passwd", "model-1.safetensors")

    assert chosen(folder) == {"config.json", "model-1.safetensors", "model.safetensors.index.json"}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.bin", "b.bin", "a.bin.index.json", "c.pt"], {"a.bin", "b.bin", "a.bin.index.json"}),
        (["training_args.bin", "c.pt", "d.pth"], {"c.pt"}),
        (["d.pth", "rng_state.txt"], {"d.pth"}),
        (["e.gguf"], {"e.gguf"}),
    ],
)
def test_without_safetensors_the_next_format_is_read(tmp_path, names, expected):
    assert chosen(fill(tmp_path, *names)) == expected


@pytest.mark.parametrize(
    ("load_format", "expected"),
    [
        ("auto", {"consolidated.safetensors", "model.safetensors", "w.pt"}),
        ("safetensors", {"consolidated.safetensors", "model.safetensors", "w.pt"}),
        ("mistral", {"consolidated.safetensors"}),
        ("pt", {"w.pt"}),
        ("gguf", {"w.gguf"}),
    ],
)
def test_a_load_format_has_its_own_choice(tmp_path, load_format, expected):
    fill(tmp_path, "consolidated.safetensors", "model.safetensors", "w.pt", "w.bin", "w.gguf")

    assert chosen(tmp_path, load_format) == expected


def test_a_model_whose_weights_are_all_in_subfolders_is_found(tmp_path):
    fill(tmp_path, "transformer/w.safetensors", "transformer/config.json", "scheduler/config.json")

    assert chosen(tmp_path) == {"transformer/w.safetensors", "transformer/config.json"}


def test_without_weights_configuration_and_code_alone_count(folder):
    fill(folder, "code/model.py")

    assert chosen(folder, "whatever", weights=False) == {"config.json", "code/model.py"}


def test_a_model_without_weights_is_an_error(tmp_path):
    fill(tmp_path, "config.json")

    with pytest.raises(FileNotFoundError, match=f"there are no weight files in {tmp_path}"):
        model_files(tmp_path, "auto", weights=True)


def test_links_to_folders_are_followed_but_not_in_circles(folder):
    shared = fill(folder.parent / "shared", "layer.py")
    (folder / "v1.5").symlink_to(shared)
    (shared / "back").symlink_to(folder)
    (shared / "itself").symlink_to(shared)

    assert chosen(folder) >= {"config.json", "v1.5/layer.py"}
    assert len(chosen(folder)) == 4


def test_a_single_file_is_a_model(tmp_path):
    fill(tmp_path, "model.gguf", "other.gguf", "config.json")

    assert model_files(tmp_path / "model.gguf", "auto", weights=True) == [tmp_path / "model.gguf"]
    assert model_files(tmp_path / "model.gguf", "auto", weights=False) == []


def test_a_single_file_that_is_one_of_many_stands_for_all_of_them(tmp_path):
    shards = [f"m-0000{number}-of-00002.gguf" for number in (1, 2)]
    fill(tmp_path, *shards, "m-00001-of-00003.gguf", "n-00002-of-00002.gguf")

    for name in shards:
        files = model_files(tmp_path / name, "gguf", weights=True)
        assert files == [tmp_path / shard for shard in shards]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["adapter_model.safetensors", "adapter_model.bin"], {"adapter_model.safetensors"}),
        # SGLang reads every safetensors file, vLLM only those called adapter_model.
        (["lora.safetensors", "adapter_model.bin"], {"lora.safetensors", "adapter_model.bin"}),
        (["adapter_model.pt"], {"adapter_model.pt"}),
        (["adapter_model.bin", "new_embeddings.bin"], {"adapter_model.bin", "new_embeddings.bin"}),
        (["added_tokens.json", "README.md", "config.json", "code.py"], {"added_tokens.json"}),
        (["optimizer.pt", "sub/adapter_model.bin"], set()),
    ],
)
def test_what_an_adapter_is(tmp_path, names, expected):
    fill(tmp_path, "adapter_config.json", *names)

    files = adapter_files(tmp_path)
    assert files == sorted(files)
    assert {path.name for path in files} == expected | {"adapter_config.json"}


def test_a_missing_adapter_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        adapter_files(tmp_path / "missing")


def elsewhere(folder, **changes):
    return why_elsewhere(folder, Checkpoint(model=str(folder), hub_cache=folder, **changes))


def test_code_from_another_repository_lies_elsewhere(folder):
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "modeling_x.XModel"}}')
    assert elsewhere(folder) is None

    (folder / "config.json").write_text(
        '{"auto_map": {"AutoModel": ["org/x--modeling_x.X", null]}}'
    )
    assert elsewhere(folder) == (
        "config.json takes the model's code from another repository: put it beside the model, or "
        "set weight_version and trust_weight_version"
    )


@pytest.mark.parametrize("changes", [{"runs_code": False}, {"weights": False}], ids=str)
def test_code_that_is_not_run_or_that_the_user_names_lies_nowhere(folder, changes):
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "org/x--modeling_x.X"}}')
    assert elsewhere(folder, **changes) is None


@pytest.mark.parametrize("kind", ["AutoTokenizer", "AutoImageProcessor", "AutoFeatureExtractor"])
def test_code_that_makes_tokens_may_lie_elsewhere(folder, kind):
    config = {"auto_map": {kind: ["org/x--t.T", None]}}
    (folder / "config.json").write_text(json.dumps(config))
    assert elsewhere(folder) is None


def test_weights_from_another_repository_lie_elsewhere(folder):
    (folder / "config.json").write_text('{"text_model_id": null}')
    assert elsewhere(folder) is None

    (folder / "config.json").write_text('{"text_model_id": "org/llm"}')
    assert elsewhere(folder) == (
        "config.json takes weights from another repository: set weight_version and "
        "trust_weight_version"
    )
    assert elsewhere(folder, weights=False) is None


def test_a_load_format_that_reads_something_else_is_named(folder):
    assert elsewhere(folder, load_format="npcache", weights=False) is None
    assert elsewhere(folder, load_format="npcache") == (
        "load_format=npcache does not say which weights are read: set weight_version"
    )


def test_a_configuration_with_a_number_that_only_python_reads_is_read(folder):
    (folder / "config.json").write_text('{"limit": Infinity, "auto_map": {"A": "o/r--m.C"}}')

    assert elsewhere(folder) is not None


def test_a_hub_id_is_where_its_client_last_saw_it(tmp_path):
    snapshot = fill(tmp_path / "models--org--model" / "snapshots" / COMMIT, "config.json")
    (tmp_path / "models--org--model" / "refs").mkdir()
    (tmp_path / "models--org--model" / "refs" / "main").write_text(COMMIT)

    assert find_checkpoint("org/model", hub_cache=tmp_path) == snapshot
    assert find_checkpoint("org/model", "main", hub_cache=tmp_path) == snapshot
    assert find_checkpoint("org/model", COMMIT, hub_cache=tmp_path) == snapshot
    assert find_checkpoint("org/model", "v2", hub_cache=tmp_path) is None
    assert find_checkpoint("org/model", "f" * 40, hub_cache=tmp_path) is None
    assert find_checkpoint("org/model", hub_cache=NO_HUB) is None


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere"])
def test_a_broken_reference_leads_nowhere(tmp_path, content):
    (tmp_path / "models--org--model" / "refs").mkdir(parents=True)
    (tmp_path / "models--org--model" / "refs" / "main").write_bytes(content)

    assert find_checkpoint("org/model", hub_cache=tmp_path) is None


def test_a_local_path_is_where_it_says(folder):
    assert find_checkpoint(str(folder), hub_cache=NO_HUB) == folder
    assert find_checkpoint(str(folder / "missing"), hub_cache=NO_HUB) is None
