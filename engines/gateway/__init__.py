"""The HTTP front of one pipeline: a URL that never changes, requests to engines that may come and go."""
