"""What the tests with real SGLang share.

`served.py` starts one engine of any kind (embedded, scripted, real) behind one face, so that a case is the same for all; `asking.py` asks it as the
gateway does; `models.py` makes tiny models that SGLang serves; `ep_group.py` is an expert-parallel group under a supervisor, `ep_trainer.py` its trainer.
The environment is named by TRAINSHED_SGLANG (`bin/sglang-cpu` makes it); without it the cases for the real engine are skipped.
"""
