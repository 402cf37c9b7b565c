"""How a TOML file becomes a `Config`: shape (types), rules (what types cannot say), premises (what the machine must have)."""
