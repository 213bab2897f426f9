#!/bin/sh
# Checks compose.yaml with the engine's own parser, or against the Compose specification's schema where there is none.
set -eu
cd "$(dirname "$0")"

if docker compose version >/dev/null 2>&1; then
    docker compose -f compose.yaml config --quiet
else
    venv=../../.local/check-jsonschema-0.39.0
    if [ ! -e "$venv/installed" ]; then
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check check-jsonschema==0.39.0
        touch "$venv/installed"
    fi
    "$venv/bin/check-jsonschema" --builtin-schema vendor.compose-spec compose.yaml
fi
