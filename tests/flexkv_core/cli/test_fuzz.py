"""Whatever lies on the disk: no exception, no write without --repair, and a repair that ends."""

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from flexkv_core.cli.main import main
from flexkv_core.data.tiers.ssd.format import PAGE_BYTES, checksum

mutations = st.lists(
    st.tuples(st.integers(0, 20 * PAGE_BYTES), st.binary(min_size=1, max_size=40)), max_size=6
)
lengths = st.one_of(st.none(), st.integers(0, 20 * PAGE_BYTES))


def run_everything(content, relative):
    """Run all commands over one slab; return the statuses of fsck, of a repair, of fsck again."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / relative
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        for folder in (path.parent, path.parent.parent):
            folder.chmod(0o700)
        path.chmod(0o600)
        assert main(["ls", directory]) == 0
        assert main(["ls", "--json", directory]) == 0
        found = main(["fsck", "--json", directory])
        assert path.read_bytes() == content
        assert found in {0, 1}
        return found, main(["fsck", "--repair", directory]), main(["fsck", directory])


def mutated(content, changes, length):
    content = bytearray(content)
    for place, replacement in changes:
        content[place : place + len(replacement)] = replacement
    return bytes(content if length is None else content[:length])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(changes=mutations, length=lengths)
def test_no_mutation_of_a_slab_raises(make_slab, tmp_path, changes, length):
    slab = make_slab().write_chain(6)
    content = mutated(slab.path.read_bytes(), changes, length)

    before, repair, after = run_everything(content, slab.path.relative_to(tmp_path))

    assert (before, repair, after) in {(0, 0, 0), (1, 3, 0), (1, 1, 1)}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=2 * PAGE_BYTES))
def test_no_random_file_raises(make_slab, tmp_path, content):
    relative = make_slab().path.relative_to(tmp_path)

    assert run_everything(content, relative) == (1, 3, 0)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(text=st.one_of(st.binary(max_size=200), mutations))
def test_no_superblock_with_a_right_checksum_raises(make_slab, tmp_path, text):
    slab = make_slab().write_chain(2)
    page = slab.path.read_bytes()[:PAGE_BYTES]
    if isinstance(text, list):
        text = mutated(page[20:].rstrip(b"\0"), text, None)[: PAGE_BYTES - 20]
    prefix = b"FLEXKVS1" + len(text).to_bytes(4, "little") + checksum(text).to_bytes(8, "little")
    slab.write_at(0, (prefix + text).ljust(PAGE_BYTES, b"\0"))
    content = slab.path.read_bytes()

    before, repair, after = run_everything(content, slab.path.relative_to(tmp_path))

    assert (before, repair, after) in {(0, 0, 0), (1, 1, 1)}
