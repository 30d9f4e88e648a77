"""What `docker woodfrog` does: it drives Docker's own client, and the runtime behind it."""
