"""The gate: whether a candidate does the same work at the same cost as its baseline."""
