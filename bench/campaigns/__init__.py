"""Counted campaigns: many cases of one kind, each written down when it is done, so that an interrupted campaign goes on where it was.

`bin/check --long NAME` plays one: `simulation` (seeds of the whole system in virtual time), `episodes` (faults in real processes), `drains` and `greedy` (no
sample is lost or changed, on real engines), `leftovers` (guardian and
supervisor killed above daemons: nothing is left), `kills` and `identity` (a run hurt, or beside another, learns the same), `mutants` (each defence is needed).
`harness/` has what they share. docs/figures.md says how many cases were played, and when.
"""
