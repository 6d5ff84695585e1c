.PHONY: setup quick test lint types run bench fit gallery findings

BIN := .venv/bin

setup:            ## environment with everything a developer needs
	python3 -m venv .venv
	$(BIN)/pip install -q -e ".[dev]"

quick:            ## what takes seconds
	$(BIN)/pytest -q -m "not slow and not bench and not browser and not packaging"

test:             ## everything
	$(BIN)/pytest

lint:             ## style, format and the layers of the house
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types:
	$(BIN)/mypy

run:              ## the main scenario
	$(BIN)/ghostsim run cxl_pim

bench:            ## speed of the engine and of a whole run
	$(BIN)/pytest -q -s -n 0 -m bench

fit:              ## every fitted constant, from the reference tables
	$(BIN)/python -m ghostsim.accuracy.fit

gallery:          ## finished reports of the bundled scenarios, with pictures
	$(BIN)/python reports/gallery.py

findings:         ## the questions of the concept, answered again; goes on where it was stopped
	$(BIN)/ghostsim findings --out reports/gallery/findings --force
