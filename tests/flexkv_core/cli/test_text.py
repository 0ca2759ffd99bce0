import io
import sys

import pytest

from flexkv_core.cli import text
from flexkv_core.cli.text import Progress, bytes_text, counted, printable, table, time_text

NASTY = "\x1b[31m\n\r\x07\x7f\x9b\u202e\udcff"


@pytest.mark.parametrize(
    ("num_bytes", "expected"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (3 * 2**19, "1.5 MiB"),
        (2**30, "1.0 GiB"),
        (5 * 2**50, "5120.0 TiB"),
    ],
)
def test_sizes_have_units(num_bytes, expected):
    assert bytes_text(num_bytes) == expected


def test_one_is_no_plural():
    assert [counted(n, "cell") for n in (0, 1, 1204)] == ["0 cells", "1 cell", "1,204 cells"]


def test_no_letter_reaches_a_terminal_unless_it_is_printable():
    assert printable(NASTY + "ok") == r"\x1b[31m\n\r\x07\x7f\x9b\u202e\udcffok"


@pytest.mark.parametrize("seconds", [-(2**62), 2**62])
def test_any_time_has_a_text(seconds):
    assert time_text(seconds).endswith(" UTC")


def test_columns_of_a_table_are_aligned():
    assert table([("A", "LONG"), ("wide", "1")]) == "  A     LONG\n  wide  1\n"


@pytest.mark.parametrize("command", ["ls", "fsck"])
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_names_of_files_are_never_written_raw(flexkv, make_slab, tmp_path, command, form):
    make_slab(name=NASTY + "1.slab").path.write_bytes(b"x")
    make_slab(name=NASTY + "1.txt")

    written = flexkv(command, tmp_path, *form).out

    assert all(" " <= letter <= "~" or letter == "\n" for letter in written)
    assert "1.slab" in written


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_texts_in_slabs_are_never_written_raw(flexkv, make_slab, namespace_with, tmp_path, form):
    nasty = NASTY[:-1]  # half a surrogate pair is no JSON
    fields = ("model", "kv_cache_dtype", "weight_version", "user")
    make_slab(namespace=namespace_with(**dict.fromkeys(fields, nasty))).write_chain(1)

    written = flexkv("ls", tmp_path, *form).out

    assert "1 block of 64 tokens" in written or '"blocks": 1' in written
    assert all(" " <= letter <= "~" or letter == "\n" for letter in written)


def test_names_in_messages_are_never_written_raw(flexkv):
    assert flexkv("ls", "/gone\x1b").err.startswith(r"flexkv: /gone\x1b cannot be read")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_and_cleared(monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(text.time, "monotonic", lambda: 1000.0)
    progress = Progress(3)

    progress.begin_slab()
    progress.advance(2**30)
    progress.advance(2**30)
    progress.end()

    assert terminal.getvalue() == "\r\x1b[Kslab 1 of 3, 1.0 GiB read\r\x1b[K"
