.PHONY: dev test lint fmt

dev: ## the local stack and the functions at their routes, until Ctrl-C
	cargo build --workspace
	cargo run --quiet --bin dev

test: ## everything, on a real Kafka and a real Keycloak
	cargo build --workspace
	cargo test --workspace

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	infra/local/check-compose.sh

fmt:
	cargo fmt --all
