"""What meterd tells about itself: log lines and metrics, the names of both in one place."""
