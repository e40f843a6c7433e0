#!/bin/sh
# Write tests/foreign/reference/lerobot/ again with the real LeRobot, in an environment of its own: LeRobot 0.4.4 needs
# torch < 2.11 and so cannot live beside this project. About 6 GB on disk, as that torch comes with CUDA.
# kinoflow bench --peers --lerobot takes the Python of the same environment.
# Usage: tests/parity/lerobot.sh [FOLDER_OF_THE_ENVIRONMENT]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
environment=${1:-$(mktemp -d)/lerobot}
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet lerobot==0.4.4 torch==2.6.0 torchvision==0.21.0
fi
PYTHONPATH="$here/../foreign" "$environment/bin/python" "$here/lerobot_reference.py" "$here/../foreign/reference/lerobot"
