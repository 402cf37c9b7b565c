"""The production scheduler in virtual time: against fakes that fail, and on workloads to compare policies with."""
