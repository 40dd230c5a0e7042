"""The engine of comparisons: runs, where they run, what is written down of them."""
