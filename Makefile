# Two commands for a newcomer: `make quickstart` and `make test`. Each sets up .venv itself, again only when pyproject.toml changed.
PYTHON ?= python3
BIN := .venv/bin
CORE := .venv/.core
ALL := .venv/.all
OLDEST := .venv-oldest/.all
RUN := runs/quickstart
PIP := -m pip install --quiet --disable-pip-version-check

# Two threads where one process trains; tests take one, because two of them run at a time.
export OMP_NUM_THREADS ?= 2
# glibc keeps what a step gives back instead of returning it to the kernel and asking for it again: a fifth of the time on a CPU.
export MALLOC_TRIM_THRESHOLD_ ?= 1000000000
export MALLOC_MMAP_THRESHOLD_ ?= 33554432

.PHONY: quickstart test test-slow test-portable bench-smoke verify claims docs lint clean

quickstart: $(CORE)
	rm -rf $(RUN) $(RUN)-detect
	$(BIN)/convzoo train tinydarknet-digits --out $(RUN)
	$(BIN)/convzoo eval $(RUN)/checkpoints/last.safetensors --out $(RUN)/eval-last
	$(BIN)/convzoo data save digits --split val --count 24 --out $(RUN)/pictures
	$(BIN)/convzoo predict $(RUN)/checkpoints/last.safetensors $(RUN)/pictures --save $(RUN)/annotated
	$(BIN)/convzoo train yolov3-digits --out $(RUN)-detect
	$(BIN)/convzoo data save digit_scenes --split val --count 24 --out $(RUN)-detect/pictures
	$(BIN)/convzoo predict $(RUN)-detect/checkpoints/last.safetensors $(RUN)-detect/pictures --save $(RUN)-detect/annotated
	@echo
	@echo "Look at:  $(RUN)/README.md                 what this run did and measured"
	@echo "          $(RUN)/plots/                    loss, accuracy and learning rate"
	@echo "          $(RUN)/eval-last/                confusion matrix, per-class table, worst images"
	@echo "          $(RUN)/annotated/overview.png    the predictions just made"
	@echo "          $(RUN)-detect/...                the same of a detector; its predictions in annotated/overview.png"
	@echo "And in a browser, curves, confusions, pictures and what speaks for the answers:"
	@echo "          $(RUN)-detect/report.html"
	@echo "          $(RUN)/report.html"

test: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --durations=20

test-slow: $(ALL)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m slow

# The suite as other machines compute it: older instructions, two threads, the oldest PyTorch. A setting that passed is not run again.
test-portable: $(ALL) $(OLDEST)
	$(BIN)/python tests/portable.py

# Every benchmark for seconds, one on each core, so that none can rot; its numbers mean nothing.
bench-smoke: $(ALL)
	$(BIN)/python benchmarks/smoke.py

# Measure the published numbers again; `make claims` writes the documents' tables from what was recorded.
verify: $(ALL)
	$(BIN)/python -m claims

claims: $(ALL)
	$(BIN)/python -m claims --write

# The import graph in docs/architecture.md, from the code.
docs: $(ALL)
	$(BIN)/python tests/import_graph.py --write

lint: $(ALL)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

$(CORE): pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"convzoo needs Python 3.11 or newer, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) -e .
	touch $@

$(ALL): $(CORE)
	$(BIN)/python $(PIP) -e '.[all]'
	touch $@

$(OLDEST): pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python $(PIP) 'torch==2.10.*' 'torchvision==0.25.*' -e '.[all]'
	touch $@

clean:
	rm -rf .venv .venv-oldest runs build *.egg-info
