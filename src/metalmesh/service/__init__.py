"""What every service shares: systemd, logs, metrics, a small HTTP server, the xDS client."""
