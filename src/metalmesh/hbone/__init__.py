"""HBONE: HTTP/2 CONNECT over mutual TLS, as a sans-IO core (RFC 9113 section 8.5).

The caller brings decrypted bytes and the time; frames to send gather in a buffer that the
caller encrypts and writes. Nothing here touches a socket, a clock or a log.

- :mod:`.frames` numbers and builders of frames
- :mod:`.buffers` the buffers frames are written to
- :mod:`.stream` one CONNECT stream and its windows
- :mod:`.writer`, :mod:`.reader`, :mod:`.mux` one connection: sending, receiving, control
- :mod:`.headers`, :mod:`.baggage` what a CONNECT request and its answer say
"""
