"""From a file to segments: decode, resample, cut, measure."""
