import os

import pytest

from flexkv_core.data.tiers.ssd.format import LOG_SUFFIX

LINKED = ("slab", "column", "namespace")


@pytest.fixture
def linked(make_slab, tmp_path):
    """Replaces a slab or one of its folders by a symbolic link to itself elsewhere."""

    def link(what):
        path = make_slab(is_temporary=True).write_chain(1).path
        inside = {"slab": path, "column": path.parent, "namespace": path.parent.parent}[what]
        target = tmp_path.parent / f"{tmp_path.name}-target"
        inside.rename(target)
        inside.symlink_to(target)
        return inside, target

    return link


@pytest.mark.parametrize("what", LINKED)
def test_symbolic_links_are_not_followed(flexkv, linked, tmp_path, what):
    link, _ = linked(what)

    [damaged] = flexkv("ls", tmp_path, "--json").json["damaged"]

    assert damaged["path"] == str(link)
    assert "symbolic link" in damaged["reason"]


@pytest.mark.parametrize("what", LINKED)
def test_a_repair_does_not_reach_through_a_symbolic_link(flexkv, linked, tmp_path, what):
    link, target = linked(what)

    assert flexkv("fsck", tmp_path, "--repair").status == 1
    assert link.is_symlink()
    assert target.is_file() or list(target.rglob("*.slab"))


def test_a_pipe_is_no_slab_and_nobody_waits_for_it(flexkv, make_slab, tmp_path):
    path = make_slab().path
    path.unlink()
    os.mkfifo(path)

    [damaged] = flexkv("ls", tmp_path, "--json").json["damaged"]

    assert damaged["reason"] == "not a plain file"


def test_what_is_not_ours_is_not_looked_at(flexkv, make_slab, tmp_path):
    make_slab().path.with_name(".hidden").touch()
    (tmp_path / "lost+found" / "column").mkdir(parents=True)
    (tmp_path / "lost+found" / "column" / "x.slab").touch()
    (tmp_path / ".lock").touch()
    (tmp_path / f".0123456789abcdef{LOG_SUFFIX}").write_bytes(b"of a writer that was killed")

    assert flexkv("fsck", tmp_path, "--json").json["problems"] == 0


def test_a_folder_that_cannot_be_read_is_a_problem(flexkv, tmp_path):
    (tmp_path / ("0" * 16)).touch()

    report = flexkv("fsck", tmp_path, "--json")

    assert report.status == 1
    assert [row["path"] for row in report.json["not_read"]] == [str(tmp_path / ("0" * 16))]


def test_a_slab_that_is_deleted_meanwhile_is_nothing(flexkv, make_slab, monkeypatch, tmp_path):
    make_slab()

    def is_gone(*_, **__):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr("flexkv_core.cli.verify.open_slab", is_gone)
    monkeypatch.setattr("flexkv_core.cli.ls.open_slab", is_gone)

    assert flexkv("fsck", tmp_path).status == 0
    assert flexkv("ls", tmp_path, "--json").json["damaged"] == []
