"""Head and TSEs -> numbers, pictures, labels. All that the commands print comes from functions as data."""
