"""Generations of pseudo-labels: calibrate, agree, select, balance, record; train, judge and go around again."""
