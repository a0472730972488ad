"""Fingerprints of tables: what counts as a change and what does not."""

from __future__ import annotations

import copy

import pytest

from metalmesh.net.nft import fingerprint

DUMP = {
    "nftables": [
        {"metainfo": {"version": "1.0.6"}},
        {"table": {"family": "inet", "name": "t", "handle": 3}},
        {
            "set": {
                "name": "s",
                "handle": 4,
                "elem": ["10.0.0.1", {"prefix": {"addr": "a", "len": 8}}],
            }
        },
        {
            "rule": {
                "chain": "c",
                "handle": 5,
                "expr": [{"counter": {"packets": 1, "bytes": 60}}, {"accept": None}],
            }
        },
    ]
}


def changed(change) -> dict:
    dump = copy.deepcopy(DUMP)
    change(dump["nftables"])
    return dump


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[1]["table"].update(handle=99),
        lambda items: items[3]["rule"]["expr"][0]["counter"].update(packets=5, bytes=9),
        lambda items: items[2]["set"]["elem"].reverse(),
        lambda items: items[0]["metainfo"].update(version="1.1.3"),
    ],
    ids=["handle", "counter", "order of elements", "version of nft"],
)
def test_what_changes_by_itself_does_not_count(change):
    assert fingerprint(changed(change)) == fingerprint(DUMP)


@pytest.mark.parametrize(
    "change",
    [
        lambda items: items[3]["rule"]["expr"].pop(),
        lambda items: items[3]["rule"]["expr"].reverse(),
        lambda items: items.append({"chain": {"name": "foreign"}}),
        lambda items: items[2]["set"]["elem"].append("10.0.0.2"),
    ],
    ids=["expression gone", "expressions swapped", "foreign chain", "foreign element"],
)
def test_what_somebody_changed_counts(change):
    assert fingerprint(changed(change)) != fingerprint(DUMP)


def test_no_table_has_no_fingerprint():
    assert fingerprint(None) == ""
