"""SGLang as an engine: how it is launched. How it is spoken to is `engines.control`'s, which knows no other dialect."""
