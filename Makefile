# What there is to do here. CI runs these targets and nothing else.
.DEFAULT_GOAL := help
SHELL := /bin/bash
CARGO ?= cargo
# Arguments for `make run`, as in: make run ARGS="--data /tmp/x --log info"
ARGS ?=

.PHONY: help run demo build test test-faults test-ha test-long test-abuse test-readers test-model test-providers test-stock test-sagas test-histories test-projections test-adding-a-service test-compose lint fmt bench ci docs deps deployment clean up down logs smoke stack load

help: ## Show this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: ## Build and run everything in one process, with SQLite and the embedded bus
	@exec $(CARGO) run --release --locked --bin lastro -- up $(ARGS)

demo: ## Fill ./demo-data with a month of a small shop's life, and serve it
	$(CARGO) build --release --locked --bin lastro --bin lastro-demo
	@$(CARGO) run --quiet --release --locked --bin lastro-demo -- --data demo-data
	@exec $(CARGO) run --quiet --release --locked --bin lastro -- up --data demo-data $(ARGS)

build: ## Build everything
	$(CARGO) build --workspace --all-targets --locked

deps: ## Install what the tests need and do not find: PostgreSQL, Redis, Python with grpcio, grpcurl
	@tools/test-deps

test: deps ## Unit tests and journeys, on SQLite and on real PostgreSQL and Redis
	$(CARGO) build --locked --bin lastro
	. tools/test-env && $(CARGO) test --workspace --locked

test-faults: deps ## kill -9 under load, 20 times on each database; databases and Redis stopped under load
	$(CARGO) build --locked --bin lastro
	. tools/test-env && LASTRO_FAULT_ROUNDS=$${LASTRO_FAULT_ROUNDS:-20} $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture faults::

test-ha: deps ## Replicas killed, frozen and restarted, stores stopped, nginx reloaded: under load through nginx, on the stack without Docker
	$(CARGO) build --locked --bin lastro
	. tools/test-env && $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture ha::

test-abuse: deps ## Attackers beside payers, behind nginx and past it: what the others notice, in percent and as a ratio
	$(CARGO) build --locked --bin lastro
	. tools/test-env && $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture --test-threads=1 abuse::

test-readers: deps ## A reader of 200,000 operations: with an empty Redis, trimmed and deleted entries, kill -9 every second, in another cluster
	$(CARGO) build --locked --bin lastro --bin lastro-reader
	. tools/test-env && $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture readers::

test-model: deps ## Everything that money does against a model, with crashes: random sequences on SQLite and PostgreSQL
	$(CARGO) build --locked --bin lastro
	. tools/test-env && LASTRO_MODEL_CASES=$${LASTRO_MODEL_CASES:-120} $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture model::

test-providers: deps ## Providers at their worst, with kill -9: events in any order, a payment provider that loses answers; both databases
	$(CARGO) build --locked --bin lastro
	. tools/test-env && LASTRO_PROVIDER_ROUNDS=$${LASTRO_PROVIDER_ROUNDS:-6} $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture providers::

test-stock: deps ## The stock aggregate against a model, with kill -9, on both databases
	$(CARGO) build --locked --bin lastro
	. tools/test-env && LASTRO_STOCK_CASES=$${LASTRO_STOCK_CASES:-40} $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture stock_sequences::

test-sagas: deps ## Sagas whose every call fails in every way, with kill -9 and paused replicas, on both databases
	$(CARGO) build --locked --bin lastro --bin lastro-faulty
	. tools/test-env && $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture broken_sagas::

test-histories: deps ## What 32 clients see on two replicas under kill -9, checked for linearizability by porcupine
	$(CARGO) build --locked --bin lastro
	. tools/test-env && $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture histories::

test-projections: deps ## Reports under an adversary, compared row by row with reports from scratch
	$(CARGO) build --locked --bin lastro
	. tools/test-env && $(CARGO) test --locked -p lastro-tests --test journeys -- --ignored --nocapture --test-threads=1 projections::

test-adding-a-service: deps ## Follow docs/ADDING-A-SERVICE.md word by word in a copy of the checkout, and try the service
	tools/test-adding-a-service

test-long: test-faults test-ha test-abuse test-readers test-model test-providers test-stock test-sagas test-histories test-projections test-adding-a-service ## The long suites whole: faults, replicas under load, attackers, readers, models, histories

test-compose: deps ## The stack of compose.yaml for real: built, started, tried, loaded, ended
	tools/test-compose

up: ## Build and start the local stack in Docker: every service twice, behind nginx on https://localhost:8443
	@tools/up

down: ## End the local stack; its data stays
	docker compose down

logs: ## Follow the logs of the local stack
	docker compose logs --follow

smoke: ## The REST and gRPC journeys against the local stack, through nginx
	@tools/smoke

stack: deps ## The same stack without Docker, on free ports, until Ctrl-C
	$(CARGO) build --release --locked --bin lastro --bin lastro-stack
	@exec $(CARGO) run --release --locked --bin lastro-stack

load: ## ghz and h2load against what is up: calls per second, p50, p95, p99
	@tools/load

deployment: ## Write compose.yaml, the template of nginx and the names for scripts anew, from the list of services
	$(CARGO) run --locked --bin lastro -- deployment .

lint: ## Formatting and clippy, warnings denied
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets --locked -- -D warnings

fmt: ## Format
	$(CARGO) fmt --all

bench: deps ## Settled transfers beside pgbench on one PostgreSQL, and more; prints ratios
	$(CARGO) build --release --locked --bin lastro --bin lastro-bench
	. tools/test-env && exec $(CARGO) run --release --locked --bin lastro-bench -- $(ARGS)

docs: ## Documentation of the crates
	$(CARGO) doc --workspace --no-deps --locked

ci: lint test ## What CI runs
	LASTRO_FAULT_ROUNDS=3 $(MAKE) test-faults
	LASTRO_MODEL_CASES=8 $(MAKE) test-model
	LASTRO_PROVIDER_ROUNDS=1 $(MAKE) test-providers
	LASTRO_STOCK_CASES=3 $(MAKE) test-stock
	LASTRO_SAGA_SHARE=15 $(MAKE) test-sagas
	LASTRO_HISTORY_SECONDS=8 $(MAKE) test-histories
	LASTRO_PROJECTION_EVENTS=2000 LASTRO_LEDGER_OPERATIONS=5000 $(MAKE) test-projections
	LASTRO_HA_ONLY="one after the other" $(MAKE) test-ha
	LASTRO_ABUSE_SECONDS=2 $(MAKE) test-abuse
	LASTRO_READER_OPERATIONS=5000 $(MAKE) test-readers

clean: ## Remove what was built
	$(CARGO) clean
