"""`python -m serpipe`: the command line where no script is on the path, as in a job of a cluster."""

from __future__ import annotations

from serpipe.cli import main

if __name__ == "__main__":
    main()
