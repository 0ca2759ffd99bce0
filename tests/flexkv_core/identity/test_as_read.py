"""Surveys and the table of mounts; what is judged of them is in `test_identification`."""

import pytest
from model_rig import COMMIT, NO_HUB, STARTED_S, local

from flexkv_core.identity import as_read
from flexkv_core.identity.as_read import Judge, Mounts, Survey, survey, why_changed
from flexkv_core.identity.checkpoint import Checkpoint
from flexkv_core.identity.stamps import Stamp

TABLE = """\
21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
22 21 0:40 / /models rw - nfs4 server:/models rw
23 22 0:41 / /models/local rw shared:2 master:1 - tmpfs tmpfs rw
24 21 0:42 / /with\\040blank rw - fuse.sshfs x rw
25 21 0:43 / /twice rw - nfs a rw
26 25 0:44 / /twice rw - xfs b rw
27 21 8:1 /file /models/bound.gguf ro - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "is_local"),
    [
        ("/", True),
        ("/home/model", True),
        ("/models", False),
        ("/models/a/b", False),
        ("/models2", True),
        ("/models/local/a", True),
        ("/models/bound.gguf", True),
        ("/with blank/a", False),
        ("/twice/a", True),
    ],
)
def test_the_nearest_mount_says_whose_clock_it_is(path, is_local):
    assert Mounts(TABLE).is_local(path) == is_local


def test_without_a_table_no_clock_is_ours(monkeypatch, tmp_path):
    assert Mounts.read().is_local("/proc") is False  # no file system that keeps files
    monkeypatch.setattr(as_read, "_MOUNTS", tmp_path / "missing")

    assert not Mounts.read().is_local("/")


def test_the_table_of_this_process_can_be_read(tmp_path):
    assert Mounts.read()._kinds["/proc"] == "proc"


@pytest.mark.parametrize(
    ("path", "age_s", "is_older"),
    [
        ("/a", 0.01, True),
        ("/a", 0, False),
        ("/a", -1, False),
        ("/models/a", 299, False),
        ("/models/a", 301, True),
    ],
)
def test_another_clock_is_given_an_allowance(path, age_s, is_older):
    changed_ns = int((STARTED_S - age_s) * 1e9)
    judge = Judge(STARTED_S, Mounts(TABLE))

    assert judge.is_older(Stamp(path, 1, 1, changed_ns, 1), STARTED_S) == is_older
    assert judge.is_older(Stamp(path, 1, 1, 1, changed_ns), STARTED_S) == is_older


def test_a_survey_names_files_as_they_lie_in_the_model(folder):
    found = survey(local(folder))

    names = ["config.json", "layers/attention.py", "model-1.safetensors", "model-2.safetensors"]
    assert [file.name for file in found.files] == names
    assert [file.stamp for file in found.files] == [Stamp.take(str(folder / n)) for n in names]
    assert [stamp.path for stamp in found.folders] == [str(folder), str(folder / "layers")]
    assert found.reference is None


def test_a_survey_is_the_same_by_a_relative_path(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)

    assert survey(local("model")) == survey(local(folder))
    assert (
        survey(local("./layers/../model")) == "the files of ./layers/../model are not on this "
        "machine: set weight_version"
    )


def test_a_survey_follows_the_links_of_the_hubs_client(hub):
    found = survey(Checkpoint(model="org/model", hub_cache=hub))
    blobs = hub / "models--org--model" / "blobs"
    snapshot = hub / "models--org--model" / "snapshots" / COMMIT

    for file in found.files:
        assert file.stamp.path == str(blobs / file.blob)
        assert [link.path for link in file.links] == [str(snapshot / file.name)]
        assert file.is_named_by_git == (not file.name.endswith(".safetensors"))
    assert found.reference is None


def test_what_chose_among_several_snapshots_is_part_of_a_survey(hub):
    repository = hub / "models--org--model"
    (repository / "snapshots" / ("f" * 40)).mkdir()
    reference = Stamp.take(str(repository / "refs" / "main"))

    assert survey(Checkpoint(model="org/model", hub_cache=hub)).reference == reference
    with_commit = Checkpoint(model="org/model", revision=COMMIT, hub_cache=hub)
    assert survey(with_commit).reference is None


def test_a_single_file_has_no_folder_of_its_own(folder):
    found = survey(local(folder / "model-1.safetensors"))

    assert [file.name for file in found.files] == ["model-1.safetensors"]
    assert found.folders == ()


def test_code_from_elsewhere_is_a_reason(folder):
    (folder / "config.json").write_text('{"auto_map": {"AutoModel": "org/other--code.Model"}}')

    assert survey(local(folder)) == (
        "config.json takes the model's code from another repository: put it beside the model, or "
        "set weight_version and trust_weight_version"
    )


def test_a_model_that_is_not_to_be_looked_at_may_be_away():
    assert survey(Checkpoint(model="s3://m", hub_cache=NO_HUB, weights=False)) == Survey(())


def test_surveys_that_are_equal_show_no_change(folder):
    assert why_changed(survey(local(folder)), survey(local(folder))) is None


def test_a_removed_file_is_a_change(folder):
    before = survey(local(folder))
    (folder / "config.json").unlink()

    assert why_changed(before, survey(local(folder))).startswith("config.json was changed while")


def test_a_removed_file_that_is_none_of_the_models_changes_its_folder(folder):
    before = survey(local(folder))
    changed = before.folders[0]
    after = before._replace(
        folders=(Stamp(changed.path, changed.inode, changed.size, 1, 1), *before.folders[1:])
    )

    assert why_changed(before, after).startswith(f"{folder} was changed while")
