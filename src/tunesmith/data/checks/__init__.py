"""What is wrong with data before anything is trained on it: every row read, every complaint with its lines, a reason and a remedy."""
