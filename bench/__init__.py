"""Measurements: what something costs, beside something else. `bin/bench` lists them, `bin/bench NAME` runs one; docs/figures.md has the figures.

`campaigns/` has what is counted instead of measured (`bin/check --long`), `findings/` what users found, to be had again (`bin/bench finding`).
Benches stand on `tests/harness`.
"""
