"""One trainer: what it says to the supervisor, what training code imports, and a built-in GRPO trainer."""
