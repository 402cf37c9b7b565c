"""One engine: what it is called, what it may do next, how it is driven, and a small one of our own."""
