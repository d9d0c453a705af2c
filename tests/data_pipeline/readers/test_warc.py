"""Archives of crawls, whole and damaged, against fastwarc where that can read them."""

import gzip
import io

import pytest
from fastwarc.warc import ArchiveIterator, WarcRecordType

PAGE = "<html><head><title>Page {}</title></head><body><p>Some text \u00e9 of {}.</p></body></html>"


def record(kind, body, *, url="http://example.org/1", more=""):
    """Return a WARC record; `body` is its block."""
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-02T03:04:05Z\r\n"
        f"{more}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def response(
    number, *, status="200 OK", content_type="text/html; charset=utf-8", body=None, more=""
):
    """Return the record of a page."""
    body = PAGE.format(number, number).encode() if body is None else body
    http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{more}\r\n".encode() + body
    kind = "Content-Type: application/http; msgtype=response\r\n"
    return record("response", http, url=f"http://example.org/{number}", more=kind)


PAGES = [response(number) for number in range(20)]


def write(path, records):
    """Write an archive, each record its own gzip member if it is compressed."""
    pack = gzip.compress if path.suffix == ".gz" else bytes
    path.write_bytes(b"".join(map(pack, records)))


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz"])
def test_pages_are_those_that_another_reader_finds(tmp_path, read, name):
    others = [
        record("warcinfo", b"software: test"),
        record("request", b"GET / HTTP/1.1\r\n\r\n"),
        response(90, status="404 Not Found"),
        response(91, content_type="image/png", body=b"\x89PNG"),
        response(92, content_type="text/plain", body=b"plain"),
        record("metadata", b"x: y"),
    ]
    write(tmp_path / name, [*others, *PAGES])
    found = read(tmp_path)
    data = (tmp_path / name).read_bytes()
    expected = [
        (one.headers["WARC-Target-URI"], one.reader.read().decode())
        for one in ArchiveIterator(io.BytesIO(data), record_types=WarcRecordType.response)
        if one.http_headers.status_code == 200 and one.http_content_type != "image/png"
    ]
    assert [(document.meta["url"], document.text) for document in found.documents] == expected
    assert len(expected) == 21
    assert found.documents[1].meta == {
        "url": "http://example.org/0",
        "date": "2026-01-02T03:04:05Z",
        "content_type": "text/html",
        "encoding": "utf-8",
    }
    assert found.skipped.counts == {
        "WARC record of type warcinfo": 1,
        "WARC record of type request": 1,
        "WARC record of type metadata": 1,
        "HTTP status other than 200": 1,
        "page of another content type": 1,
    }


def test_texts_of_a_wet_file(tmp_path, read):
    texts = [f"text {number} \u00e9" for number in range(5)]
    write(tmp_path / "x.wet.gz", [record("conversion", text.encode()) for text in texts])
    assert read(tmp_path).texts == texts


def test_encodings_and_transfer(tmp_path, read):
    page = PAGE.format(1, 1)
    chunked = b"5\r\n" + page.encode()[:5] + b"\r\n%x\r\n" % (len(page.encode()) - 5)
    chunked += page.encode()[5:] + b"\r\n0\r\n\r\n"
    write(
        tmp_path / "x.warc",
        [
            response(1, content_type="text/html; charset=iso-8859-1", body=page.encode("latin-1")),
            response(2, body=gzip.compress(page.encode()), more="Content-Encoding: gzip\r\n"),
            response(3, body=chunked, more="Transfer-Encoding: chunked\r\n"),
            response(4, body=page.encode(), more="Transfer-Encoding: chunked\r\n"),
            response(5, body=page.encode(), more="Content-Encoding: gzip\r\n"),
            response(6, body=b"\x1f\x8b broken", more="Content-Encoding: gzip\r\n"),
            response(7, body=b"x", more="Content-Encoding: br\r\n"),
        ],
    )
    found = read(tmp_path)
    assert found.texts == [page] * 5
    assert found.skipped.counts == {
        "damaged HTTP body": 1,
        "HTTP body in an unknown encoding": 1,
    }


def numbers(found):
    return [int(document.meta["url"].rpartition("/")[2]) for document in found.documents]


def test_a_damaged_member_costs_its_record_alone(tmp_path, read):
    parts = [gzip.compress(page) for page in PAGES]
    damaged = bytearray(parts[7])
    damaged[40:60] = b"\0" * 20
    parts[7] = bytes(damaged)
    (tmp_path / "x.warc.gz").write_bytes(b"".join(parts))
    found = read(tmp_path)
    assert numbers(found) == [number for number in range(20) if number != 7]
    assert found.skipped.counts["damaged gzip data"] == 1


@pytest.mark.parametrize("name", ["x.warc", "x.warc.gz"])
def test_a_truncated_archive_is_told(tmp_path, read, name):
    write(tmp_path / name, PAGES)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[:-100])
    found = read(tmp_path)
    assert numbers(found) == list(range(19))
    expected = "truncated WARC record" if name == "x.warc" else "gzip data that ends too early"
    assert expected in found.skipped.counts


def test_garbage_between_records_and_lengths_that_lie(tmp_path, read):
    lying = PAGES[3].replace(b"Content-Length: ", b"Content-Length: 9")
    without = PAGES[5].replace(b"Content-Length", b"Content-Longth")
    huge = record("response", b"x").replace(b"Length: 1", b"Length: 99999999999999999999")
    parts = [PAGES[0], b"garbage\r\n\r\nmore", b"\n", PAGES[1], without, huge, PAGES[6], lying]
    (tmp_path / "x.warc").write_bytes(b"".join(parts))
    found = read(tmp_path)
    assert numbers(found) == [0, 1, 6]
    assert found.skipped.counts["WARC record without a length"] == 2
    assert found.skipped.counts["truncated WARC record"] == 1
    assert found.skipped.counts["damaged WARC record"] >= 1


def test_headers_without_end_and_a_record_that_is_too_long(tmp_path, read, monkeypatch):
    monkeypatch.setattr("data_pipeline.readers.warc.MAX_RECORD_BYTES", 10_000)
    endless = b"WARC/1.0\r\n" + b"X: y\r\n" * 50_000
    long = response(50, body=b"x" * 50_000)
    (tmp_path / "x.warc").write_bytes(PAGES[0] + endless + PAGES[1] + long + PAGES[2])
    found = read(tmp_path)
    assert numbers(found)[0] == 0
    assert numbers(found)[-1] == 2
    assert "WARC record without an end of its headers" in found.skipped.counts
    assert found.skipped.counts["WARC record too long"] == 1
