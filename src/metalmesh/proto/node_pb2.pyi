from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Protocol(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TCP: _ClassVar[Protocol]
    UDP: _ClassVar[Protocol]
    SCTP: _ClassVar[Protocol]
TCP: Protocol
UDP: Protocol
SCTP: Protocol

class Node(_message.Message):
    __slots__ = ("name", "addresses", "pod_cidrs")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    POD_CIDRS_FIELD_NUMBER: _ClassVar[int]
    name: str
    addresses: _containers.RepeatedScalarFieldContainer[bytes]
    pod_cidrs: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., addresses: _Optional[_Iterable[bytes]] = ..., pod_cidrs: _Optional[_Iterable[str]] = ...) -> None: ...

class NetworkPolicy(_message.Message):
    __slots__ = ("namespace", "name", "selected", "ingress", "egress", "ingress_rules", "egress_rules")
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    SELECTED_FIELD_NUMBER: _ClassVar[int]
    INGRESS_FIELD_NUMBER: _ClassVar[int]
    EGRESS_FIELD_NUMBER: _ClassVar[int]
    INGRESS_RULES_FIELD_NUMBER: _ClassVar[int]
    EGRESS_RULES_FIELD_NUMBER: _ClassVar[int]
    namespace: str
    name: str
    selected: _containers.RepeatedCompositeFieldContainer[Selected]
    ingress: bool
    egress: bool
    ingress_rules: _containers.RepeatedCompositeFieldContainer[Rule]
    egress_rules: _containers.RepeatedCompositeFieldContainer[Rule]
    def __init__(self, namespace: _Optional[str] = ..., name: _Optional[str] = ..., selected: _Optional[_Iterable[_Union[Selected, _Mapping]]] = ..., ingress: _Optional[bool] = ..., egress: _Optional[bool] = ..., ingress_rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., egress_rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ...) -> None: ...

class Selected(_message.Message):
    __slots__ = ("uid", "addresses")
    UID_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    uid: str
    addresses: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, uid: _Optional[str] = ..., addresses: _Optional[_Iterable[bytes]] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("any_peer", "peers", "any_port", "ports", "only_uids")
    ANY_PEER_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ANY_PORT_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    ONLY_UIDS_FIELD_NUMBER: _ClassVar[int]
    any_peer: bool
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    any_port: bool
    ports: _containers.RepeatedCompositeFieldContainer[Port]
    only_uids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, any_peer: _Optional[bool] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., any_port: _Optional[bool] = ..., ports: _Optional[_Iterable[_Union[Port, _Mapping]]] = ..., only_uids: _Optional[_Iterable[str]] = ...) -> None: ...

class Peer(_message.Message):
    __slots__ = ("cidr",)
    CIDR_FIELD_NUMBER: _ClassVar[int]
    EXCEPT_FIELD_NUMBER: _ClassVar[int]
    cidr: Cidr
    def __init__(self, cidr: _Optional[_Union[Cidr, _Mapping]] = ..., **kwargs) -> None: ...

class Cidr(_message.Message):
    __slots__ = ("address", "length")
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    address: bytes
    length: int
    def __init__(self, address: _Optional[bytes] = ..., length: _Optional[int] = ...) -> None: ...

class Port(_message.Message):
    __slots__ = ("protocol", "port", "end_port")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    END_PORT_FIELD_NUMBER: _ClassVar[int]
    protocol: Protocol
    port: int
    end_port: int
    def __init__(self, protocol: _Optional[_Union[Protocol, str]] = ..., port: _Optional[int] = ..., end_port: _Optional[int] = ...) -> None: ...

class PortNames(_message.Message):
    __slots__ = ("tcp",)
    class TcpEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TCP_FIELD_NUMBER: _ClassVar[int]
    tcp: _containers.ScalarMap[str, int]
    def __init__(self, tcp: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Authority(_message.Message):
    __slots__ = ("name", "roots", "issuing")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    ISSUING_FIELD_NUMBER: _ClassVar[int]
    name: str
    roots: _containers.RepeatedScalarFieldContainer[bytes]
    issuing: bytes
    def __init__(self, name: _Optional[str] = ..., roots: _Optional[_Iterable[bytes]] = ..., issuing: _Optional[bytes] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("join_token", "node_name")
    JOIN_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NODE_NAME_FIELD_NUMBER: _ClassVar[int]
    join_token: str
    node_name: str
    def __init__(self, join_token: _Optional[str] = ..., node_name: _Optional[str] = ...) -> None: ...

class RenewRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HealthReport(_message.Message):
    __slots__ = ("unhealthy", "wait")
    UNHEALTHY_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    unhealthy: _containers.RepeatedCompositeFieldContainer[Unhealthy]
    wait: bool
    def __init__(self, unhealthy: _Optional[_Iterable[_Union[Unhealthy, _Mapping]]] = ..., wait: _Optional[bool] = ...) -> None: ...

class Unhealthy(_message.Message):
    __slots__ = ("uid", "reason")
    UID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    uid: str
    reason: str
    def __init__(self, uid: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class HealthReply(_message.Message):
    __slots__ = ("settled",)
    SETTLED_FIELD_NUMBER: _ClassVar[int]
    settled: bool
    def __init__(self, settled: _Optional[bool] = ...) -> None: ...

class NodeCredential(_message.Message):
    __slots__ = ("node_token", "expires_at")
    NODE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    node_token: str
    expires_at: int
    def __init__(self, node_token: _Optional[str] = ..., expires_at: _Optional[int] = ...) -> None: ...
