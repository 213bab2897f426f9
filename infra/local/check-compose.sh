#!/bin/sh
# Checks compose.yaml with the engine's own parser, or against the Compose specification's schema where there is none.
set -eu
cd "$(dirname "$0")"

if docker compose version >/dev/null 2>&1; then
    docker compose -f compose.yaml config --quiet
else
    bin=$(../../.ci/venv check-jsonschema)
    "$bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml
fi
