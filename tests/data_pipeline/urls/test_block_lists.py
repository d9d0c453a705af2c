"""Lists hold what they say, and nothing else."""

import pytest

from data_pipeline.urls.block_lists import Addresses, HashedSet, Hosts, Subwords, Words
from maxlm.config.errors import UserError
from maxlm.config.pipeline.filters.word_list import WordListConfig


def listed(*entries: str) -> WordListConfig:
    return WordListConfig(entries=entries)


def test_a_hashed_set_holds_its_entries_alone() -> None:
    numbers = [str(number) for number in range(5000)]
    hashed = HashedSet(numbers[::2])
    assert len(hashed) == 2500
    assert [number in hashed for number in numbers] == [True, False] * 2500
    assert "x" not in HashedSet([])


def test_hosts_hold_those_below(tmp_path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# a list\nBad.com  # why\n0.0.0.0 ads.net\n*.wild.org\n\nexact.example.com.\n")
    hosts = Hosts(WordListConfig(files=(str(path),)))
    assert len(hosts) == 4
    found = {host: hosts.find(host) for host in ("bad.com", "www.bad.com", "x.ads.net", "wild.org")}
    assert found == {
        "bad.com": "bad.com",
        "www.bad.com": "bad.com",
        "x.ads.net": "ads.net",
        "wild.org": "wild.org",
    }
    assert not [host for host in ("notbad.com", "com", "", "example.com") if hosts.find(host)]


def test_hosts_as_other_lists_write_them() -> None:
    hosts = Hosts(
        listed("b\u00fccher.example", "||ads.net^$third-party", "https://a.example/", "b.example/x")
    )
    assert hosts.find("xn--bcher-kva.example") == "xn--bcher-kva.example"
    assert hosts.find("x.ads.net") == "ads.net"
    assert hosts.find("a.example") == "a.example"
    assert hosts.find("b.example") is None, "a path is not all of a host"


def test_addresses_in_any_spelling() -> None:
    addresses = Addresses(listed("https://www.a.example/x/"))
    assert addresses.find("http://a.example/x?utm_source=b") == "a.example/x"
    assert addresses.find("http://a.example/xy") is None


def test_words_are_whole() -> None:
    words = Words(listed("Free", "games"))
    assert words.count("http://free-games.example/free") == 2
    assert words.count("http://freedom.example/gamesome") == 0


def test_subwords_are_anywhere() -> None:
    subwords = Subwords(listed("bad-word", "xx"))
    assert subwords.find("http://a.example/b.ad/wordy") == "badword"
    assert subwords.find("http://a.example/x-x") == "xx"
    assert subwords.find("http://a.example/badwor") is None
    assert Subwords(listed()).find("http://a.example/") is None


def test_a_list_that_is_not_there(tmp_path) -> None:
    with pytest.raises(UserError, match=r"list: cannot be read: No such file.*; give another list"):
        Words(WordListConfig(files=(str(tmp_path / "list"),)))
