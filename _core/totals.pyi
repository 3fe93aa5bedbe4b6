"""The combined columns of a group: compiled code only."""
