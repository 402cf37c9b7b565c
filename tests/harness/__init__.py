"""What tests, benches and campaigns share: stand-ins for each neighbour of the part under test, and runs in real processes.

A test puts the part it means between stand-ins, and uses the real thing for the rest. No module of ours imports the harness, and the harness may
import all of them. What two test files need stands here or in a conftest, never in one of the two.

Four stand-ins speak SGLang's dialect, each because the others cannot do what it does:

- the *embedded engine* (`engine_process.py` starts it from a fork server, 0.1 s each) computes a real model: what is said about tokens and
  log-probabilities, bit for bit, is said of it;
- `scripted_engine.py` (inside the test, or a process in 100 ms) makes the next token from a hash of all before: a lost, doubled or swapped token
  shows. It has knobs for time and failure of single answers. The gateway is tested with it;
- `faulty_engine.py` (a process in 20 ms, through `faulty_python` and `faulty_lean.py`) is a member of a *group*: rendezvous, followers, memory
  that can be measured, and SGLang's traps as they are. Recovery is tested with it, thousands of starts at a time;
- `fast_engine.py` sends prepared bytes: it costs next to nothing, so that what stands before it can be measured.

Their behaviour was seen on SGLang 0.5.23: `tests/sglang/test_conformance.py` puts the same questions to the embedded engine, the scripted one and the
real one, and `test_traps.py` and `test_deaths.py` look for each trap of the faulty one on the real one (`bin/test --sglang`).

The driver and the cards: `gpu_box.py` writes a scripted box (profiles from published figures), `scripted_nvml.c` is its `libnvidia-ml.so.1`,
`scripted_cuda.c` as much of `libcuda.so.1` as `doctor` calls, `gpu_allocations.py` is how engines and trainers hold memory there, `gpu_run.py` runs
two pipelines on it.

Other neighbours:

- of the scheduler: `checked_scheduler.py` (a world that answers every action at once and well), `scheduler_bench.py` (a test speaks for trainers and
  gateways, and holds answers back), `scheduler_driver.py` (the same around one pipeline's engines), `wild.py` (children that say anything),
  `boxes.py` (the boxes that simulations run on), `planner_views.py` (what a planner is shown), `defaults.py` (limits);
- of a trainer: `fake_supervisor.py` (real socket pairs and HTTP, no scheduler), `sampler.py` (samples from the newest snapshot);
- of a gateway: `dispatch_driver.py` (its core alone, in virtual time), `gateway_box.py` (the process, its supervisor's end and a client), `answers.py`
  (which answers every way of asking must give);
- of a supervisor: trainers that compute nothing or little, `faulty_trainer.py`, `publishing_trainer.py`, `clumsy_trainer.py`, `agent_trainer.py`,
  `launched_trainer.py`, and
  `verifiers.py`.

Hostile texts: `hostile_frames.py` makes them and knows every reader of ours; `hostile_sockets.py` sends them over real sockets.

Whole runs: `supervised_run.py` starts one as a user does (`tiny.toml`), watches it and hurts it from outside; `faulty_run.py` does so with faulty
engines and a trainer that checks every token; `concurrent_cases.py` plays several at a time; `tiny_model.py` makes a model; `sglang/` has what needs
the real one.

About the tests and the house: `mutation.py` plants a bug in a copy and sees that named tests fail (`scheduler_mutants.py` is a table of bugs);
`import_graph.py` draws the rooms.
"""
