"""Where a connection goes: the mesh's state, lookup and endpoint choice; pure."""
