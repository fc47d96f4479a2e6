"""What a run did, for people to read."""
