"""A data worker of the ztunnel: one process, one thread, one epoll loop, all the bytes.

- :mod:`.loop` the event loop; :mod:`.logs` batched log lines; :mod:`.metrics` counters
- :mod:`.tls`, :mod:`.certificates` mutual TLS around the HBONE core
- :mod:`.tunnel`, :mod:`.pipe` copying between sockets and streams, and between sockets
- :mod:`.outbound`, :mod:`.pool` capture of what a workload sends
- :mod:`.inbound`, :mod:`.plaintext` what reaches a workload
- :mod:`.workloads` local workloads with policies; :mod:`.app` the process

Imports neither asyncio nor grpc, protobuf or cryptography: a worker stays small.
"""
