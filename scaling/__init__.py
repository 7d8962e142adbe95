"""What long thinking costs, and whether chunked thinking pays: measure, fit and predict LongCoT and Delethink."""
