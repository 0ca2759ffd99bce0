import json
import logging
import os
import random
import shutil
import zipfile
from pathlib import Path

import pytest

from flexkv_core.errors import ConfigError
from flexkv_core.model_identity import identify_adapter, identify_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TENSOR_BYTES = 40_000
NO_HUB = Path("/no/hub")


def random_tensors(seed: int) -> dict[str, bytes]:
    source = random.Random(seed)
    return {f"layers.{i}.weight": source.randbytes(TENSOR_BYTES) for i in range(8)}


def write_safetensors(path: Path, tensors: dict[str, bytes]) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, content in tensors.items():
        offsets = [end, end + len(content)]
        header[name] = {"dtype": "U8", "shape": [len(content)], "data_offsets": offsets}
        end = offsets[1]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + b"".join(tensors.values()))


def write_checkpoint(path: Path, tensors: dict[str, bytes]) -> None:
    """Write what `torch.save` writes: an uncompressed zip archive with a member per tensor."""
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in tensors.items():
            archive.writestr(zipfile.ZipInfo(f"archive/data/{name}"), content)


@pytest.fixture
def folder(tmp_path):
    """A model of two safetensors files."""
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text('{"model_type": "llama"}')
    (path / "tokenizer_config.json").write_text("{}")
    tensors = random_tensors(seed=1)
    write_safetensors(path / "model-1.safetensors", dict(list(tensors.items())[:4]))
    write_safetensors(path / "model-2.safetensors", dict(list(tensors.items())[4:]))
    return path


@pytest.fixture
def hub(tmp_path, folder):
    """A hub cache that holds `folder` as org/model at COMMIT, branch main."""
    repository = tmp_path / "hub" / "models--org--model"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for path in folder.iterdir():
        blob = repository / "blobs" / f"blob-of-{path.name}"
        shutil.copy(path, blob)
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    return tmp_path / "hub"


def identity(path: Path) -> str:
    return identify_model(str(path), hub_cache=NO_HUB)


def test_a_copy_of_a_folder_has_its_identity(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")

    assert identity(tmp_path / "copy") == identity(folder)


def test_one_tensor_with_other_weights_is_another_model(folder):
    tensors = dict(list(random_tensors(seed=1).items())[4:])
    for name in tensors:
        before = identity(folder)
        tensors[name] = random.Random(name).randbytes(TENSOR_BYTES)
        write_safetensors(folder / "model-2.safetensors", tensors)

        assert identity(folder) != before


def test_weights_of_another_seed_are_another_model(folder):
    before = identity(folder)
    write_safetensors(folder / "model-1.safetensors", random_tensors(seed=2))

    assert identity(folder) != before


def test_tensors_are_looked_at_beyond_their_first_page(folder):
    before = identity(folder)
    tensors = dict(list(random_tensors(seed=1).items())[:4])
    changed = {
        name: content[:4096] + bytes(TENSOR_BYTES - 4096) for name, content in tensors.items()
    }
    write_safetensors(folder / "model-1.safetensors", changed)

    assert identity(folder) != before


def test_the_same_bytes_as_another_dtype_are_another_model(folder):
    path = folder / "model-1.safetensors"
    before = identity(folder)
    path.write_bytes(path.read_bytes().replace(b'"dtype": "U8"', b'"dtype": "I8"'))

    assert identity(folder) != before


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("config.json", True),
        ("hf_quant_config.json", True),
        ("modeling_custom.py", True),
        ("extra.safetensors", True),
        ("tokenizer_config.json", False),
        ("README.md", False),
    ],
)
def test_what_decides_the_kv_is_part_of_the_identity_and_the_rest_is_not(folder, name, counts):
    before = identity(folder)
    (folder / name).write_text('{"changed": true}')

    assert (identity(folder) != before) == counts


def test_a_large_file_counts_whatever_its_name(folder):
    before = identity(folder)
    with (folder / "weights.tensors").open("wb") as file:
        file.truncate(64 * 2**20)

    assert identity(folder) != before


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pth", "model.gguf"])
def test_other_weights_in_another_format_are_another_model(folder, name):
    (folder / name).write_bytes(random.Random(1).randbytes(3 * 2**20))
    before = identity(folder)
    (folder / name).write_bytes(random.Random(2).randbytes(3 * 2**20))

    assert identity(folder) != before


def test_weights_far_from_the_end_of_a_file_in_another_format_count(folder):
    end = bytes(2**20)
    (folder / "model.gguf").write_bytes(random.Random(1).randbytes(2**20) + end)
    before = identity(folder)
    (folder / "model.gguf").write_bytes(random.Random(2).randbytes(2**20) + end)

    assert identity(folder) != before


def test_a_small_change_in_a_torch_checkpoint_is_seen_in_its_directory(folder):
    tensors = {f"{i}": bytes(2**20) for i in range(8)}
    write_checkpoint(folder / "pytorch_model.bin", tensors)
    before = identity(folder)
    tensors["3"] = bytes(2**19) + b"\x01" + bytes(2**19 - 1)
    write_checkpoint(folder / "pytorch_model.bin", tensors)

    assert identity(folder) != before


@pytest.mark.parametrize(
    "header",
    [
        b"not json",
        b'{"w": 7}',
        b'{"w": {"data_offsets": [0, 99999999999999999999]}}',
        b'{"w": {"data_offsets": [8, 0]}}',
        b'{"w": {"data_offsets": [-50, 0]}}',
    ],
)
def test_a_broken_safetensors_file_is_identified_by_its_bytes(folder, header):
    path = folder / "model-1.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"x" * 64)
    before = identity(folder)
    path.write_bytes(len(header).to_bytes(8, "little") + header + b"y" * 64)

    assert identity(folder) != before


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, b"\x00" * 8])
def test_a_file_too_short_for_a_header_is_no_error(folder, content):
    (folder / "model-1.safetensors").write_bytes(content)

    assert identity(folder).startswith("local:")


def test_a_model_with_very_many_tensors_is_still_told_by_each_of_them(folder):
    tensors = {f"experts.{i}": i.to_bytes(8, "little") * 128 for i in range(17_000)}
    write_safetensors(folder / "model-1.safetensors", tensors)
    before = identity(folder)
    tensors["experts.12345"] = bytes(1024)
    write_safetensors(folder / "model-1.safetensors", tensors)

    assert identity(folder) != before


def test_reads_are_bounded_by_a_page_a_tensor(folder, monkeypatch):
    num_bytes = []
    pread = os.pread

    def counting(*args):
        page = pread(*args)
        num_bytes.append(len(page))
        return page

    monkeypatch.setattr(os, "pread", counting)
    identity(folder)

    headers = 2 * 1000
    assert sum(num_bytes) <= 8 * 4096 + headers


def test_a_single_file_is_a_model(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(1000))
    before = identity(path)
    path.write_bytes(b"GGUF" + bytes(999) + b"\x01")

    assert identity(path) != before


def test_a_single_file_of_a_snapshot_is_identified_by_its_bytes(hub):
    blob = hub / "models--org--model" / "blobs" / ("a" * 40)
    blob.write_bytes(b"GGUF")
    link = hub / "models--org--model" / "snapshots" / COMMIT / "model.gguf"
    link.symlink_to(blob)

    assert identity(link).startswith("local:")


def test_a_hub_id_is_resolved_to_the_commit_in_the_cache(hub):
    assert identify_model("org/model", hub_cache=hub) == f"hub:org/model@{COMMIT}"
    assert identify_model("org/model", "main", hub_cache=hub) == f"hub:org/model@{COMMIT}"
    assert identify_model("org/model", COMMIT, hub_cache=hub) == f"hub:org/model@{COMMIT}"


def test_the_folder_of_a_snapshot_is_its_hub_id(hub):
    snapshot = hub / "models--org--model" / "snapshots" / COMMIT

    assert identity(snapshot) == f"hub:org/model@{COMMIT}"


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
def test_a_snapshot_that_was_edited_is_a_folder_like_any_other(hub, name):
    path = hub / "models--org--model" / "snapshots" / COMMIT / name
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)

    assert identify_model("org/model", hub_cache=hub).startswith("local:")


def test_a_snapshot_and_its_copy_elsewhere_differ_only_in_name(hub, folder):
    assert identify_model("org/model", hub_cache=hub) != identity(folder)


def test_a_commit_that_is_not_on_this_machine_is_its_own_identity(hub):
    other = "f" * 40

    assert identify_model("org/model", other, hub_cache=hub) == f"hub:org/model@{other}"


def test_an_unresolved_revision_stands_for_itself_and_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        found = identify_model("org/model", hub_cache=NO_HUB)

    assert found == "hub:org/model@main"
    assert "model.commit_unknown model=org/model revision=main" in caplog.text


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"../../elsewhere"])
def test_a_broken_reference_is_no_commit(hub, content):
    (hub / "models--org--model" / "refs" / "main").write_bytes(content)

    assert identify_model("org/model", hub_cache=hub) == "hub:org/model@main"


def test_a_folder_without_weights_is_told_by_its_configuration_and_warned_of(folder, caplog):
    for path in folder.glob("*.safetensors"):
        path.unlink()

    assert identity(folder).startswith("local:")
    assert f"model.no_weights path={folder}" in caplog.text


def test_a_folder_with_nothing_to_tell_it_by_is_a_config_error(tmp_path):
    with pytest.raises(ConfigError, match="neither weights nor a configuration"):
        identity(tmp_path)


def test_a_model_that_cannot_be_read_is_a_config_error(folder):
    (folder / "config.json").unlink()
    (folder / "config.json").mkdir()

    with pytest.raises(ConfigError, match="cannot be read, so its blocks cannot be told"):
        identity(folder)


def test_an_adapter_is_its_content_wherever_it_lies(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    found = identify_adapter(str(folder))

    assert len(found) == 32
    assert identify_adapter(str(tmp_path / "copy")) == found


def test_an_adapter_with_other_weights_or_another_rank_is_another(folder):
    found = [identify_adapter(str(folder))]
    write_safetensors(folder / "adapter_model.safetensors", random_tensors(seed=3))
    found.append(identify_adapter(str(folder)))
    (folder / "adapter_config.json").write_text('{"r": 8, "lora_alpha": 32}')
    found.append(identify_adapter(str(folder)))

    assert len(set(found)) == 3


def test_an_adapter_that_cannot_be_read_has_no_identity(tmp_path):
    assert identify_adapter(str(tmp_path / "missing")) is None
