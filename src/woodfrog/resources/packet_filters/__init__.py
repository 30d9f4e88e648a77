"""Rules for packets that programs made in the container's own network namespace."""
