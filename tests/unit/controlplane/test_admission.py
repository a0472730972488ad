"""What is in force: the last good version survives everything but its deletion."""
# ruff: noqa: E501

from __future__ import annotations

from typing import Any

from metalmesh.controlplane.snapshot import Admission
from tests.unit.controlplane.conftest import NOW, entry

A, B = entry("a", "10.0.0.1"), entry("b", "10.0.0.2")
ID_A, ID_B = "WorkloadEntry demo/a", "WorkloadEntry demo/b"
BROKEN = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: a, namespace: demo}\nspec: {adress: x}\n"


def _address(admission: Admission, key: str) -> str:
    return str(admission.objects[key].resource.addresses[0])  # type: ignore[union-attr]


def _texts(admission: Admission) -> list[str]:
    return [str(error) for error in admission.errors]


def test_valid_objects_are_accepted_beside_invalid_ones(admit_files: Any) -> None:
    found = admit_files({"f.yaml": f"{BROKEN}---\n{B}"})
    assert list(found.objects) == [ID_B]
    assert found.errors[0].obj == ID_A


def test_broken_object_stays_in_its_last_good_version(admit_files: Any) -> None:
    first = admit_files({"a.yaml": A, "b.yaml": B})
    second = admit_files({"a.yaml": BROKEN, "b.yaml": B}, first)
    assert second.objects[ID_A] is first.objects[ID_A]
    assert second.outdated == {ID_A}
    third = admit_files({"a.yaml": entry("a", "10.0.0.9"), "b.yaml": B}, second)
    assert _address(third, ID_A) == "10.0.0.9"
    assert (third.errors, third.outdated) == ((), frozenset())


def test_file_that_is_no_yaml_keeps_all_its_objects(admit_files: Any) -> None:
    first = admit_files({"f.yaml": f"{A}---\n{B}"})
    second = admit_files({"f.yaml": "a: ["}, first)
    assert set(second.objects) == second.outdated == {ID_A, ID_B}


def test_object_whose_name_broke_is_kept_until_its_file_is_valid(admit_files: Any) -> None:
    first = admit_files({"f.yaml": A})
    second = admit_files({"f.yaml": A.replace("name: a,", "")}, first)
    assert set(second.objects) == {ID_A}


def test_deleted_objects_go(admit_files: Any) -> None:
    first = admit_files(
        {"a.yaml": A, "f.yaml": f"{A.replace('name: a', 'name: c').replace('0.1', '0.3')}---\n{B}"}
    )
    second = admit_files({"f.yaml": B}, first)
    assert set(second.objects) == {ID_B}


def test_unreadable_file_and_directory_are_not_deletions(admit_files: Any) -> None:
    first = admit_files({"d/a.yaml": A, "b.yaml": B})
    second = admit_files({"b.yaml": B}, first, unreadable={"d": "cannot be read: x"})
    assert set(second.objects) == {ID_A, ID_B}
    assert _texts(second) == ["d: cannot be read: x"]
    third = admit_files({}, second, unreadable={".": "cannot be read: Input/output error"})
    assert set(third.objects) == {ID_A, ID_B}
    fourth = admit_files({}, third, unreadable={"dd": "cannot be read: x"})
    assert set(fourth.objects) == set()


def test_one_object_in_two_files_names_both_and_the_first_owner_stays(admit_files: Any) -> None:
    first = admit_files({"b.yaml": A})
    other = entry("a", "10.0.0.9")
    second = admit_files({"a.yaml": other, "b.yaml": A}, first)
    assert _address(second, ID_A) == "10.0.0.1"
    assert _texts(second) == [f"a.yaml: {ID_A}: is defined also in b.yaml; remove one of the two"]
    fresh = admit_files({"a.yaml": other, "b.yaml": A})
    assert _address(fresh, ID_A) == "10.0.0.9"


def test_object_may_move_to_another_file(admit_files: Any) -> None:
    first = admit_files({"a.yaml": A})
    second = admit_files({"b.yaml": A}, first)
    assert second.objects[ID_A].source == "b.yaml"
    assert second.objects[ID_A].resource is first.objects[ID_A].resource


def test_age_is_the_timestamp_or_the_first_acceptance(admit_files: Any) -> None:
    first = admit_files(
        {"a.yaml": A, "b.yaml": entry("b", "10.0.0.2", created="2020-01-01T00:00:00Z")}
    )
    assert first.objects[ID_A].created == NOW
    assert first.objects[ID_B].created == "2020-01-01T00:00:00Z"
    changed = {"a.yaml": entry("a", "10.0.0.7"), "b.yaml": B}
    second = admit_files(changed, first, now="2027-01-01T00:00:00Z")
    assert second.objects[ID_A].created == NOW


# --- addresses -------------------------------------------------------------------------------


def test_newer_of_two_workloads_with_one_address_is_refused(admit_files: Any) -> None:
    old = entry("z", "10.0.0.1", created="2020-01-01T00:00:00Z")
    found = admit_files({"a.yaml": A, "z.yaml": old})
    assert set(found.objects) == {"WorkloadEntry demo/z"}
    assert _texts(found) == [
        f"a.yaml: {ID_A}: spec.address: address 10.0.0.1 belongs to WorkloadEntry demo/z (z.yaml); "
        "give this one another, or remove one"
    ]


def test_without_timestamps_the_name_decides(admit_files: Any) -> None:
    found = admit_files({"x.yaml": entry("b", "10.0.0.1"), "y.yaml": A})
    assert set(found.objects) == {ID_A}


def test_change_never_takes_an_address_from_its_owner(admit_files: Any) -> None:
    """Even when the changed object is the older one."""
    first = admit_files({"a.yaml": A, "b.yaml": B})
    second = admit_files({"a.yaml": entry("a", "10.0.0.2"), "b.yaml": B}, first)
    assert _address(second, ID_B) == "10.0.0.2"
    assert _address(second, ID_A) == "10.0.0.1"
    assert second.outdated == {ID_A}


def test_two_workloads_may_swap_their_addresses_at_once(admit_files: Any) -> None:
    first = admit_files({"a.yaml": A, "b.yaml": B})
    swapped = {"a.yaml": entry("a", "10.0.0.2"), "b.yaml": entry("b", "10.0.0.1")}
    second = admit_files(swapped, first)
    assert (_address(second, ID_A), _address(second, ID_B)) == ("10.0.0.2", "10.0.0.1")
    assert second.errors == ()


def test_refused_change_does_not_lose_its_old_address_to_another_change(admit_files: Any) -> None:
    """a wants b's address, b wants c's: c keeps its own, so b must, and so must a."""
    files = {"a.yaml": A, "b.yaml": B, "c.yaml": entry("c", "10.0.0.3")}
    first = admit_files(files)
    files |= {"a.yaml": entry("a", "10.0.0.2"), "b.yaml": entry("b", "10.0.0.3")}
    second = admit_files(files, first)
    assert second.objects == first.objects
    assert second.outdated == {ID_A, ID_B}
    assert [error.obj for error in second.errors] == [ID_A, ID_B]


def test_refused_workload_gets_the_address_once_it_is_free(admit_files: Any) -> None:
    first = admit_files({"a.yaml": A, "b.yaml": entry("b", "10.0.0.1")})
    assert set(first.objects) == {ID_A}
    second = admit_files({"b.yaml": entry("b", "10.0.0.1")}, first)
    assert set(second.objects) == {ID_B}


def test_equal_addresses_of_different_networks_do_not_clash(admit_files: Any) -> None:
    other = entry("b", "10.0.0.1").replace("spec: {", "spec: {network: lan2, ")
    assert admit_files({"a.yaml": A, "b.yaml": other}).errors == ()


def test_service_address_of_a_workload_is_refused(admit_files: Any) -> None:
    service = (
        "apiVersion: v1\nkind: Service\nmetadata: {name: s, namespace: demo}\n"
        "spec: {clusterIP: 10.0.0.1, ports: [{port: 80}]}\n"
    )
    first = admit_files({"a.yaml": A})
    found = admit_files({"a.yaml": A, "s.yaml": service}, first)
    assert set(found.objects) == {ID_A}
    assert "spec.clusterIP: address 10.0.0.1 belongs to" in _texts(found)[0]


def test_range_of_another_node_is_refused(admit_files: Any) -> None:
    node = "apiVersion: v1\nkind: Node\nmetadata: {name: %s}\nspec: {podCIDRs: [10.244.1.0/24]}\n"
    found = admit_files({"a.yaml": node % "n1", "b.yaml": node % "n2"})
    assert set(found.objects) == {"Node n1"}
    assert "podCIDR 10.244.1.0/24 belongs to Node n1 (a.yaml)" in _texts(found)[0]
