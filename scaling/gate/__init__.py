"""Regression gates: `check` compares two runs by what is deterministic, `ab` two builds by their speed."""
