"""What the root tests share: captures, decryption, peers, waits and evidence of failures."""
