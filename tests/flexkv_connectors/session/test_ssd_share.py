"""What a rank says of its share of the SSD tier."""

import errno
import fcntl
import os
from types import SimpleNamespace

import pytest

from flexkv_connectors.session.ssd_share import SsdShare
from flexkv_core.block.layout import BlockFormat, Column
from flexkv_core.block.namespace import Namespace
from flexkv_core.config import parse_config
from flexkv_core.data.tiers.host import HostPool
from flexkv_core.data.tiers.ssd.tier import SsdTier
from flexkv_core.errors import ConfigError
from flexkv_core.identity.origin import Origin
from flexkv_core.plan import TierOrders
from flexkv_core.testing.namespaces import make_namespace


class HeldOrigin:
    """Says what the blocks are blocks of when a test wants it."""

    is_unknown = False
    blank = make_namespace(model="", weight_version="v1")

    def find(self, _, then):
        self.then = then
        return self

    def close(self):
        self.then = None


@pytest.fixture
def open_share(tmp_path):
    """Return a function that opens a share of an origin; the last is closed in the end."""
    block_format = BlockFormat(
        num_heads=1, num_layers=1, block_tokens=16, token_bytes=256, cell_heads=1
    )
    pool = HostPool.create(4, block_format.block_bytes)
    shares = []

    def run(origin, **options):
        ssd = {"ssd_cache_gb": 1, "ssd_cache_dir": str(tmp_path)}
        deployment = SimpleNamespace(
            cache=parse_config(ssd | options),
            rank=0,
            columns=[Column(first_head=0, num_heads=1, first_layer=0, num_layers=1)],
            block_format=block_format,
            engine_id="engine",
        )
        shares.append(SsdShare(deployment, origin, pool, 1 << 30))
        return shares[-1]

    yield run
    for share in shares:
        share.stop()
        share.close()
    pool.close()


@pytest.fixture
def new_share(open_share):
    """A share that is open and has told nothing."""
    share = open_share(Origin({}, lambda _: make_namespace()))
    share._tier.wait_recovered()
    yield share
    for lane in share.take_lanes().values():
        lane.close()


@pytest.fixture
def share(new_share):
    """A share that has told all that there was."""
    assert new_share.take_report().is_recovered
    return new_share


def test_nothing_is_said_twice(share):
    assert share.take_report() is None


def test_room_that_comes_or_goes_is_told_although_nothing_was_moved(share, monkeypatch):
    """Where there was none, nothing will be moved until it is known that there is some again."""
    for capacity_blocks in (0, 7):
        monkeypatch.setattr(SsdTier, "capacity_blocks", capacity_blocks)
        assert share.take_report().capacity_blocks == capacity_blocks
        assert share.take_report() is None


def test_a_search_that_finds_nothing_for_long_says_nothing(new_share, monkeypatch):
    """An idle engine is kept stepping while reports come: a stuck disk would keep it for ever."""
    monkeypatch.setattr(SsdTier, "is_recovered", False)
    assert not new_share.take_report().is_recovered
    assert new_share.take_report() is None


def test_the_end_of_the_search_is_told(share, monkeypatch):
    for is_recovered in (False, True):
        monkeypatch.setattr(SsdTier, "is_recovered", is_recovered)
        assert share.take_report().is_recovered is is_recovered


def test_a_share_whose_model_is_not_known_yet_says_how_much_it_will_hold(open_share):
    origin = HeldOrigin()
    share = open_share(origin)
    before = share.take_report()
    assert not before.is_recovered
    assert share.take_report() is None
    assert share.take_lanes() == {}

    origin.then(make_namespace())
    share._tier.wait_recovered()
    assert share.take_report().is_recovered
    assert share._tier.capacity_blocks == before.capacity_blocks
    assert [lane.close() for lane in share.take_lanes().values()] == [None, None]
    assert share.take_lanes() == {}


def test_a_reset_before_the_model_is_known_is_carried_out_when_it_is(open_share):
    """Weights that were changed in place are not those in the files that are being hashed."""
    origin = HeldOrigin()
    share = open_share(origin)
    share.prepare(TierOrders(generation="changed"))
    assert share.take_report().generation == "changed"

    origin.then(make_namespace())
    report = share.take_report()
    assert (report.generation, report.is_recovered) == ("changed", True)
    assert share._tier._is_temporary


def test_a_model_that_nothing_tells_apart_has_no_room(open_share):
    origin = HeldOrigin()
    share = open_share(origin)
    share.take_report()
    origin.is_unknown = True
    report = share.take_report()
    assert (report.capacity_blocks, report.is_recovered) == (0, True)


def test_a_model_that_becomes_known_after_the_end_opens_nothing(open_share, tmp_path):
    origin = HeldOrigin()
    share = open_share(origin)
    then = origin.then
    share.stop()
    then(make_namespace())
    assert share._tier is None


def test_directories_that_can_be_no_folders_are_refused_before_the_model_is_known(
    open_share, tmp_path
):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / ("long" * 99)):
        with pytest.raises(ConfigError, match="ssd_cache_dir cannot be used"):
            open_share(HeldOrigin(), ssd_cache_dir=str(path))


def test_one_directory_that_can_be_a_folder_is_enough(open_share, tmp_path):
    (tmp_path / "file").touch()
    origin = HeldOrigin()
    share = open_share(origin, ssd_cache_dir=[str(tmp_path / "file"), str(tmp_path / "good")])
    origin.then(make_namespace())
    assert share._tier is not None


class Trouble:
    """Something in a directory that keeps it from being used, until it is mended."""

    def __init__(self, folder, monkeypatch):
        self.lock = folder / ".lock"
        self.patch = monkeypatch
        self.opened = os.open

    def held(self):
        """By an engine that was stopped."""
        self.patch.setattr("flexkv_core.data.tiers.ssd.files._LOCK_WAIT_S", 0.0)
        file = self.lock.open("w")
        fcntl.flock(file, fcntl.LOCK_EX)
        return file.close

    def link(self):
        self.lock.symlink_to("elsewhere")
        return self.lock.unlink

    def folder(self):
        self.lock.mkdir()
        return self.lock.rmdir

    def no_inodes(self):
        return self.refuse(errno.ENOSPC)

    def unwritable(self):
        return self.refuse(errno.EACCES)

    def read_only(self):
        return self.refuse(errno.EROFS)

    def refuse(self, code):
        def refuse(path, *arguments):
            if os.fspath(path) == str(self.lock):
                raise OSError(code, os.strerror(code))
            return self.opened(path, *arguments)

        self.patch.setattr(os, "open", refuse)
        return lambda: self.patch.setattr(os, "open", self.opened)


@pytest.mark.parametrize(
    "trouble", ["held", "link", "folder", "no_inodes", "unwritable", "read_only"]
)
def test_a_directory_that_cannot_be_used_now_is_used_later(
    open_share, tmp_path, monkeypatch, caplog, trouble
):
    """The engine starts and serves without it, however its trouble comes to an end."""
    monkeypatch.setattr("flexkv_core.identity.identification._RETRY_S", 0.001)
    mend = getattr(Trouble(tmp_path, monkeypatch), trouble)()

    share = open_share(Origin({}, lambda _: make_namespace()))
    expected = share.take_report()
    assert (expected.capacity_blocks > 0, expected.is_recovered) == (True, False)
    assert share.take_lanes() == {}

    mend()
    share._identification.join()
    share._tier.wait_recovered()
    assert share.take_report().is_recovered
    assert share._tier.capacity_blocks == expected.capacity_blocks
    for lane in share.take_lanes().values():
        lane.close()
    lines = [line for line in caplog.messages if line.startswith("tier.")]
    assert [line.split()[0] for line in lines] == ["tier.off", "tier.on"]
    assert str(tmp_path) in lines[0]


def test_a_generation_that_was_begun_is_told_once(share):
    """The scheduler half uses the tier no more until it hears so."""
    share.prepare(TierOrders(generation="g"))
    share._tier.wait_recovered()
    told = share.take_report()
    assert (told.generation, told.is_recovered, told.recovered) == ("g", True, [])
    assert share.take_report() is None


def test_before_any_reset_reports_are_of_no_generation(new_share):
    assert new_share.take_report().generation == ""


@pytest.mark.parametrize("is_reset", [False, True])
def test_a_reset_before_the_model_is_known_outlives_an_engine_that_never_knows_it(
    open_share, is_reset
):
    """Otherwise the next engine would find what the weights of before have computed."""

    def tokens(share, origin):
        origin.then(make_namespace(weight_version="v1"))
        return dict(share._tier._tokens)

    first, second, third = (HeldOrigin() for _ in range(3))
    before = tokens(open_share(first, weight_version="v1"), first)
    unknown = open_share(second, weight_version="v1")
    if is_reset:
        unknown.prepare(TierOrders(generation="changed"))
    unknown.stop()
    after = tokens(open_share(third, weight_version="v1"), third)
    assert (before != after) == is_reset


def test_a_step_in_which_nothing_happens_hashes_no_namespace(share, monkeypatch):
    hashed = []
    digest = Namespace.digest.fget
    counted = property(lambda namespace: hashed.append(namespace) or digest(namespace))
    monkeypatch.setattr(Namespace, "digest", counted)
    share.prepare(TierOrders())
    assert share.take_report() is None
    assert hashed == []
