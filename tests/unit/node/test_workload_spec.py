"""Local workloads: what a WorkloadEntry means to its node, and who wins a conflict."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import yaml

from metalmesh.errors import ResourceError, StoreError
from metalmesh.node.workload_spec import LocalWorkload, load_directory, parse_local_workload


def entry(name: str = "w", address: str = "10.244.1.10", *, annotations=None, labels=None, **spec):
    return yaml.safe_dump(
        {
            "apiVersion": "networking.istio.io/v1",
            "kind": "WorkloadEntry",
            "metadata": {
                "name": name,
                "namespace": "demo",
                "annotations": annotations or {},
                "labels": labels or {},
            },
            "spec": {"address": address, **spec},
        }
    )


def parse(text: str) -> LocalWorkload:
    return parse_local_workload(text, "/w/x.yaml", "Kubernetes")


def test_defaults_follow_from_the_name():
    workload = parse(entry())
    assert workload.uid == "Kubernetes/networking.istio.io/WorkloadEntry/demo/w"
    assert (workload.netns, workload.service_account, workload.captured) == (
        "demo-w",
        "default",
        True,
    )


def test_annotations_and_labels():
    workload = parse(
        entry(
            annotations={
                "ambient.metalmesh.io/addresses": "fd44::1",
                "ambient.metalmesh.io/netns": "special",
                "ambient.istio.io/bypass-inbound-capture": "true",
                "ambient.istio.io/dns-capture": "false",
                "istio.io/reroute-virtual-interfaces": "tap0, tap1",
            },
            serviceAccount="sleep",
            labels={"app": "w"},
        )
    )
    assert workload.addresses == (ip_address("10.244.1.10"), ip_address("fd44::1"))
    assert workload.netns == "special"
    assert workload.bypass_inbound
    assert workload.dns_capture is False
    assert workload.virtual_interfaces == ("tap0", "tap1")
    assert workload.service_account == "sleep"


@pytest.mark.parametrize(
    ("mode", "captured"), [("none", False), ("ambient", True), ("other", True)]
)
def test_only_none_is_not_captured(mode, captured):
    """The namespace's label is not known here, so anything else is treated as captured."""
    assert parse(entry(labels={"istio.io/dataplane-mode": mode})).captured is captured


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["one WorkloadEntry", "holds 0"]),
        (entry() + "---\n" + entry("v"), ["holds 2"]),
        ("[", ["YAML"]),
        ("apiVersion: v1\nkind: Namespace\nmetadata: {name: demo}\n", ["WorkloadEntry", "kind"]),
        (entry(address="host.example"), ["spec.address", "IP address"]),
        (entry(address="fe80::1"), ["spec.address", "routable"]),
        (
            entry(
                annotations={
                    "ambient.metalmesh.io/netns": "host",
                    "ambient.istio.io/dns-capture": "true",
                }
            ),
            ["dns-capture", "network namespace of their own"],
        ),
        (
            entry(annotations={"ambient.metalmesh.io/exclude-inbound-ports": "80,ninety"}),
            ["exclude-inbound-ports", "'ninety' is no port"],
        ),
        (
            entry(annotations={"ambient.metalmesh.io/exclude-outbound-cidrs": "10.0.0.1/8"}),
            ["exclude-outbound-cidrs", "10.0.0.1/8 has host bits set"],
        ),
        (entry(annotations={"ambient.metalmesh.io/netns": "../x"}), ["netns", "../x"]),
        (entry(annotations={"ambient.metalmesh.io/netns": "Upper"}), ["netns", "Upper"]),
        (entry(annotations={"istio.io/reroute-virtual-interfaces": 'a"b'}), ["interface"]),
        (entry(annotations={"ambient.istio.io/dns-capture": "yes"}), ["dns-capture", "true"]),
        (
            entry(annotations={"ambient.istio.io/bypass-inbound-capture": "on"}),
            ["bypass-inbound-capture", "true"],
        ),
    ],
)
def test_errors_name_file_object_and_field(text, words):
    with pytest.raises(ResourceError) as caught:
        parse(text)
    for word in ["/w/x.yaml", *words]:
        assert word in str(caught.value)


def test_bad_files_do_not_hide_good_ones(tmp_path):
    (tmp_path / "a.yaml").write_text("{")
    (tmp_path / "b.yaml").write_text(entry("b"))
    (tmp_path / "c.yaml").write_bytes(b"\xff\xfe")
    (tmp_path / "d.txt").write_text("not looked at")
    loaded = load_directory(tmp_path, "Kubernetes")
    assert list(loaded.workloads) == ["demo-b"]
    assert {error.source for error in loaded.errors} == {
        str(tmp_path / "a.yaml"),
        str(tmp_path / "c.yaml"),
    }


def test_missing_directory_is_an_error_not_an_empty_one(tmp_path):
    with pytest.raises(StoreError, match="none cannot be listed"):
        load_directory(tmp_path / "none", "Kubernetes")


def test_file_that_became_wrong_keeps_what_it_said(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(entry("a"))
    before = load_directory(tmp_path, "Kubernetes").by_file
    path.write_text(entry("a", address="nowhere"))
    loaded = load_directory(tmp_path, "Kubernetes", before=before)
    assert loaded.workloads["demo-a"].addresses == (ip_address("10.244.1.10"),)
    assert "spec.address" in str(loaded.errors[0])
    path.unlink()
    assert load_directory(tmp_path, "Kubernetes", before=before).by_file == {}


@pytest.mark.parametrize("clash", ["address", "netns"])
def test_first_by_name_wins_a_conflict_unless_another_is_up(tmp_path, clash):
    shared = {"ambient.metalmesh.io/netns": "one"} if clash == "netns" else {}
    second = "10.244.1.11" if clash == "netns" else "10.244.1.10"
    (tmp_path / "a.yaml").write_text(entry("a", annotations=shared))
    (tmp_path / "b.yaml").write_text(entry("b", second, annotations=shared))
    loaded = load_directory(tmp_path, "Kubernetes")
    assert [item.name for item in loaded.workloads.values()] == ["a"]
    (error,) = loaded.errors
    assert "WorkloadEntry demo/b" in str(error)
    assert "demo/a stays" in str(error)
    netns = "one" if clash == "netns" else "demo-b"
    uid = "Kubernetes/networking.istio.io/WorkloadEntry/demo/b"
    loaded = load_directory(tmp_path, "Kubernetes", {netns: (uid,)})
    assert [item.name for item in loaded.workloads.values()] == ["b"]
