"""Schemas, layout, commits, ledger, quarantine."""
