"""Pages to look at: one HTML file without network that shows runs, comparisons and how completions were unmasked."""
