import gzip
import hashlib
import io
import sys

import pooch
import pytest

from lightning_modules.datasets.download import MIRROR_VARIABLE, DataUnavailable, fetch, find
from tests.conftest import free_port

from .conftest import Answer

CONTENT = b"the right bytes " * 1000
MD5 = hashlib.md5(CONTENT, usedforsecurity=False).hexdigest()
FILES = {"a.bin": {"md5": MD5}}


def zipped(time_stamp: int) -> bytes:
    """The same content under another gzip header."""
    file = io.BytesIO()
    with gzip.GzipFile("other-name", "wb", mtime=time_stamp, fileobj=file) as stream:
        stream.write(CONTENT)
    return file.getvalue()


@pytest.fixture
def closed_address() -> str:
    """An address on this machine where nobody listens."""
    return f"http://127.0.0.1:{free_port()}"


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def test_next_address_is_tried_and_the_file_kept(site, cache, closed_address):
    site.answers["/good/a.bin"] = [Answer(CONTENT)]
    mirrors = [closed_address, f"{site.address}/absent/", f"{site.address}/good/"]
    for _ in range(2):
        paths = fetch("toy", FILES, mirrors=mirrors, mirror=None, cache=cache)
        assert paths == {"a.bin": cache / "a.bin"}
        assert (cache / "a.bin").read_bytes() == CONTENT
    assert site.requests == ["/absent/a.bin"] * 2 + ["/good/a.bin"]  # the second fetch downloaded nothing
    assert list(cache.iterdir()) == [cache / "a.bin"]


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(site, cache, capsys, monkeypatch, terminal):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    site.answers["/a.bin"] = [Answer(CONTENT)]
    fetch("toy", FILES, mirrors=[site.address], mirror=None, cache=cache)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert ("100%" in captured.err) if terminal else (captured.err == "")


def test_altered_download_is_refused_and_the_next_address_used(site, cache):
    site.answers["/bad/a.bin"] = [Answer(CONTENT + b"!")]
    site.answers["/good/a.bin"] = [Answer(CONTENT)]
    mirrors = [f"{site.address}/bad", f"{site.address}/good"]
    assert fetch("toy", FILES, mirrors=mirrors, mirror=None, cache=cache)["a.bin"].read_bytes() == CONTENT


@pytest.mark.parametrize("first", [Answer(status=503), Answer(CONTENT[:100], missing=len(CONTENT) - 100)])
def test_failed_or_broken_answer_is_asked_for_once_more(site, cache, first):
    site.answers["/a.bin"] = [first, Answer(CONTENT)]
    fetch("toy", FILES, mirrors=[site.address], mirror=None, cache=cache)
    assert len(site.requests) == 2


def test_message_names_all_that_was_tried_and_the_way_out(site, cache, closed_address, tmp_path):
    site.answers["/cut/a.bin"] = [Answer(CONTENT[:100], missing=50)]
    site.answers["/bad/a.bin"] = [Answer(b"altered")]
    mirrors = [closed_address, *(f"{site.address}/{place}" for place in ("absent", "cut", "bad"))]
    with pytest.raises(DataUnavailable) as refusal:
        fetch("toy", FILES, mirrors=mirrors, mirror=tmp_path / "mirror", cache=cache)
    message = str(refusal.value)
    found = hashlib.md5(b"altered", usedforsecurity=False).hexdigest()
    for part in [
        f"toy: a.bin could not be had, expected md5 {MD5}",
        f"{cache}/a.bin: not there",
        f"{tmp_path}/mirror/toy/a.bin: not there",
        f"{tmp_path}/mirror/a.bin: not there",
        f"{closed_address}/a.bin: download failed (ConnectionError)",
        f"{site.address}/absent/a.bin: download failed (HTTP 404)",
        f"{site.address}/cut/a.bin: download failed (ChunkedEncodingError)",
        f"{site.address}/bad/a.bin: altered or cut off: md5 is {found}",
        "REPRISE_MIRROR=<mirror>",
        "conf/dataset/toy/",
    ]:
        assert part in message
    assert not list(cache.iterdir())


def test_machine_without_network_asks_each_address_once(cache, closed_address, monkeypatch):
    asked, ask = [], pooch.HTTPDownloader.__call__

    def counted(self, address, *rest):
        asked.append(address)
        return ask(self, address, *rest)

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", counted)
    mirrors = [f"{closed_address}/{index}" for index in range(3)]
    with pytest.raises(DataUnavailable):
        fetch("toy", FILES, mirrors=mirrors, mirror=None, cache=cache)
    assert asked == [f"{mirror}/a.bin" for mirror in mirrors]


@pytest.mark.parametrize("place", ["toy/a.bin", "a.bin"])
def test_local_mirror_is_read_in_place(tmp_path, cache, place):
    path = tmp_path / "mirror" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert fetch("toy", FILES, mirrors=[], mirror=tmp_path / "mirror", cache=cache) == {"a.bin": path}
    assert not cache.exists()


def test_environment_wins_over_the_configured_mirror(tmp_path, cache, monkeypatch):
    for name in ("configured", "set"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.bin").write_bytes(CONTENT)
    monkeypatch.setenv(MIRROR_VARIABLE, str(tmp_path / "set"))
    paths = fetch("toy", FILES, mirrors=[], mirror=tmp_path / "configured", cache=cache)
    assert paths == {"a.bin": tmp_path / "set" / "a.bin"}


def test_altered_local_file_is_refused(tmp_path, cache):
    (tmp_path / "a.bin").write_bytes(CONTENT[:-1])
    with pytest.raises(DataUnavailable, match=r"a\.bin: altered or cut off: md5 is"):
        fetch("toy", FILES, mirrors=[], mirror=tmp_path, cache=cache)


def test_damaged_cached_file_is_downloaded_again(site, cache):
    cache.mkdir()
    (cache / "a.bin").write_bytes(b"half")
    site.answers["/a.bin"] = [Answer(CONTENT)]
    fetch("toy", FILES, mirrors=[site.address], mirror=None, cache=cache)
    assert (cache / "a.bin").read_bytes() == CONTENT


def test_content_checksum_ignores_the_gzip_header(tmp_path, cache):
    assert zipped(1) != zipped(2)
    for index in (1, 2):
        (tmp_path / "a.gz").write_bytes(zipped(index))
        fetch("toy", {"a.gz": {"content_md5": MD5}}, mirrors=[], mirror=tmp_path, cache=cache)


@pytest.mark.parametrize(
    "content", [zipped(1)[:-9], zipped(1)[:40], b"not gzip", zipped(1)[:30] + b"\x00\x00" + zipped(1)[32:], b""]
)
def test_damaged_gzip_is_refused(tmp_path, cache, content):
    (tmp_path / "a.gz").write_bytes(content)
    with pytest.raises(DataUnavailable, match=r"a\.gz: (cut off or not gzip|altered or cut off)"):
        fetch("toy", {"a.gz": {"content_md5": MD5}}, mirrors=[], mirror=tmp_path, cache=cache)


def test_find_looks_in_the_cache_and_the_mirror(tmp_path, cache):
    (tmp_path / "toy" / "train").mkdir(parents=True)
    assert find("toy", "train", mirror=tmp_path, cache=cache) == tmp_path / "toy" / "train"
    (cache / "train").mkdir(parents=True)
    assert find("toy", "train", mirror=tmp_path, cache=cache) == cache / "train"
    with pytest.raises(DataUnavailable, match=r"(?s)val could not be had.*toy/val: not there.*REPRISE_MIRROR"):
        find("toy", "val", mirror=tmp_path, cache=cache)
