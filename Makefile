# Two commands do everything: `make reproduce` and `make test`. Needs python3 >= 3.11, make and a package index.
#
#   make reproduce [PROFILE=smoke|laptop|gpu|paper] [SEEDS=1]   the five notebooks here, then the recorded rows beside
#   make test [JOBS=2] lint, unit tests, every notebook cold at smoke, the committed notebooks against their outputs
#   make faults        sweeps, clocks and figures killed at any moment, a full disk: nothing is lost (half an hour)
#   make lab           JupyterLab on the notebooks
#   make site          the static book in build/site, which works without a network (needs npm for its formulae)
#   make costs         count every compressor anew: vtc/cost/compressors.json, after a change of one or of a tower
#   make venv          .venv alone;  make constraints  the pins anew, by a tool;  make clean  forget runs/

PROFILE ?= laptop
PYTHON ?= python3
JOBS ?= 2
BIN := .venv/bin
READY := .venv/.installed

.PHONY: reproduce test faults lab site costs venv constraints clean

reproduce: $(READY)
	$(BIN)/vtc reproduce --profile $(PROFILE) $(if $(SEEDS),--seeds $(SEEDS))

test: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal tests
	runs=$$(mktemp -d) && trap 'rm -rf "$$runs"' EXIT && VTC_RUNS=$$runs OMP_NUM_THREADS=1 \
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --nbval --nbval-sanitize-with notebooks/sanitize.cfg \
	--nbval-kernel-startup-timeout 600 notebooks

faults: $(READY)
	$(BIN)/python tests/faults.py

lab: $(READY)
	$(BIN)/jupyter lab notebooks

site: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,test,site]'
	rm -rf build/book build/site && mkdir -p $(addprefix build/book/,notebooks extra figures models/quecc static/mathjax)
	cp -r docs/*.md docs/conf.py docs/drawings build/book/ && cp -r figures/. build/book/figures/
	cp models/quecc/README.md build/book/models/quecc/
	for notebook in notebooks/*.ipynb; do sed 's#(\.\./docs/#(../#g' $$notebook > build/book/$$notebook; done
	cp figures/laptop/planner.html build/book/extra/planner_page.html && cp docs/site.* docs/icon.svg build/book/static/
	npm install --silent --no-audit --no-fund --prefix build/npm mathjax@4
	cp -r build/npm/node_modules/mathjax/tex-svg.js build/npm/node_modules/mathjax/a11y build/book/static/mathjax/
	$(BIN)/sphinx-build -W --keep-going -q -b html build/book build/site
	@echo "open build/site/index.html"

costs: $(READY)
	$(BIN)/python -m vtc.cost.measure

venv: $(READY)

# made anew when the pins change; the stamp comes last, so an interrupted set-up is taken up again
$(READY): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	{ echo "$(PYTHON) is older than 3.11: give a newer one, make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[lab,test]'
	@touch $@

constraints: $(READY)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip compile pyproject.toml --extra lab --extra site --extra test --extra llm --universal --python-version 3.11 --no-annotate \
	--no-emit-index-url --no-emit-find-links --custom-compile-command 'make constraints' --quiet -o constraints.txt

clean:
	rm -rf runs
