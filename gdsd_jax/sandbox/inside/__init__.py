"""What runs inside bubblewrap: plain modules that import only each other, by their bare names."""
