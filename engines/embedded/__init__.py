"""A small torch engine that speaks SGLang's HTTP dialect, so that the whole system runs and is tested without a GPU."""
