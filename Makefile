.PHONY: help dev test test-matrix bench bench-long package package-check deploy nightly lint fmt

ENV = dev
export ARCH = x86_64

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

bench: ## the release binaries beside the raw client and the usual way: printed, nothing is written
	cargo build --release --workspace --bins
	target/release/bench

bench-long: ## the same and 100,000 calls more, whether memory grows; writes docs/bench.* and README's table; fails if a promise is missed by over 20 %
	cargo build --release --workspace --bins
	target/release/bench --long

package: ## each function's package for Lambda: target/lambda/<function>/bootstrap.zip (ARCH=arm64 for the other processor)
	.ci/package

package-check: ## what packages ask for, their size, the smoke test with them; one of them is compiled twice, to the same bytes
	.ci/package
	.ci/package-check --twice

deploy: ## the stack of ENV (dev, staging or production, see samconfig.toml) on AWS
	.ci/sam build --config-env $(ENV)
	.ci/sam deploy --config-env $(ENV)

lint: ## format, clippy, compose.yaml, the AWS template, workflows, the benchmark's table, licences and versions of dependencies
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo check --quiet --workspace --no-default-features
	infra/local/check-compose.sh
	infra/check
	cargo run --quiet --bin bench -- --check
	$$(.ci/venv check-jsonschema)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yml
	.ci/check-dependencies

nightly: ## what .ci/run does and what takes too long for it: all packages, sam build, all versions of Kafka
	.ci/nightly

fmt: ## format everything
	cargo fmt --all
