"""Wire messages. ``*.proto`` are the sources; ``make proto`` regenerates ``*_pb2.py`` and ``.pyi``.

Field numbers are Istio's (istio-facts 3.3, 3.4, 4, 9.1), so that the real components understand us.
"""
