"""Results in, figures, tables and pages out; runs nothing."""
