"""Looking at stores: what is in one, and whether all of it is still as it was written."""
