#!/bin/sh
# Write tests/foreign/reference/robomimic/ again with the real robomimic, in an environment of its own (about 6 GB on
# disk: torchvision needs the torch with CUDA). robomimic 0.5 pins a diffusers that cannot live beside this project; the
# commit is the first one that does not download a language model when it is imported.
# Usage: tests/parity/robomimic.sh [FOLDER_OF_THE_ENVIRONMENT] [SOURCE_OF_ROBOMIMIC]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
environment=${1:-$(mktemp -d)/robomimic}
source=${2:-git+https://github.com/ARISE-Initiative/robomimic@d309eaecc18acf4152a830a895a6984b8ac71b05}
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --index-url https://pypi.org/simple torch==2.13.0 torchvision==0.28.0 \
        diffusers==0.11.1 huggingface_hub==0.23.4 transformers==4.41.2 'numpy<2.5' setuptools \
        h5py psutil tqdm termcolor tensorboard tensorboardX imageio imageio-ffmpeg matplotlib six packaging
    "$environment/bin/pip" install --quiet --no-deps --no-build-isolation "$source"
fi
PYTHONPATH="$here/../foreign" "$environment/bin/python" "$here/robomimic_reference.py" "$here/../foreign/reference/robomimic"
