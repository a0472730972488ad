"""The embedded lab: systemd-nspawn machines wired like a small data centre."""
