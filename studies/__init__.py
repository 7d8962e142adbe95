"""One file a question: scripts that measure something and say what they found."""
