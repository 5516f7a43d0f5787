"""Raw data in; checked, split, deduplicated, tokenised rows out. See README.md."""
