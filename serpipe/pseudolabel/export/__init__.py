"""Kept pseudo-labels as training sets that other people's trainers load as they are."""
