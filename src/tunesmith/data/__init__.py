"""Data: files to conversations to token ids to batches."""
