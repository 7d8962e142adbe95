"""What a build's own interpreter runs to be measured in turns: scripts that import nothing of the build that gates."""
