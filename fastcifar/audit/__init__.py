"""What is wrong with a dataset: duplicates, leaks between its splits, wrong labels, odd images."""
