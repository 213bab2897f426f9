.PHONY: help dev test test-matrix bench bench-long deploy lint fmt

ENV = dev

help: ## this list
	@sed -n 's/^\([a-z-]*\): ## \(.*\)/make \1	\2/p' Makefile

dev: ## the local stack and the functions at their routes, until Ctrl-C
	cargo build --workspace
	cargo run --quiet --bin dev

test: ## everything, on a real Kafka and a real Keycloak
	cargo build --workspace
	cargo test --workspace

test-matrix: ## the tests that concern Kafka, on Kafka 2.8, 3.2, 3.9 and 4.1: a line a version
	cargo build --workspace
	cargo test --workspace --no-run
	.ci/test-matrix

bench: ## the release binaries beside the raw client and the usual way: a table, docs/bench.md and docs/bench.svg
	cargo build --release --workspace --bins
	target/release/bench

bench-long: ## the same, and 100,000 calls more to each function, to see that its memory does not grow
	cargo build --release --workspace --bins
	target/release/bench --long

deploy: ## the stack of ENV (dev, staging or production, see samconfig.toml) on AWS
	.ci/sam build --config-env $(ENV)
	.ci/sam deploy --config-env $(ENV)

lint: ## format, clippy, compose.yaml, the AWS template, licences and versions of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	infra/local/check-compose.sh
	infra/check
	.ci/check-dependencies

fmt: ## format everything
	cargo fmt --all
