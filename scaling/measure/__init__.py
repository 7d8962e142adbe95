"""Runs cells on an engine and leaves a row for every repeat, while telemetry watches."""
