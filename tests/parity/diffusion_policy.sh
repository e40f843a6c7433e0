#!/bin/sh
# Write tests/foreign/reference/diffusion_policy/ again with the real diffusion_policy, in an environment of its own
# (about 6 GB on disk: torchvision needs the torch with CUDA). Its image policies take their encoder from robomimic 0.2.
# diffusers is newer than the one it was published with, whose DDIM sampler takes a predicted sample for noise.
# Usage: tests/parity/diffusion_policy.sh [FOLDER_OF_THE_ENVIRONMENT] [CHECKOUT_OF_DIFFUSION_POLICY]
set -eu
here=$(cd "$(dirname "$0")" && pwd)
environment=${1:-$(mktemp -d)/diffusion_policy}
checkout=${2:-$environment/source}
if [ ! -d "$checkout" ]; then
    git clone --quiet https://github.com/real-stanford/diffusion_policy "$checkout"
    git -C "$checkout" checkout --quiet 5ba07ac6661db573af695b419a7947ecb704690f
fi
if [ ! -x "$environment/bin/python" ]; then
    python3 -m venv "$environment"
    "$environment/bin/pip" install --quiet --index-url https://pypi.org/simple torch==2.13.0 torchvision==0.28.0 \
        diffusers==0.35.1 dill==0.3.5.1 hydra-core==1.3.2 omegaconf==2.3.0 einops 'zarr<3' numcodecs 'numpy<2.5' \
        setuptools h5py psutil tqdm termcolor tensorboard tensorboardX imageio imageio-ffmpeg matplotlib six
    "$environment/bin/pip" install --quiet --no-deps --no-build-isolation robomimic==0.2.0
fi
PYTHONPATH="$here/../foreign:$checkout" "$environment/bin/python" \
    "$here/diffusion_policy_reference.py" "$here/../foreign/reference/diffusion_policy"
