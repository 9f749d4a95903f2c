#!/usr/bin/env bash
# Makes an environment with the last TRL that has PPOTrainer.step, and transformers 4, and runs klguard's tests of it
# there: they cannot share one with the TRL of today. TRL 0.11.4 does not name numpy 2 or torch 2.13, and runs with
# both. Usage: tests/environments/trl_classic.sh [directory of the environment] [arguments of pytest]
set -euo pipefail
cd "$(dirname "$0")/../.."

environment=${1:-$(mktemp -d)}
shift || true
[ -x "$environment/bin/python" ] || "${PYTHON:-python3}" -m venv "$environment"
"$environment/bin/python" -m pip install --quiet \
  'torch==2.13.0' 'numpy>=2,<3' 'trl==0.11.4' 'transformers==4.46.3' 'accelerate==1.1.1' 'datasets>=3' \
  'rich>=13' 'pytest>=8' 'pytest-xdist>=3.6' -e .
"$environment/bin/python" -m pytest -p no:cacheprovider tests/guard/test_frameworks_trl_classic.py "$@"
