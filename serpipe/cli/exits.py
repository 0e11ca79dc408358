"""Exit codes a job can act on; 0 is done."""

EXIT_BROKEN, EXIT_USAGE, EXIT_QUARANTINE = 1, 2, 3
