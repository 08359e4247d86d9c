# Two commands for a newcomer, on Debian 12 or newer with python3, git and make:
#   make demo    sets up what is missing and runs the main job, end to end
#   make test    sets up what is missing and runs all tests
# All set-up is in the package (`tenure setup`); this file only makes .venv, in which the command is.
# Without root, `sudo -n` is used where root is needed: run `sudo -v` first if sudo asks for a password.

SHELL := /bin/bash
PYTHON ?= python3
ROOT := $(shell [ "$$(id -u)" = 0 ] || echo sudo -n --preserve-env=TENURE_HOME,TENURE_PORT,TENURE_SSH_PORT,TENURE_SSH_HOST,TENURE_S3_PORT,TENURE_POOL_GB,TENURE_DATABASE_URL,TENURE_TEST_HOME,http_proxy,https_proxy,no_proxy,SSL_CERT_FILE)
TENURE := $(ROOT) .venv/bin/tenure
READY := .venv/.installed
TENURE_TEST_HOME ?= /var/lib/tenure-test
TEST_POOL_GB := 20

.PHONY: setup demo test s3-tests bench lint lock clean-test
.DEFAULT_GOAL := setup

setup: $(READY)
	$(TENURE) setup

demo: setup
	$(TENURE) demo

test: lint
	@command -v rsync >/dev/null || { $(ROOT) apt-get -q update && $(ROOT) apt-get -q -y install --no-install-recommends rsync; }
	$(ROOT) env TENURE_HOME="$(TENURE_TEST_HOME)" TENURE_POOL_GB=$(TEST_POOL_GB) .venv/bin/tenure setup
	$(ROOT) env TENURE_TEST_HOME="$(TENURE_TEST_HOME)" .venv/bin/python -m pytest $(ARGS)

s3-tests: ## conformance of the S3 API: make s3-tests S3_TESTS=/path/to/a/checkout/of/ceph/s3-tests
	.venv/bin/python tests/s3_conformance.py $(S3_TESTS) $(ARGS)

bench: setup
	$(ROOT) .venv/bin/python benchmarks/run.py $(ARGS)

lint: $(READY)
	.venv/bin/ruff check src tests benchmarks
	.venv/bin/ruff format --check src tests benchmarks
	.venv/bin/basedpyright

# Writes both locks anew: newest versions that are allowed, with the hashes of every file of each.
lock:
	uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file requirements.lock
	uv pip compile benchmarks/requirements.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--output-file benchmarks/requirements.lock
	uv pip compile tests/clients.in --universal --python-version 3.11 --generate-hashes \
		--no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" --output-file tests/clients.lock

# Unmounts and deletes what tests have made (image included).
clean-test:
	$(ROOT) umount "$(TENURE_TEST_HOME)/pool" || true
	$(ROOT) rm -rf --one-file-system "$(TENURE_TEST_HOME)"

$(READY): requirements.lock pyproject.toml | .venv/bin/pip
	@echo "→ installing the Python packages of requirements.lock into .venv (half a minute)"
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tenure needs Python 3.11 or newer; set PYTHON=/path/to/python3." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "→ installing the Debian package python3-venv (python3 here cannot make virtual environments)"; \
		$(ROOT) apt-get -qq update </dev/null && \
		$(ROOT) env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends python3-venv </dev/null >/dev/null; }
	@echo "→ making .venv"
	@$(PYTHON) -m venv .venv
