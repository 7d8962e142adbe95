"""The reference trainer: reinforcement learning in any thinking environment, in a few files to read in an evening."""
