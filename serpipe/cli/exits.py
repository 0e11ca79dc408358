"""Exit codes a job can act on; 0 is done."""

EXIT_BROKEN, EXIT_USAGE, EXIT_QUARANTINE, EXIT_REFUSED = 1, 2, 3, 4
