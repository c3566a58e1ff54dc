.PHONY: help demo test check docs bench

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
