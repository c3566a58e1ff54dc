.PHONY: help demo test check docs bench torture soak

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 12

demo: ## see taskq at work, with nothing set up
	@sh scripts/demo

test: ## run all tests on private servers; ARGS="tests/unit -x"
	@sh scripts/test $(ARGS)

check: ## lint, format, types, documentation
	@sh scripts/check

docs: ## build the documentation into docs/_build/html
	@sh scripts/python -m sphinx -q -W -b html docs docs/_build/html

bench: ## compare speed and memory with other task queues on this machine
	@sh scripts/bench $(ARGS)

torture: ## cause faults on private servers for 30 minutes; ARGS="--minutes 3"
	@sh scripts/python benchmarks/torture.py $(ARGS)

soak: ## run 1,000,000 tasks and watch the memory, then 200,000 events through killed bridges; ARGS="--tasks 20000"
	@sh scripts/python benchmarks/soak.py $(ARGS)
	@SOAK=1 sh scripts/python -m pytest -s tests/integration/test_kafka_faults.py
