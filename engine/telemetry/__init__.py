"""Who watches a run from outside: Prometheus, health checks, systemd, logs."""
