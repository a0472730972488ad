"""Pure rendering: values of the mesh in, nft text out; each text is one atomic transaction."""
