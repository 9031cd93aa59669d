#!/usr/bin/env bash
# Makes the environment if there is none, then trains: ./train.sh, ./train.sh example=mini, ./train.sh env=NAME key=value ...
set -u
. "$(dirname "${BASH_SOURCE[0]}")/.ci/environment.sh" ""
exec "$PYTHON" -m simplewan train "$@"
