"""What leaves tunesmith: models in the formats of other programs, each compared with what it was made from."""
