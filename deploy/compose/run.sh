#!/bin/sh
# Creates the run where it is not there yet, shows it through to its end, and writes what came of it to /results.
set -eu

found=0
said=$(fednano run get "$RUN" --timeout 600 2>&1 >/dev/null) || found=$?
case $found in
    0) echo "$RUN is there already: going on with it" ;;
    # 3: there is no such run.
    3) fednano run create "$RUN" --timeout 600 --title "docker compose" --server "$FEDNANO_SERVER" \
        --rounds "$ROUNDS" --client-fraction 1 --min-available-clients "$MIN_CLIENTS" --min-updates "$MIN_CLIENTS" \
        --evaluate-every 2 --seed "$SEED" ;;
    *) echo "$said" >&2; exit "$found" ;;
esac
fednano run watch "$RUN"
fednano adapter export "$RUN" --out /results/adapter.safetensors
fednano run export "$RUN" --format csv --out /results/history.csv
