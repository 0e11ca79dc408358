"""Ids never change by accident, and equal things have equal ids."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serpipe.ids import canonical_uri, content_version, fingerprint, recording_id, segment_id

RECORDING = bytes.fromhex("62c9f2091a8b732f49573e9ab9db07af")


def test_golden_ids_are_those_of_the_first_release() -> None:
    assert recording_id("s3://bucket/a.wav", "etag=9b2c") == RECORDING
    assert recording_id("/data/Ünï códe.wav", "size=5,mtime_ns=7").hex() == "782c74503396e99ab138102db903c20a"
    assert segment_id(RECORDING, None, 0, 16000, "00ff00ff00ff00ff").hex() == "c968c04e058169967eb6673ada235088"
    assert segment_id(RECORDING, 1, 16000, 48000, "00ff00ff00ff00ff").hex() == "de64261a656d2a6474992d4152c9d316"
    assert fingerprint("decoder", 1, None) == "e0aa5bb7bbd2c27b"


@pytest.mark.parametrize(
    ("text", "base", "uri", "query"),
    [
        ("a.wav", "/data", "/data/a.wav", None),
        ("./x//../a.wav", "/data/", "/data/a.wav", None),
        ("../a.wav", "/data/lists", "/data/a.wav", None),
        ("/data/a?b#c.wav", "/else", "/data/a?b#c.wav", None),
        ("file:///data/a%20b%23.wav", "", "/data/a b#.wav", None),
        ("file://localhost/data/a.wav", "", "/data/a.wav", None),
        ("file:/data/a.wav", "s3://b", "/data/a.wav", None),
        ("s3a://b/k.wav", "", "s3://b/k.wav", None),
        ("S3://Bucket/K%20k.wav", "", "s3://Bucket/K%20k.wav", None),
        ("s3://b/a//b/../c.wav", "", "s3://b/a//b/../c.wav", None),
        ("s3://b/what? #1 100%.wav", "", "s3://b/what? #1 100%.wav", None),
        ("s3://b/k.wav?versionId=3", "", "s3://b/k.wav", "versionId=3"),
        ("s3://key:secret@b/k.wav", "", "s3://b/k.wav", None),
        ("gcs://b/k.wav", "", "gs://b/k.wav", None),
        ("abfs://box@account.dfs.core.windows.net/k", "", "abfs://box@account.dfs.core.windows.net/k", None),
        ("../b.wav", "s3://bucket/lists/may", "s3://bucket/lists/b.wav", None),
        ("../../../b.wav", "s3://bucket/lists", "s3://bucket/b.wav", None),
        ("/local.wav", "s3://bucket/lists", "/local.wav", None),
        ("https://u:p@HOST/A.wav?X-Amz-Signature=1&b=2#f", "", "https://host/A.wav", "X-Amz-Signature=1&b=2"),
        ("c.wav?sig=1", "https://host/lists", "https://host/lists/c.wav", "sig=1"),
    ],
)
def test_one_file_has_one_spelling(text: str, base: str, uri: str, query: str | None) -> None:
    assert canonical_uri(text, base) == (uri, query)


def test_unicode_is_not_normalised() -> None:
    composed, decomposed = "/d/\u00e9.wav", "/d/e\u0301.wav"
    assert canonical_uri(composed)[0] == composed
    assert canonical_uri(decomposed)[0] == decomposed


@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1).map("/x/{}".format))
def test_canonical_is_a_fixed_point_and_file_urls_agree(path: str) -> None:
    uri, query = canonical_uri(path)
    assert query is None
    assert canonical_uri(uri) == (uri, None)
    assert canonical_uri(Path(uri).as_uri()) == (uri, None)


@given(st.lists(st.text(), max_size=4), st.lists(st.text(), max_size=4))
def test_fields_do_not_run_into_one_another(left: list[str], right: list[str]) -> None:
    assert (fingerprint(*left) == fingerprint(*right)) == (left == right)


def test_a_version_is_the_etag_before_all_else() -> None:
    assert content_version('W/"x"', 1, 2) == content_version("x", None, None) == "etag=x"
    assert content_version(None, 1, 2) != content_version(None, 12, None)


@pytest.mark.parametrize("text", ["", "a\0b"])
def test_what_is_no_uri_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="NUL"):
        canonical_uri(text)


def test_a_segment_needs_a_recording() -> None:
    with pytest.raises(ValueError, match="16 bytes, this one 3"):
        segment_id(b"abc", None, 0, 1, "")
