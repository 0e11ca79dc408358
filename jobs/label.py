"""Label an archive as a cluster job: the arguments of `serpipe label`.

Example:
    ray job submit --working-dir . -- python jobs/label.py s3://bucket/archive s3://bucket/store --segment vad
"""

from __future__ import annotations

import sys

from serpipe.cli import main

if __name__ == "__main__":
    main(["label", *sys.argv[1:]])
